"""Padded batches: length buckets chosen from the data, a seeded order that can resume at any batch.

This is the layout `padded`; `packing` has the default one. Each bucket costs one compilation, so there are few. Every
batch has the same number of rows. Rows of weight 0 fill up what an epoch or a split leaves over, so each example counts
exactly once.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence

import grain
import numpy as np

from svt_jax.data.tokens import Tokens

Batch = dict[str, np.ndarray]
"""input_ids, token_type_ids, attention_mask: int32[B, L]; labels [B]; weights float32[B]; index int32[B]. Packed batches
have other arrays of tokens: see `packed_rows.pack`."""


def tokens_of(batch: Batch) -> np.ndarray:
    """The ids of a batch of either layout."""
    return batch["input_ids" if "input_ids" in batch else "ids"]


MAX_BUCKETS = 8
"""The largest number of lengths of training batches, and so of compilations."""
_CHUNK = 50
_SAMPLED_EPOCHS = 4
_COMPILING = 1.5e9
"""The cost of compiling a program, as steps x tokens of a batch x hidden size squared, for any number of layers.

On two CPU cores the first run's compilation takes about 2e9; later runs find the program on disk.
"""


def choose_buckets(
    lengths: np.ndarray,
    max_buckets: int = 6,
    *,
    longest: int | None = None,
    multiple: int = 4,
    tolerance: float = 0.05,
) -> list[int]:
    """The lengths, multiples of `multiple`, that batches are padded to.

    Dynamic programming minimises the mean padded length. Each bucket is a compilation, so the result has the smallest
    number of buckets that pads to at most 1 + tolerance times what `max_buckets` would.

    Args:
      lengths: int[N], the length of each batch, which is that of its longest example.
      max_buckets: the largest number of buckets.
      longest: the largest bucket allowed, which is the model's number of positions.
      multiple: each bucket is a multiple of this.
      tolerance: the share of padding that fewer buckets may cost.

    Example:
      >>> import numpy as np
      >>> choose_buckets(np.array([5, 6, 7, 100]), max_buckets=2)
      [8, 100]
    """
    rounded = -(-np.asarray(lengths) // multiple) * multiple
    if longest is not None:
        rounded = np.minimum(rounded, longest)
    candidates, counts = np.unique(rounded, return_counts=True)
    cumulative = np.concatenate([[0.0], np.cumsum(counts) / len(rounded)])
    # cost[k][j]: least mean length over the candidates before j, with k buckets of which the last is candidate j-1
    n = len(candidates)
    cost = np.full((max_buckets + 1, n + 1), np.inf)
    cost[0, 0] = 0.0
    previous = np.zeros((max_buckets + 1, n + 1), int)
    for k in range(1, max_buckets + 1):
        for j in range(1, n + 1):
            options = cost[k - 1, :j] + candidates[j - 1] * (cumulative[j] - cumulative[:j])
            previous[k, j] = int(np.argmin(options))
            cost[k, j] = options[previous[k, j]]
    k, j = int(np.argmax(cost[:, n] <= (1.0 + tolerance) * cost[:, n].min())), n  # the first true one
    buckets: list[int] = []
    while j > 0:
        buckets.append(int(candidates[j - 1]))
        j, k = int(previous[k, j]), k - 1
    return buckets[::-1]


def collate(
    tokens: Tokens, rows: np.ndarray, buckets: Sequence[int], batch_size: int, part: np.ndarray | None = None
) -> Batch:
    """The batch of the given rows, filled up to batch_size with copies of the first row that weigh nothing.

    With `part`, tokens and labels hold only these rows: a process makes what its devices hold. Length, weights and
    index are still those of the whole batch.
    """
    real = len(rows)
    length = next(b for b in buckets if b >= tokens.lengths[rows].max())
    rows = np.concatenate([rows, np.full(batch_size - real, rows[0])])
    held = rows if part is None else rows[part]
    ids, types = tokens.padded(held, length)
    mask = (np.arange(length) < tokens.lengths[held, None]).astype(np.int32)
    labels = np.zeros(len(held), np.int32) if tokens.labels is None else tokens.labels[held]
    weights = (np.arange(batch_size) < real).astype(np.float32)
    return {
        "input_ids": ids,
        "token_type_ids": types,
        "attention_mask": mask,
        "labels": labels,
        "weights": weights,
        "index": rows.astype(np.int32),
    }


def epoch_batches(
    lengths: np.ndarray, batch_size: int, seed: int, epoch: int, *, group_by_length: bool
) -> list[np.ndarray]:
    """The rows of each batch of an epoch, every example once; one batch is smaller if they do not divide evenly.

    Grouping follows transformers' Trainer: shuffle, cut into chunks of about 50 batches, sort each chunk by length.
    Unlike there, the batches are then shuffled, so that long ones do not come together. The smaller batch holds
    examples of any length.

    Args:
      lengths: int[N], the examples' lengths.
      batch_size: rows of a batch.
      seed: decides the order.
      epoch: the epoch's number; each epoch has its own order.
      group_by_length: make batches of similar lengths, which need little padding.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths))
    if not group_by_length:
        return np.split(order, range(batch_size, len(order), batch_size))
    whole = len(order) // batch_size
    batches = [order[whole * batch_size :]] if len(order) % batch_size else []
    for chunk in np.array_split(order[: whole * batch_size].reshape(whole, batch_size), -(-whole // _CHUNK) or 1):
        rows = chunk.ravel()
        batches += list(rows[np.argsort(lengths[rows], kind="stable")].reshape(chunk.shape))
    return [batches[n] for n in rng.permutation(len(batches))]


def sorted_batches(lengths: np.ndarray, batch_size: int) -> list[np.ndarray]:
    """The rows of each batch in order of length. The first one is smaller: filling up short rows costs least."""
    order = np.argsort(lengths, kind="stable")
    return np.split(order, range(len(order) % batch_size or batch_size, len(order), batch_size))


def even_batch_size(number: int, batch_size: int, multiple: int) -> int:
    """The size, at most `batch_size`, at which the same number of batches has the fewest rows to fill up.

    Args:
      number: number of examples.
      batch_size: a multiple of `multiple`.
      multiple: the size is rounded up to a multiple of this.

    Example:
      >>> even_batch_size(277, 64, multiple=8)
      56
    """
    batches = -(-number // batch_size)
    return -(-number // (batches * multiple)) * multiple


def longest_of_each(lengths: np.ndarray, batches: Sequence[np.ndarray]) -> np.ndarray:
    """int[number of batches], the length of each batch's longest example, for `choose_buckets`."""
    return np.asarray([lengths[rows].max() for rows in batches])


def training_buckets(
    lengths: np.ndarray, batch_size: int, num_steps: int, hidden_size: int, *, group_by_length: bool, longest: int
) -> list[int]:
    """The best buckets for training batches; they do not depend on the run's seed.

    With fewer buckets, the run's steps would spend more on padding than compilation saves. A short run, or a run of a
    small model, compiles one program.
    """
    sampled = [
        longest_of_each(lengths, epoch_batches(lengths, batch_size, 0, epoch, group_by_length=group_by_length))
        for epoch in range(_SAMPLED_EPOCHS)
    ]
    batches = np.concatenate(sampled)
    tolerance = _COMPILING / (num_steps * batch_size * batches.mean() * hidden_size**2)
    return choose_buckets(batches, MAX_BUCKETS, longest=longest, multiple=2, tolerance=float(tolerance))


class TrainingBatches:
    """An endless stream of training batches, reshuffled each epoch.

    Batch number n is a pure function of the arguments and n. Reading can begin anywhere, and the number of devices or
    processes has no effect.

    Args:
      steps_per_epoch: number of batches in an epoch.
      order: epoch -> the examples of each of its batches.
      collate: the examples of a batch -> its arrays.
    """

    def __init__(
        self,
        steps_per_epoch: int,
        order: Callable[[int], Sequence[np.ndarray]],
        collate: Callable[[np.ndarray], Batch],
    ):
        batches = functools.lru_cache(maxsize=2)(order)

        def batch(number: int) -> Batch:
            epoch, place = divmod(number, steps_per_epoch)
            return collate(batches(epoch)[place])

        self._dataset = grain.MapDataset.range(2**62).map(batch)

    def from_batch(self, start: int) -> Iterator[Batch]:
        """Iterates from batch number `start`; a thread collates ahead."""
        iterator = self._dataset.to_iter_dataset(grain.ReadOptions(num_threads=1, prefetch_buffer_size=8)).__iter__()
        iterator.set_state({**iterator.get_state(), "next_index": start})
        return iterator
