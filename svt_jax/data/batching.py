"""Batches of static shape: length buckets chosen from the data, a seeded order that can be resumed at any batch.

Each bucket is one compilation, so there are few. Every batch has the same number of rows; what is left over at the end
of an epoch or a split is filled up with rows of weight 0, so each example counts exactly once.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import grain
import numpy as np

from svt_jax.data.tokenizer import Tokens

Batch = dict[str, np.ndarray]
"""input_ids, token_type_ids, attention_mask: int32[B, L]; labels [B]; weights float32[B]; index int32[B]."""

MAX_BUCKETS = 4
_MULTIPLE = 8


def choose_buckets(
    lengths: np.ndarray,
    batch_size: int,
    max_buckets: int = MAX_BUCKETS,
    *,
    longest: int | None = None,
    multiple: int = _MULTIPLE,
) -> list[int]:
    """At most `max_buckets` lengths, multiples of `multiple`, that minimise the expected length of a padded random batch.

    A batch is as long as its longest example, so with F the distribution of lengths its own is F^batch_size. The best
    set of buckets for that distribution is found by dynamic programming. None is above `longest`, the model's positions.

    Example:
      >>> import numpy as np
      >>> choose_buckets(np.array([5, 6, 7, 100]), batch_size=1, max_buckets=2)
      [8, 104]
    """
    rounded = -(-np.asarray(lengths) // multiple) * multiple
    if longest is not None:
        rounded = np.minimum(rounded, longest)
    candidates, counts = np.unique(rounded, return_counts=True)
    below = np.cumsum(counts) / len(rounded)
    share = np.diff(below**batch_size, prepend=0.0)  # of batches whose longest example has this length
    cumulative = np.concatenate([[0.0], np.cumsum(share)])
    # cost[k][j]: least expected length over the candidates before j, with k buckets of which the last is candidate j-1
    n = len(candidates)
    cost = np.full((max_buckets + 1, n + 1), np.inf)
    cost[0, 0] = 0.0
    previous = np.zeros((max_buckets + 1, n + 1), int)
    for k in range(1, max_buckets + 1):
        for j in range(1, n + 1):
            options = cost[k - 1, :j] + candidates[j - 1] * (cumulative[j] - cumulative[:j])
            previous[k, j] = int(np.argmin(options))
            cost[k, j] = options[previous[k, j]]
    k, j = int(np.argmin(cost[:, n])), n
    buckets: list[int] = []
    while j > 0:
        buckets.append(int(candidates[j - 1]))
        j, k = int(previous[k, j]), k - 1
    return buckets[::-1]


def collate(
    tokens: Tokens, rows: np.ndarray, buckets: Sequence[int], batch_size: int, part: np.ndarray | None = None
) -> Batch:
    """The batch of the given rows, filled up to batch_size with copies of the first row that weigh nothing.

    With `part`, tokens and labels are those of these rows of it only: a process makes what its devices hold. Its length,
    weights and index are still those of the whole batch.
    """
    real = len(rows)
    length = next(b for b in buckets if b >= tokens.lengths[rows].max())
    rows = np.concatenate([rows, np.full(batch_size - real, rows[0])])
    width = min(length, tokens.ids.shape[1])
    held = rows if part is None else rows[part]

    def padded(values: np.ndarray, fill: int) -> np.ndarray:
        return np.pad(values[held, :width], ((0, 0), (0, length - width)), constant_values=fill)

    mask = (np.arange(length) < tokens.lengths[held, None]).astype(np.int32)
    labels = np.zeros(len(held), np.int32) if tokens.labels is None else tokens.labels[held]
    weights = (np.arange(batch_size) < real).astype(np.float32)
    return {
        "input_ids": padded(tokens.ids, tokens.pad_id),
        "token_type_ids": padded(tokens.types, 0),
        "attention_mask": mask,
        "labels": labels,
        "weights": weights,
        "index": rows.astype(np.int32),
    }


class TrainingBatches:
    """An endless stream of training batches, reshuffled each epoch.

    Batch number n is a pure function of (tokens, batch_size, seed, n): reading can begin anywhere, and the number of
    devices or processes plays no part.

    Args:
      tokens: the training split.
      batch_size: rows of the global batch.
      seed: of the order.
      buckets: allowed lengths, ascending; the last must fit the longest example.
      part: the rows of each batch that this process holds; None is all. See `collate`.
    """

    def __init__(
        self, tokens: Tokens, batch_size: int, seed: int, buckets: Sequence[int], part: np.ndarray | None = None
    ):
        self.steps_per_epoch = -(-len(tokens) // batch_size)
        order = grain.MapDataset.range(len(tokens)).seed(seed).shuffle()
        batches = order.batch(batch_size, drop_remainder=False).repeat(None)
        self._dataset = batches.map(lambda rows: collate(tokens, np.asarray(rows), buckets, batch_size, part))

    def from_batch(self, start: int) -> Iterator[Batch]:
        """Iterates from batch number `start`, collating ahead in a thread."""
        iterator = self._dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)).__iter__()
        iterator.set_state({**iterator.get_state(), "next_index": start})
        return iterator


def evaluation_batches(
    tokens: Tokens, batch_size: int, buckets: Sequence[int], part: np.ndarray | None = None
) -> Iterator[Batch]:
    """Every example once, sorted by length; put results back in order by each batch's `index` where weights are 1."""
    order = np.argsort(tokens.lengths, kind="stable")
    for start in range(0, len(order), batch_size):
        yield collate(tokens, order[start : start + batch_size], buckets, batch_size, part)
