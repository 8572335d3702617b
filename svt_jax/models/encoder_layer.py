"""One layer of an encoder, with an optional remedy at one of its sites. Shape letters are those of `packed`, and `Q` for
asking tokens.

post-norm
  attention     a = LN(x + h), h = drop(W_o A v), A of `attention`
  feed-forward  y = LN(a + h), h = drop(W_2 act(W_1 a))
pre-norm: x and a enter a part by way of its norm, and a = x + h, y = a + h.

A gated feed-forward has W_2 drop(act(W_g a) * W_1 a). Rotary positions rotate q and k. A remedy acts on A, before or
behind its drop (site `attention_map`), on A v (`value`), or in place of one of the two sums (`attention`,
`feed_forward`), by the placements of `SVTConfig`.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from svt_jax.mesh import shard_batch
from svt_jax.models.activations import ACTIVATION_FUNCTIONS
from svt_jax.models.attention import SelfAttention
from svt_jax.models.config import EncoderConfig
from svt_jax.models.layers import DropoutBits, LayerNorm, Linear, dropout
from svt_jax.models.packed import Layout
from svt_jax.models.positions import Places
from svt_jax.models.sites import InsideAttention
from svt_jax.models.slot import SVTLayer
from svt_jax.models.svt_config import Placement, Site, SVTConfig
from svt_jax.models.windows import blocks_pay, near, near_in_blocks
from svt_jax.spectral.base import TOKEN_SITES

Array = jax.Array


class Transformed(NamedTuple):
    """Where a layer's remedy failed, bool [E]; and its input and output [E, L, D], None inside attention."""

    failed: Array
    before: Array | None = None
    after: Array | None = None


class LayerOutput(NamedTuple):
    """What a layer computes.

    Attributes:
      x: the output for all tokens [R, S, D], or each example's first one [E, 1, D].
      transformed: what its remedy did.
      values: the values [R, N, S, H] of a layer that hands them on.
      maps: the attention maps [R, N, Q, S], without dropout; None unless they are asked for.
    """

    x: Array
    transformed: Transformed | None
    values: Array | None
    maps: Array | None


