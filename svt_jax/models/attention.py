"""Multi-head self-attention, over whole rows or block by block. Shape letters are those of `windows`, `Q` asking tokens, `N` heads.

A = drop(softmax(q k^T / sqrt(H) + mask)); the result is W_o A v.

References: Vaswani et al., 2017, arXiv 1706.03762, section 3.2; Beltagy et al., "Longformer", 2020, arXiv 2004.05150
(sliding windows).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx

from svt_jax.models.config import EncoderConfig
from svt_jax.models.layers import DropoutBits, Linear, dropout
from svt_jax.models.positions import Places, rotated
from svt_jax.models.sites import InsideAttention
from svt_jax.models.windows import block_size, in_blocks, in_rows, with_neighbours

Array = jax.Array


class SelfAttention(nnx.Module):
    """Multi-head attention without the residual."""

    def __init__(self, config: EncoderConfig, *, dtype: jnp.dtype, rngs: nnx.Rngs):
        self._heads, self._head_size = config.num_attention_heads, config.head_size

        def square(*axes: str) -> Linear:
            size, scale = config.hidden_size, config.initializer_range
            return Linear(
                size,
                size,
                (axes[0], axes[1]),
                initializer_range=scale,
                dtype=dtype,
                rngs=rngs,
                use_bias=config.attention_bias,
                num_heads=self._heads,
            )

        self.query, self.key, self.value = (square("embed", "heads") for _ in range(3))
        self.out = square("heads", "embed")
        self._dropout = config.attention_probs_dropout_prob

    def halves(self, tokens: int, window: int | None = None, asking_first: int = 0) -> int:
        """Number of random entries that the dropout of a row takes.

        Args:
          window: that of blocks; None for whole rows.
          asking_first: the most first tokens that ask in a row.
        """
        keys = tokens if window is None else max(3 * block_size(window), asking_first)
        asking = tokens if window is None else -(-tokens // block_size(window)) * block_size(window)
        return self._heads * asking * keys if self._dropout else 0

    def __call__(
        self,
        asking: Array,
        x: Array,
        attends: Array,
        *,
        places: Places | None = None,
        first: bool = False,
        window: int | None = None,
        inside: InsideAttention | None = None,
        bits: DropoutBits | None,
    ) -> tuple[Array, Array]:
        """Returns what the asking tokens [R, Q, D] gather from the tokens x [R, S, D] that they attend to.

        Also returns their attention maps [R, N, Q, S], without dropout; of blocks [R, N, B, W, 3 W].

        Args:
          attends: bool[R, Q or 1, S]; of blocks bool[R, B, W, 3 W].
          places: rotations of tokens, and biases of scores.
          first: whether the asking tokens are the first ones of their examples, not all.
          window: goes block by block, with blocks of this window; all tokens must ask. None for whole rows.
          inside: what the layer's remedy does here; it needs all tokens to ask, and on maps whole rows. None for nothing.
        """
        inside, places = inside or InsideAttention(None), places or Places()

        def split(y: Array) -> Array:  # heads in front: on CPU the products are several times slower with "rsnh"
            return y.reshape(*y.shape[:2], self._heads, self._head_size).transpose(0, 2, 1, 3)  # [R, N, S, H]

        # The key's bias adds the same to all scores of a query, and softmax removes it, unless it is rotated. Its
        # gradient is 0, but autodiff returns rounding, which Adam would blow up to full steps that differ from mesh to
        # mesh.
        query, key, value = (
            split(self.query(asking)),
            split(self.key(x, bias_gradient=places.angles is not None)),
            split(self.value(x)),
        )
        if places.angles is not None:
            query = query if first else rotated(query, places.angles)  # a first token stands at 0
            key = rotated(key, places.angles)
        query = query * self._head_size**-0.5
        of_rows = value
        if window is not None:
            size = block_size(window)
            query, key, value = in_blocks(query, size), with_neighbours(key, size), with_neighbours(value, size)
        scores = jnp.einsum("rn...qh,rn...kh->rn...qk", query, key)
        # The most negative number, not -inf: a row of padding only keeps finite (uniform) weights.
        bias = jnp.where(attends, 0.0, jnp.finfo(jnp.float32).min)[:, None]  # [R, 1, Q or 1, S]
        by_distance = places.first_bias if first else places.bias
        scores = scores.astype(jnp.float32)
        scores = scores if by_distance is None else scores + by_distance
        weights = jax.nn.softmax(scores + bias, axis=-1)
        weights = inside.on_map(weights, behind_dropout=False).astype(x.dtype)
        mixing = inside.on_map(dropout(weights, self._dropout, bits), behind_dropout=True)
        mixed = jnp.einsum("rn...qk,rn...kh->rn...qh", mixing, value)
        if window is not None:
            # Padding that attends to no key has uniform weights over the whole row, as without blocks. Its gradient ends at
            # the values; there autodiff does not know that the row's scores were rounded away, here it has none.
            nothing = ~jnp.any(attends, axis=-1)[:, None, ..., None]
            mean = jnp.mean(of_rows, axis=2, keepdims=True)[:, :, None]
            mixed = in_rows(jnp.where(nothing, mean, mixed), asking.shape[1])
        mixed = inside.on_values(mixed, of_rows)
        maps = mixing if bits is None else weights
        return self.out(mixed.transpose(0, 2, 1, 3).reshape(asking.shape)), maps  # [R, Q, D]
