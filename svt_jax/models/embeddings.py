"""The ends of an encoder: embeddings at its input, the pooler and ESM's contact head at its output. Shape letters are those of `encoder`."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svt_jax.mesh import gather_columns, shard_columns
from svt_jax.models.config import EncoderConfig
from svt_jax.models.layers import DropoutBits, LayerNorm, Linear, dropout, first_token
from svt_jax.models.packed import Layout
from svt_jax.models.positions import Carried

Array = jax.Array


class Embeddings(nnx.Module):
    """Sum of word, position and token type embeddings, layer norm, dropout; then a dense layer where E is not D.

    ESM's token dropout takes the place of the masked tokens' noise in training: masked tokens are zero, and the others
    scaled by (1 - 0.15 * 0.8) / (1 - share of masked ones in the example).
    """

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        size = config.embedding_size or config.hidden_size
        normal = nnx.initializers.normal(config.initializer_range)

        def table(rows: int, init: nnx.Initializer = normal) -> nnx.Embed:
            axes = {"logical_axes": ("rows", "lookup")}
            return nnx.Embed(rows, size, embedding_init=init, dtype=dtype, rngs=rngs, embedding_metadata=axes)

        self.word = table(config.vocab_size)
        self.position = (
            table(config.max_position_embeddings, _sinusoids if config.sinusoidal_pos_embds else normal)
            if config.positions == "absolute"
            else None
        )
        self.token_type = table(config.type_vocab_size) if config.type_vocab_size else None
        self.norm = (
            LayerNorm(size, epsilon=config.layer_norm_eps, rngs=rngs, use_bias=config.norm_bias)
            if config.embedding_norm
            else None
        )
        self.projection = (
            Linear(
                size,
                config.hidden_size,
                ("factor", "embed"),
                initializer_range=config.initializer_range,
                dtype=dtype,
                rngs=rngs,
            )
            if config.projects
            else None
        )
        self._pad_token_id = config.pad_token_id
        self._positions_skip_padding = config.positions_skip_padding
        rate = config.embedding_dropout_prob
        self._dropout = config.hidden_dropout_prob if rate is None else rate
        self._mask_token_id = config.mask_token_id if config.token_dropout else None
        self._zero_padding = config.zero_padding
        self._dtype = dtype

    def __call__(self, input_ids: Array, token_type_ids: Array, layout: Layout, *, bits: DropoutBits | None) -> Array:
        is_padding = (input_ids == self._pad_token_id)[..., None]  # [R, S, 1]
        x = shard_columns(_constant_where(is_padding, self.word(input_ids)))  # [R, S, E]
        if self._mask_token_id is not None:
            x = _without_masked(x, input_ids == self._mask_token_id, layout)
        if self.token_type is not None:
            x = x + shard_columns(self.token_type(token_type_ids))
        if self.position is not None:
            x = x + (self._positions(input_ids) if layout.position is None else self._packed_positions(layout))
        x = gather_columns(x)
        x = x if self.norm is None else self.norm(x).astype(self._dtype)
        x = jnp.where(layout.real[..., None], x, 0.0).astype(self._dtype) if self._zero_padding else x
        x = dropout(x, self._dropout, bits)
        return x if self.projection is None else self.projection(x)  # [R, S, D]

    def _positions(self, input_ids: Array) -> Array:
        assert self.position is not None
        if not self._positions_skip_padding:
            return self.position.embedding[...][None, : input_ids.shape[1]].astype(self._dtype)  # [1, S, E]
        real = (input_ids != self._pad_token_id).astype(jnp.int32)
        positions = self.position(jnp.cumsum(real, axis=1) * real + self._pad_token_id)  # [R, S, E]
        return _constant_where(real[..., None] == 0, positions)

    def _packed_positions(self, layout: Layout) -> Array:
        assert self.position is not None
        # A product with ones and zeros: the transpose of a lookup in so small a table adds row by row.
        first = self._pad_token_id + 1 if self._positions_skip_padding else 0
        table = self.position.embedding[...][first : first + layout.mask.shape[1]]  # [L, E]
        chosen = jax.nn.one_hot(layout.position, len(table), dtype=table.dtype)
        return jnp.matmul(chosen, table, precision=jax.lax.Precision.HIGHEST).astype(self._dtype)


def _constant_where(is_padding: Array, rows: Array) -> Array:
    """Returns the rows, without gradient for padding: PyTorch does not train the row of `padding_idx`."""
    return jnp.where(is_padding, jax.lax.stop_gradient(rows), rows)


def _without_masked(x: Array, masked: Array, layout: Layout) -> Array:
    share = layout.means(masked[..., None].astype(jnp.float32))  # [E, 1]
    some = share < 1  # else transformers divides by 0; nothing is left to scale
    scale = jnp.where(some, (1 - 0.15 * 0.8) / jnp.where(some, 1 - share, 1.0), 0.0)
    of_tokens = layout.to_rows(jnp.broadcast_to(scale[:, None], (*layout.mask.shape, 1)))  # [R, S, 1]
    return jnp.where(masked[..., None], 0.0, x.astype(jnp.float32) * of_tokens).astype(x.dtype)


def _sinusoids(key: Array, shape: tuple[int, int], dtype: jnp.dtype) -> Array:
    """Row p: sin(p / 10000^(2i/E)) in column 2i, the cosine in column 2i + 1; in float64, as transformers does."""
    rows, size = shape
    columns = np.arange(size)
    angles = np.arange(rows)[:, None] / 10000.0 ** (2 * (columns // 2) / size)
    return jnp.asarray(np.where(columns % 2, np.cos(angles), np.sin(angles)), dtype)


class Pooler(nnx.Module):
    """tanh(W x + b) of the first token."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        size = config.hidden_size
        scale = config.initializer_range
        self.dense = Linear(size, size, ("embed", "pooled"), initializer_range=scale, dtype=dtype, rngs=rngs)

    def __call__(self, x: Array) -> Array:
        return jnp.tanh(self.dense(first_token(x)))


class ContactHead(nnx.Module):
    """The weights of ESM's head for contacts in proteins, which every ESM checkpoint has; nothing here computes with them."""

    def __init__(self, config: EncoderConfig):
        maps = config.num_layers * config.num_attention_heads
        self.weight = Carried(jnp.zeros((1, maps)), logical_axes=("parameter", "parameter"))
        self.bias = Carried(jnp.zeros(1), logical_axes=("parameter",))