class EncoderLayer(nnx.Module):
    """One layer.

    Args:
      alpha: the start value of its remedy's alpha; None for a layer without a remedy.
      number: the layer's number.
      shared: a layer whose weights this one also uses; its remedy is still its own.

    Attributes:
      attention_norm, output_norm: the norms of attention and feed-forward, behind them, or in front of them in a pre-norm
        encoder; ModernBERT's first layer has no attention_norm.
      window: how far attention sees to each side; None is everywhere.
      svt: the remedy and its parameters, or None.
      site: where in the layer it acts; None without one, for a loss, and where the encoder applies it (`final_norm`).
      hands_on: whether it is the first layer of an encoder with a remedy of site `value`, which needs its values.
    """

    def __init__(
        self,
        config: EncoderConfig,
        svt: SVTConfig,
        alpha: float | None,
        *,
        number: int = 0,
        shared: EncoderLayer | None = None,
        hands_on: bool = False,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        def dense(in_size: int, out_size: int, *axes: str, use_bias: bool) -> Linear:
            scale, ends = config.initializer_range, (axes[0], axes[1])
            return Linear(in_size, out_size, ends, initializer_range=scale, dtype=dtype, rngs=rngs, use_bias=use_bias)

        def norm() -> LayerNorm:
            return LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, rngs=rngs, use_bias=config.norm_bias)

        def up() -> Linear:
            return dense(config.hidden_size, config.intermediate_size, "embed", "mlp", use_bias=config.up_bias)

        # Shared weights are the same objects: NNX keeps them once, under the first layer's path.
        self.attention: SelfAttention = shared.attention if shared else SelfAttention(config, dtype=dtype, rngs=rngs)
        self.attention_norm: LayerNorm | None = (
            shared.attention_norm if shared else norm() if config.first_attention_norm or number else None
        )
        self.up: Linear = shared.up if shared else up()
        self.down: Linear = (
            shared.down
            if shared
            else dense(config.intermediate_size, config.hidden_size, "mlp", "embed", use_bias=config.down_bias)
        )
        self.output_norm: LayerNorm = shared.output_norm if shared else norm()
        self.gate: Linear | None = shared.gate if shared else up() if config.mlp == "gated" else None
        self.window = config.window(number)
        self._norm_in_front = config.norm == "pre"
        sizes = {"heads": config.num_attention_heads, "hidden": config.hidden_size}
        self.svt = None if alpha is None else SVTLayer(svt, alpha, sizes)
        elsewhere = svt.site == "loss" or svt.placement == "final_norm"
        self.site: Site | None = None if alpha is None or elsewhere else svt.site
        self.hands_on = hands_on
        self._placement: Placement = svt.placement
        self._activation = ACTIVATION_FUNCTIONS[config.hidden_act]
        hidden, behind, last = (
            config.hidden_dropout_prob,
            config.attention_output_dropout_prob,
            config.feed_forward_dropout_prob,
        )
        self._attention_dropout = hidden if behind is None else behind
        self._feed_forward_dropout = hidden if last is None else last
        self._inner_dropout = config.inner_dropout_prob
        self._inner_size = config.intermediate_size

    def __call__(
        self,
        x: Array,
        layout: Layout,
        first_values: Array | None = None,
        *,
        places: Places | None = None,
        first_token_only: bool = False,
        keep_maps: bool = False,
        bits: DropoutBits | None,
    ) -> LayerOutput:
        """Computes the layer.

        After keys and values a layer treats each token by itself, but for its remedy. So where only the first tokens are
        read, it goes on with these alone after its remedy, or after keys and values.

        Args:
          x: [R, S, D].
          layout: where examples lie in the rows.
          first_values: the values of the encoder's first layer; needed above it by a remedy of site `value`.
          places: what `Encoder.positions` says for this layer.
          first_token_only: whether only the examples' first tokens are read.
          keep_maps: whether attention maps are returned. They are of whole rows, so attention does not go block by block.
        """
        first = first_token_only and self.site is None
        rows, normed = x, self._in_front(self.attention_norm, x)
        window = None if first else self._blocks_of(x.shape[1], keep_maps)
        if window is not None:
            asking, attends = normed, near_in_blocks(layout, window)
        else:
            asking, attends = layout.asking_first(normed) if first else (normed, layout.attends)
            attends = attends if self.window is None else attends & near(layout, self.window, first=first)
        inside = InsideAttention(self.svt, layout, first_values, attends)
        h, maps = self.attention(
            asking, normed, attends, places=places, first=first, window=window, inside=inside, bits=bits
        )
        if first:
            h = layout.of_first(h)
        elif first_token_only and self.site in ("attention_map", "value"):
            h = layout.first_tokens(h)
        if first_token_only and self.site not in TOKEN_SITES:
            x = layout.first_tokens(x)
            bits = None if bits is None else bits.of_first(rows, layout)
        ends = functools.partial(self._ends, layout=layout, first_token_only=first_token_only)

        h = dropout(h, self._attention_dropout, bits)
        a, by_attention = ends("attention", h, x, self.attention_norm, bits=bits)
        a = a.astype(x.dtype)
        if first_token_only and self.site == "attention":
            bits = None if bits is None else bits.of_first(rows, layout)
        h = dropout(self._feed_forward(self._in_front(self.output_norm, a), bits), self._feed_forward_dropout, bits)
        out, by_feed_forward = ends("feed_forward", h, a, self.output_norm, bits=bits)

        found = by_attention or by_feed_forward
        if inside.failed is not None:
            found = Transformed(inside.failed)
        values = inside.values if self.hands_on else None
        return LayerOutput(shard_batch(out.astype(x.dtype)), found, values, maps if keep_maps else None)

    def _blocks_of(self, tokens: int, keep_maps: bool) -> int | None:
        """The window of attention that goes block by block; None for whole rows, which a remedy of maps needs too."""
        whole = keep_maps or self.site == "attention_map" or self.window is None
        return None if whole or not blocks_pay(tokens, self.window or 0) else self.window

    def _in_front(self, norm: LayerNorm | None, x: Array) -> Array:
        """What a part reads: x, or its norm where that stands in front."""
        return norm(x).astype(x.dtype) if self._norm_in_front and norm is not None else x

    def _feed_forward(self, x: Array, bits: DropoutBits | None) -> Array:
        inner = self._activation((self.up if self.gate is None else self.gate)(x))
        inner = inner if self.gate is None else inner * self.up(x)
        return self.down(dropout(inner, self._inner_dropout, bits))

    def _ends(
        self,
        site: Site,
        h: Array,
        x: Array,
        own_norm: LayerNorm | None,
        *,
        layout: Layout,
        first_token_only: bool,
        bits: DropoutBits | None,
    ) -> tuple[Array, Transformed | None]:
        """The end of a part of the layer with output h and input x: norm(h + x), or the placement of a remedy there.

        A norm that stands in front of the part is none here. A remedy there needs all tokens; with `first_token_only` the
        result is of first tokens.
        """
        norm = own_norm if own_norm is not None and not self._norm_in_front else _as_it_is
        if self.site != site:
            return norm(h + x), None
        match self._placement:
            case "before_residual":
                before = h
            case "after_norm":
                before = norm(h + x) + x
            case "output":
                before, bits = norm(h + x), None
            case _:
                before = h + x
        assert self.svt is not None
        with jax.named_scope("svt"):
            before, after, failed = self.svt.on_rows(before, layout, bits=bits)
        out = after[:, :1] if first_token_only else layout.to_rows(after)
        if self._placement in ("before_norm", "before_residual"):  # as in the published BERT: the residual enters again
            out = norm(out + (layout.first_tokens(x) if first_token_only else x))
        elif self._placement == "norm_input":
            out = norm(out)
        return out, Transformed(failed, before, after)

    def halves(self, tokens: int, width: int, asking_first: int, *, keep_maps: bool) -> int:
        """Number of random entries that the dropouts take of a row of tokens, in which so many first tokens may ask."""
        hidden = (self._attention_dropout > 0) + (self._feed_forward_dropout > 0)
        hidden += -(-self._inner_size // width) if self._inner_dropout else 0  # whole widths, as `of_first` takes them
        svt = self.site in TOKEN_SITES and self._placement != "output"
        of_maps = self.attention.halves(tokens, self._blocks_of(tokens, keep_maps), asking_first)
        return of_maps + tokens * width * (hidden + svt)


def _as_it_is(x: Array) -> Array:
    return x
