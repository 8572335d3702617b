"""One layer of an encoder, with an optional SVT slot. Shape letters are those of `packed`, and `Q` for asking tokens.

attention  a = LN(x + drop(W_o softmax(q k^T / sqrt(H) + mask) v))
feed-forward  h = drop(W_2 act(W_1 a))
output  LN(h + a), or one of the placements of `SVTConfig` where the layer has an SVT
"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
from flax import nnx

from svt_jax.mesh import shard_batch
from svt_jax.models.activations import ACTIVATION_FUNCTIONS
from svt_jax.models.config import EncoderConfig
from svt_jax.models.layers import DropoutBits, LayerNorm, Linear, dropout
from svt_jax.models.packed import Layout
from svt_jax.models.slot import SVTLayer
from svt_jax.models.svt_config import Placement, SVTConfig

Array = jax.Array


class Transformed(NamedTuple):
    """The input and output [E, L, D] of one layer's SVT, and where it failed: bool [E]."""

    before: Array
    after: Array
    failed: Array


class SelfAttention(nnx.Module):
    """Multi-head attention without the residual."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self._heads, self._head_size = config.num_attention_heads, config.head_size

        def square(*axes: str) -> Linear:
            size, scale = config.hidden_size, config.initializer_range
            return Linear(
                size, size, (axes[0], axes[1]), initializer_range=scale, dtype=dtype, rngs=rngs, num_heads=self._heads
            )

        self.query, self.key, self.value = (square("embed", "heads") for _ in range(3))
        self.out = square("heads", "embed")
        self._dropout = config.attention_probs_dropout_prob

    def halves(self, tokens: int) -> int:
        """Number of random entries that the dropout of a row takes."""
        return self._heads * tokens**2 if self._dropout else 0

    def __call__(self, asking: Array, x: Array, attends: Array, *, bits: DropoutBits | None) -> Array:
        """Returns what the asking tokens [R, Q, D] gather from the tokens x [R, S, D] that they attend to.

        Args:
          attends: bool[R, Q or 1, S].
        """

        def split(y: Array) -> Array:  # heads in front: on CPU the products are several times slower with "rsnh"
            return y.reshape(*y.shape[:2], self._heads, self._head_size).transpose(0, 2, 1, 3)  # [R, N, S, H]

        # The key's bias adds the same to all scores of a query, and softmax removes it. Its gradient is 0, but autodiff
        # returns rounding, which Adam would blow up to full steps that differ from mesh to mesh.
        query, key, value = (
            split(self.query(asking)),
            split(self.key(x, bias_gradient=False)),
            split(self.value(x)),
        )
        scores = jnp.einsum("rnqh,rnkh->rnqk", query * self._head_size**-0.5, key)
        # The most negative number, not -inf: a row of padding only keeps finite (uniform) weights.
        bias = jnp.where(attends, 0.0, jnp.finfo(jnp.float32).min)[:, None]  # [R, 1, Q or 1, S]
        weights = jax.nn.softmax(scores.astype(jnp.float32) + bias, axis=-1).astype(x.dtype)
        weights = dropout(weights, self._dropout, bits)
        mixed = jnp.einsum("rnqk,rnkh->rnqh", weights, value)
        return self.out(mixed.transpose(0, 2, 1, 3).reshape(asking.shape))  # [R, Q, D]


class EncoderLayer(nnx.Module):
    """One layer.

    Args:
      alpha: the start value of its SVT's alpha; None for a layer without SVT.
      shared: a layer whose weights this one also uses; its SVT is still its own.
    """

    def __init__(
        self,
        config: EncoderConfig,
        svt: SVTConfig,
        alpha: float | None,
        *,
        shared: EncoderLayer | None = None,
        dtype: jnp.dtype,
        rngs: nnx.Rngs,
    ):
        def dense(in_size: int, out_size: int, *axes: str) -> Linear:
            scale = config.initializer_range
            return Linear(in_size, out_size, (axes[0], axes[1]), initializer_range=scale, dtype=dtype, rngs=rngs)

        def norm() -> LayerNorm:
            return LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, rngs=rngs)

        # Shared weights are the same objects: NNX keeps them once, under the first layer's path.
        self.attention: SelfAttention = shared.attention if shared else SelfAttention(config, dtype=dtype, rngs=rngs)
        self.attention_norm: LayerNorm = shared.attention_norm if shared else norm()
        self.up: Linear = shared.up if shared else dense(config.hidden_size, config.intermediate_size, "embed", "mlp")
        self.down: Linear = (
            shared.down if shared else dense(config.intermediate_size, config.hidden_size, "mlp", "embed")
        )
        self.output_norm: LayerNorm = shared.output_norm if shared else norm()
        self.svt = None if alpha is None else SVTLayer(svt, alpha)
        self._placement: Placement = svt.placement
        self._activation = ACTIVATION_FUNCTIONS[config.hidden_act]
        self._attention_dropout = config.hidden_dropout_prob if config.attention_output_dropout else 0.0
        self._feed_forward_dropout = config.hidden_dropout_prob if config.feed_forward_dropout else 0.0

    def __call__(
        self, x: Array, layout: Layout, *, first_token_only: bool = False, bits: DropoutBits | None
    ) -> tuple[Array, Transformed | None]:
        """Returns the output for all tokens [R, S, D] or each example's first one [E, 1, D], and what the SVT did.

        After keys and values a layer treats each token by itself, so what nobody reads is not computed: without an SVT
        everything after keys and values, with one everything after it.
        """
        if first_token_only and self.svt is None:
            asking, attends = layout.asking_first(x)
            attended = layout.of_first(self.attention(asking, x, attends, bits=bits))
            bits = None if bits is None else bits.of_first(x, layout)
            x = layout.first_tokens(x)
        else:
            attended = self.attention(x, x, layout.attends, bits=bits)
        attended = dropout(attended, self._attention_dropout, bits)
        x = self.attention_norm(attended + x).astype(x.dtype)
        h = dropout(self.down(self._activation(self.up(x))), self._feed_forward_dropout, bits)
        if self.svt is None:
            out, transformed = self.output_norm(h + x), None
        else:
            with jax.named_scope("svt"):
                out, transformed = self._transform(self.svt, h, x, layout, first_token_only, bits)
        return shard_batch(out.astype(x.dtype)), transformed

    def _transform(
        self, svt: SVTLayer, h: Array, x: Array, layout: Layout, first_token_only: bool, bits: DropoutBits | None
    ) -> tuple[Array, Transformed]:
        match self._placement:
            case "before_norm" | "replace_norm":
                before = h + x
            case "after_norm":
                before = self.output_norm(h + x) + x
            case "output":
                before, bits = self.output_norm(h + x), None
        transformed = Transformed(*svt.on_rows(before, layout, bits=bits))
        out = transformed.after[:, :1] if first_token_only else layout.to_rows(transformed.after)
        if self._placement == "before_norm":  # as in the published BERT: the residual enters twice
            out = self.output_norm(out + (layout.first_tokens(x) if first_token_only else x))
        return out, transformed

    def halves(self, tokens: int, width: int) -> int:
        """Number of random entries that the dropouts take of a row of tokens."""
        hidden = (self._attention_dropout > 0) + (self._feed_forward_dropout > 0)
        svt = self.svt is not None and self._placement != "output"
        return self.attention.halves(tokens) + tokens * width * (hidden + svt)
