"""The rows of the word embeddings that training can change: those of tokens that its data have.

Any other row has a zero gradient at every step, hence zero moments, and a zero update where weights do not decay. So a
step can take the used rows out of the table, differentiate and update them, and put them back. The result is the same
and the other rows cost nothing. A small task uses few rows (CoLA 5588 of BERT's 30522), and in a small encoder the word
embeddings are half of all parameters.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import numpy as np
from flax import nnx

from svt_jax.data.tokens import Tokens
from svt_jax.models.config import EncoderConfig
from svt_jax.run.config import OptimConfig

Array = jax.Array

_TABLE = ("encoder", "embeddings", "word", "embedding")


@dataclasses.dataclass(frozen=True)
class UsedEmbeddings:
    """Some rows of a classifier's word embeddings.

    Attributes:
      rows: int32[R], the rows' numbers, ascending.
      place: int32[V], for each token the place of its row in `rows`; R, which looks up NaN, for tokens without a row.
    """

    rows: np.ndarray
    place: np.ndarray

    @classmethod
    def of(cls, tokens: np.ndarray, vocab_size: int) -> UsedEmbeddings:
        """The rows of these tokens.

        Example:
          >>> UsedEmbeddings.of(np.array([[2, 5], [2, 0]]), vocab_size=7).place
          array([0, 3, 1, 3, 3, 2, 3], dtype=int32)
        """
        rows = np.unique(tokens).astype(np.int32)
        place = np.full(vocab_size, len(rows), np.int32)
        place[rows] = np.arange(len(rows))
        return cls(rows, place)

    def take(self, params: nnx.State) -> nnx.State:
        """The parameters with these rows [R, E] in place of the table [V, E]."""
        return _with_table(params, lambda table: table.at[self.rows].get(indices_are_sorted=True, unique_indices=True))

    def put(self, params: nnx.State, taken: nnx.State) -> nnx.State:
        """`taken` with the whole table: that of `params`, with these rows replaced."""
        whole = dict(nnx.to_flat_state(params))[_TABLE].get_value()
        return _with_table(
            taken, lambda new: whole.at[self.rows].set(new, indices_are_sorted=True, unique_indices=True)
        )


def trained_part(params: nnx.State, used: UsedEmbeddings | None) -> nnx.State:
    """The parameters that a step differentiates and updates: with the used rows in place of the table."""
    return params if used is None else used.take(params)


def _with_table(params: nnx.State, change: Callable[[Array], Array]) -> nnx.State:
    return nnx.map_state(lambda path, leaf: leaf.replace(change(leaf.get_value())) if path == _TABLE else leaf, params)


def used_embeddings(tokens: Tokens, encoder: EncoderConfig, optim: OptimConfig) -> UsedEmbeddings | None:
    """The rows that training on these examples can change; None if that is all, or too many to save anything."""
    # A bucket may be longer than every example, so padding is always used. RoBERTa recognises padding by its token's
    # number, and ESM a masked token: these must stay, so all rows up to them are kept.
    known = max(encoder.pad_token_id, encoder.mask_token_id or 0)
    padding = np.append(np.arange(known + 1), tokens.pad_id)
    used = UsedEmbeddings.of(np.union1d(tokens.used_ids(), padding), encoder.vocab_size)
    return used if optim.weight_decay == 0 and 2 * len(used.rows) < encoder.vocab_size else None
