"""The encoder: embeddings, transformer layers, pooler.

One encoder serves all families of `families.FAMILIES`: they differ by the fields of `EncoderConfig`.

Outputs equal those of Hugging Face's PyTorch models within float32 rounding. Parameters are float32. The computation is
in `dtype`, except that layer norm, softmax and SVT are always in float32.

Shape letters: `B` batch, `L` tokens, `D` hidden, `N` heads, `H` head size, `F` feed-forward, `E` embedding size. Where
several examples share a row, those of `packed`.

References: Devlin et al., "BERT", 2019, arXiv 1810.04805; Vaswani et al., 2017, arXiv 1706.03762, section 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from flax import nnx

from svt_jax.mesh import has_explicit_axes, shard_batch, with_auto_axes
from svt_jax.models.config import EncoderConfig
from svt_jax.models.embeddings import ContactHead, Embeddings, Pooler
from svt_jax.models.encoder_layer import EncoderLayer, Transformed
from svt_jax.models.layer_loop import draw_bits, through_layers
from svt_jax.models.layers import LayerNorm
from svt_jax.models.packed import Layout, OneInEachRow
from svt_jax.models.positions import Places, Positions
from svt_jax.models.sites import loss_term
from svt_jax.models.svt_config import SVTConfig

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EncoderOutput:
    """What an encoder returns.

    Attributes:
      last_hidden_state: [B, L, D]; [B, 1, D] where only the first token was asked for.
      pooled: [B, D], tanh(W x[:, 0]), or None for a model without a pooler; NaN for input without tokens.
      hidden_states: the embeddings' output and each layer's, config.num_layers + 1 arrays [B, L, D], or None if not asked for.
        Where a norm follows the last layer, the last one is behind it, as in transformers.
      svt_failures: int32[B], the number of layers in which an example's remedy failed (its result was not finite) and was
        left out; None for a model without a remedy that acts in its layers.
      svt_states: input and output [B, L, D] of each SVT or remedy of tokens, by layer number; None if not asked for.
      attentions: each layer's attention maps [B, N, L, L], rows ask, columns are keys: after softmax and after the
        layer's remedy of maps. While dropout acts they are those before it, and before what acts behind it, as GFSA.
        None if not asked for.
    """

    last_hidden_state: Array
    pooled: Array | None
    hidden_states: tuple[Array, ...] | None
    svt_failures: Array | None = None
    svt_states: dict[int, tuple[Array, Array]] | None = None
    attentions: tuple[Array, ...] | None = None


class Encoder(nnx.Module):
    """Embeddings, layers, pooler.

    Args:
      config: the architecture.
      svt: which remedy acts in which layers; None or function "none" is exactly the plain encoder.
      dtype: the computation's dtype, float32 or bfloat16.
      rngs: for the random initialisation.
      remat: whether differentiation computes a layer's inner values again instead of keeping them: less memory, more
        time. An SVT's decomposition is kept.
      scan_layers: whether layers in a row without SVT are one loop in the compiled program. It compiles faster and runs
        slower, because the weights are stacked first (docs/performance.md).
    """

    def __init__(
        self,
        config: EncoderConfig,
        svt: SVTConfig | None = None,
        *,
        dtype: jnp.dtype = jnp.float32,
        rngs: nnx.Rngs,
        remat: bool = False,
        scan_layers: bool = False,
    ):
        svt = svt or SVTConfig()
        svt.check_norms(config)
        alphas = svt.slots(config.num_layers)
        self.config, self.svt_config = config, svt
        self.remat, self.scan_layers = remat, scan_layers
        self.dtype = dtype
        self.embeddings = Embeddings(config, dtype=dtype, rngs=rngs)
        rotary_or_relative = config.positions == "rotary" or config.relative_buckets > 0
        self.positions = Positions(config, rngs=rngs) if rotary_or_relative else None
        self.layers: nnx.List[EncoderLayer] = nnx.List([])
        first: dict[tuple[int, int], EncoderLayer] = {}
        for n, group in enumerate(config.weight_groups):
            hands_on = n == 0 and svt.enabled and svt.site == "value"
            layer = EncoderLayer(
                config, svt, alphas.get(n), number=n, shared=first.get(group), hands_on=hands_on, dtype=dtype, rngs=rngs
            )
            first.setdefault(group, layer)
            self.layers.append(layer)
        self.final_norm = (
            LayerNorm(config.hidden_size, epsilon=config.layer_norm_eps, rngs=rngs, use_bias=config.norm_bias)
            if config.final_norm
            else None
        )
        self.pooler = Pooler(config, dtype=dtype, rngs=rngs) if config.pooler else None
        self.contact_head = ContactHead(config) if config.protein else None

    def __call__(
        self,
        input_ids: Array,
        attention_mask: Array | None = None,
        token_type_ids: Array | None = None,
        *,
        rngs: nnx.Rngs | None = None,
        first_token_only: bool = False,
        output_hidden_states: bool = False,
        output_svt_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        """Encodes a batch.

        Args:
          input_ids: int[B, L], L at most the config's max_tokens.
          attention_mask: [B, L], 1 or true for real tokens; all real if left out.
          token_type_ids: int[B, L]; zeros if left out. A model without token types ignores them.
          rngs: random streams, one of them named `dropout`; None switches dropout off.
          first_token_only: the last layer computes only the first token's state, which is all that a classifier reads.
            The numbers are the same; without an SVT that layer takes a sixth of its operations.
          output_hidden_states: also return every layer's output.
          output_svt_states: also return each SVT's input and output.
          output_attentions: also return each layer's attention maps. Without it they are not kept.
        Raises:
          ValueError: if the sequence is longer than the model's positions, or attention maps are asked for together with
            `first_token_only`, which does not compute those of the last layer.
        """
        input_ids = jnp.asarray(input_ids)
        if input_ids.shape[1] > self.config.max_tokens:
            raise ValueError(
                f"input_ids has {input_ids.shape[1]} tokens and the model {self.config.max_tokens} positions. "
                "Truncate the input."
            )
        mask = jnp.ones(input_ids.shape, bool) if attention_mask is None else jnp.asarray(attention_mask).astype(bool)
        token_type_ids = jnp.zeros_like(input_ids) if token_type_ids is None else jnp.asarray(token_type_ids)
        return self.encode(
            input_ids,
            token_type_ids,
            OneInEachRow(mask),
            rngs=rngs,
            first_token_only=first_token_only,
            output_hidden_states=output_hidden_states,
            output_svt_states=output_svt_states,
            output_attentions=output_attentions,
        )

    def encode(
        self, input_ids: Array, token_type_ids: Array, layout: Layout, *, rngs: nnx.Rngs | None = None, **flags: bool
    ) -> EncoderOutput:
        """Encodes a batch whose examples lie in rows as `layout` says; `flags` are those of `__call__`.

        Args:
          input_ids, token_type_ids: int[R, S].
          layout: `packed.Packed`, several examples in each row, or `packed.OneInEachRow`. Attention maps are of rows,
            [R, N, S, S]; `layout.to_maps` makes [E, N, L, L] of them.
        """
        if flags.get("output_attentions") and flags.get("first_token_only"):
            raise ValueError(
                "output_attentions and first_token_only; allowed is one of them, since the last layer's maps need all tokens. "
                "Leave one out."
            )
        if has_explicit_axes(input_ids):
            return self._encode_divided(input_ids, token_type_ids, layout, rngs, flags)
        return self._encode(input_ids, token_type_ids, layout, rngs, **flags)

    def _encode_divided(
        self, input_ids: Array, token_type_ids: Array, layout: Layout, rngs: nnx.Rngs | None, flags: dict[str, bool]
    ) -> EncoderOutput:
        """Does `_encode` on Explicit mesh axes: the partitioner follows the batch's division, as with Auto axes."""
        graphdef, state = nnx.split((self, rngs))

        def encode(state: nnx.State, ids: Array, types: Array, layout: Layout) -> tuple[EncoderOutput, nnx.State]:
            model, streams = nnx.merge(graphdef, state)
            return model._encode(ids, types, layout, streams, **flags), nnx.state(streams)

        encode = with_auto_axes(encode, input_ids)
        out, streams = encode(state, input_ids, token_type_ids, layout)
        if rngs is not None:
            nnx.update(rngs, streams)
        return out

    def _encode(
        self,
        input_ids: Array,
        token_type_ids: Array,
        layout: Layout,
        rngs: nnx.Rngs | None,
        *,
        first_token_only: bool = False,
        output_hidden_states: bool = False,
        output_svt_states: bool = False,
        output_attentions: bool = False,
    ) -> EncoderOutput:
        sizes = self._halves(layout, input_ids.shape[1], output_attentions)
        first, bits = None, None
        if rngs is not None:
            first, bits = draw_bits(rngs.dropout(), self.layers, len(input_ids), sizes, remat=self.remat)
        with jax.named_scope("embeddings"):
            x = shard_batch(self.embeddings(input_ids, token_type_ids, layout, bits=first))
        embedded, last = x, self.layers[-1].svt
        behind_norm = last if self.svt_config.placement == "final_norm" else None
        x, states, transformed, attentions = through_layers(
            self.layers,
            x,
            layout,
            (Places(), Places()) if self.positions is None else self.positions(layout),
            bits,
            sizes,
            remat=self.remat,
            scan=self.scan_layers,
            first_token_only=first_token_only and behind_norm is None,
            keep=output_hidden_states,
            keep_maps=output_attentions,
        )
        if self.final_norm is not None:
            x = self.final_norm(x).astype(self.dtype)
            if behind_norm is not None:
                with jax.named_scope("svt"):
                    before, after, failed = behind_norm.on_rows(x, layout, bits=None)
                transformed[len(self.layers) - 1] = Transformed(failed, before, after)
                x = (after[:, :1] if first_token_only else layout.to_rows(after)).astype(self.dtype)
            states[-1] = x
        failures = [each.failed.astype(jnp.int32) for each in transformed.values()]
        first_tokens = x if first_token_only else layout.first_tokens(x)
        return EncoderOutput(
            last_hidden_state=x,
            pooled=None if self.pooler is None else self.pooler(first_tokens),
            hidden_states=(embedded, *states) if output_hidden_states else None,
            svt_failures=jnp.sum(jnp.stack(failures), axis=0) if failures else None,
            svt_states={
                n: (t.before, t.after) for n, t in transformed.items() if t.before is not None and t.after is not None
            }
            if output_svt_states
            else None,
            attentions=tuple(attentions) if output_attentions else None,
        )

    def _halves(self, layout: Layout, tokens: int, keep_maps: bool) -> tuple[int, int]:
        """Number of random entries of a row that serve dropouts: any layer's of full attention and the embeddings', and any
        layer's of sliding attention."""
        sizes = [tokens * (self.config.embedding_size or self.config.hidden_size), 0]
        for layer in self.layers:
            size = layer.halves(tokens, self.config.hidden_size, layout.per_row, keep_maps=keep_maps)
            sizes[layer.window is not None] = max(sizes[layer.window is not None], size)
        return sizes[0], sizes[1]

    def loss_term(
        self, hidden_states: Sequence[Array], layout: Layout, counted: Array
    ) -> tuple[Array | None, Array | None]:
        """The weighted term that a remedy of site `loss` adds to the training loss, and its state after this step.

        Args:
          hidden_states: those of `encode`.
          layout: that of `encode`.
          counted: bool[E], false for examples that only fill up the batch.
        Returns:
          None for a model without such a remedy, or without such a state.
        """
        if not self.has_loss_term:
            return None, None
        chosen = self.svt_config.alpha_by_layer(self.config.num_layers)
        slot = self.layers[max(chosen)].svt
        assert slot is not None
        return loss_term(slot, [hidden_states[n + 1] for n in chosen], layout, counted)

    @property
    def has_loss_term(self) -> bool:
        """Whether its remedy is a term of the training loss."""
        return self.svt_config.enabled and self.svt_config.site == "loss"

    @property
    def alphas(self) -> dict[int, Array]:
        """The present alpha of each transformed layer that has one, by layer number."""
        functions = {n: layer.svt.function for n, layer in enumerate(self.layers) if layer.svt is not None}
        return {n: f.alpha for n, f in functions.items() if hasattr(f, "alpha")}

    @property
    def svt_parameters(self) -> dict[int, dict[str, Array]]:
        """The present parameters of each transformed layer's function, trained or not, by layer number and name."""
        return {n: layer.svt.values for n, layer in enumerate(self.layers) if layer.svt is not None}
