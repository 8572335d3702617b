"""Packed rows: several examples share a row, so every batch of a run has one shape and next to no padding.

A batch is random. It has `parts` x `examples` examples, where a part is a group of rows that stays on one device, in
one micro-batch. Where the examples of a batch do not fit its rows, the longest changes places with the next shorter
one of the epoch's order, until they fit. So each example still counts once an epoch, and the order is a pure function of
(lengths, seed, epoch).
"""

from __future__ import annotations

import bisect
import dataclasses
import itertools
import math
from collections.abc import Sequence

import numpy as np

_MULTIPLE = 8
"""Rows, and token matrices, have a multiple of this many tokens."""
_EXCHANGED = 0.08
"""The largest share of an epoch's examples that may change places."""
_PADDING = 0.08
"""A shape with at most this share of padding is taken before all others, where there is one."""
_LEAST_PADDING = 0.03
"""With less, the last batches of an epoch would find no room for what the others have passed on."""
_TRIED = 200
"""Examples of the order that are tried for an exchange."""
_SAMPLED = 3200
"""Random examples on which shapes are tried."""
_EARLY = 16
"""Batches by which exchanges may come early."""
_ATTENTION = 1.0 / 800
"""What each token of a row's length adds to the cost of a token, as a share of its cost in an endlessly short row. A step
of 2048 tokens through 6 layers of 384 takes 1.07 times as long with rows of 128 as with rows of 64, and 1.32 times with
rows of 256 (two CPU cores, medians of 12 in turns)."""


@dataclasses.dataclass(frozen=True)
class Shape:
    """The shape of every batch of a run.

    Attributes:
      rows: rows of a part.
      row_length: tokens of a row.
      examples: the largest number of examples of a part.
      longest: tokens of the longest example, rounded up: the rows of a token matrix.
      shortest: tokens of the shortest example.
      groups: parts of a micro-batch, each on one device.
      accumulate: micro-batches of a batch.
    """

    rows: int
    row_length: int
    examples: int
    longest: int
    shortest: int = 1
    groups: int = 1
    accumulate: int = 1

    @property
    def parts(self) -> int:
        """Number of parts of a batch."""
        return self.groups * self.accumulate

    @property
    def slots(self) -> int:
        """Number of tokens, real or not, of a batch."""
        return self.parts * self.rows * self.row_length

    @property
    def cost(self) -> float:
        """What a step costs, in tokens of short rows."""
        return self.slots * (1.0 + self.row_length * _ATTENTION)

    @property
    def static(self) -> dict[str, int]:
        """What `models.packed.read_batch` must know beside the arrays of a batch."""
        per_row = min(self.examples, self.row_length // self.shortest)
        return {"longest": self.longest, "per_row": per_row, "groups": self.groups}


@dataclasses.dataclass(frozen=True)
class Places:
    """Where the examples of a batch lie.

    Attributes:
      part: int[n], each example's part.
      row: int[n], its row in the part.
      start: int[n], its first token's place in the row.
    """

    part: np.ndarray
    row: np.ndarray
    start: np.ndarray


def place(lengths: np.ndarray, shape: Shape) -> Places | None:
    """Lays the examples of a batch into its rows; None where they do not fit.

    The longest example comes first, each into the fullest row that still has room (best fit decreasing), in a part that
    takes another example. The parts are filled evenly.

    Args:
      lengths: int[n] tokens of each example.

    Example:
      >>> import numpy as np
      >>> found = place(np.array([5, 3, 6, 2]), Shape(rows=2, row_length=8, examples=4, longest=8))
      >>> found.row.tolist(), found.start.tolist()
      ([1, 1, 0, 0], [0, 5, 0, 6])
    """
    n, parts, size = len(lengths), shape.parts, shape.row_length
    if n > parts * shape.examples or lengths.sum() > shape.slots:
        return None
    order = np.argsort(-lengths, kind="stable")
    free = [[(size, row) for row in range(shape.rows)] for _ in range(parts)]  # room of each row, ascending
    room, taken = [size * shape.rows] * parts, [0] * parts
    found: list[tuple[int, int, int]] = []
    for length in lengths[order].tolist():
        # The emptiest part that has a row for it. Within a part, the row that it fills best.
        for part in sorted(range(parts), key=lambda p: -room[p]) if parts > 1 else (0,):
            rows = free[part]
            if taken[part] < shape.examples and length <= rows[-1][0]:
                break
        else:
            return None
        left, row = rows.pop(bisect.bisect_left(rows, (length, -1)))
        bisect.insort(rows, (left - length, row))
        found.append((part, row, size - left))
        room[part] -= length
        taken[part] += 1
    places = np.empty((3, n), np.int32)
    places[:, order] = np.asarray(found, np.int32).reshape(n, 3).T
    return Places(*places)


def random_batches(lengths: np.ndarray, shape: Shape, seed: int, epoch: int) -> list[np.ndarray]:
    """The examples of each batch of an epoch: random, each once, and each batch fits `shape`.

    All batches but the last have as many examples as `shape` takes. The result depends only on the arguments.

    Raises:
      ValueError: if the shape is too small for the examples.
    """
    rng = np.random.default_rng((seed, epoch))
    order = rng.permutation(len(lengths)).astype(np.int32)  # half the memory
    found = _exchanged(lengths, shape, order)
    if found is not None:
        return found[0]
    even = even_batches(lengths[order], shape, _number_of(lengths, shape))  # rare: see `_LEAST_PADDING`
    return [order[even[n]] for n in rng.permutation(len(even))]


def _exchanged(
    lengths: np.ndarray, shape: Shape, order: np.ndarray, most: float = math.inf
) -> tuple[list[np.ndarray], int] | None:
    """The batches of an order, and how many examples changed places; None where their share would exceed `most`."""
    size, order = shape.parts * shape.examples, order.copy()
    batches = [order[start : start + size] for start in range(0, len(order), size)]  # views: an exchange writes through
    exchanged = 0
    for number, batch in enumerate(batches):
        while place(lengths[batch], shape) is None:
            longest = int(np.argmax(lengths[batch]))
            if exchanged > most * size * (number + _EARLY) or not _exchange(
                lengths, shape, order, batches, number, number * size + longest
            ):
                return None
            exchanged += 1
    return batches, exchanged


def _exchange(
    lengths: np.ndarray, shape: Shape, order: np.ndarray, batches: Sequence[np.ndarray], number: int, here: int
) -> bool:
    """Puts the next shorter example of the order in place `here`, behind the batch or else from the order's start.

    Batches before this one are done, so they must still fit.
    """
    end = number * len(batches[0]) + len(batches[number])
    begin = number * len(batches[0])
    longest = lengths[order[here]]
    tried = itertools.chain(range(end, len(order)), range(begin))
    for there in itertools.islice(tried, _TRIED):
        if lengths[order[there]] < longest:
            order[[here, there]] = order[[there, here]]
            if there >= end or place(lengths[batches[there // len(batches[0])]], shape) is not None:
                return True
            order[[here, there]] = order[[there, here]]
    return False


def even_batches(lengths: np.ndarray, shape: Shape, number: int) -> list[np.ndarray]:
    """`dealt_evenly`, where each batch fits the shape.

    Raises:
      ValueError: if one does not.
    """
    batches = dealt_evenly(lengths, number)
    for batch in batches:
        if place(lengths[batch], shape) is None:
            raise ValueError(
                f"{len(batch)} examples of {int(lengths[batch].sum())} tokens do not fit {shape.parts * shape.rows} rows of "
                f"{shape.row_length} (data.rows, data.row_length). Choose more of them, or auto."
            )
    return batches


def dealt_evenly(lengths: np.ndarray, number: int) -> list[np.ndarray]:
    """Deals the examples, sorted by length, to `number` batches there and back, so that all have about the same tokens.

    Example:
      >>> import numpy as np
      >>> [batch.tolist() for batch in dealt_evenly(np.array([9, 8, 7, 6, 5]), 2)]
      [[0, 3, 4], [1, 2]]
    """
    order = np.argsort(-lengths, kind="stable").astype(np.int32)
    turns = math.ceil(len(order) / number)
    dealt = np.full((turns, number), -1, np.int32)
    dealt.flat[: len(order)] = order
    dealt[1::2] = dealt[1::2, ::-1].copy()
    return [batch[batch >= 0] for batch in np.ascontiguousarray(dealt.T)]


def choose_shape(
    lengths: np.ndarray,
    examples: int,
    *,
    groups: int = 1,
    accumulate: int = 1,
    row_length: int | None = None,
    rows: int | None = None,
) -> Shape:
    """Chooses the rows of a run's random batches; the choice does not depend on the run's seed.

    For each length of a row it takes the fewest rows with which at most `_EXCHANGED` of the examples change places. Of
    these shapes it takes the one whose step costs least, among those with little padding if there are any.

    Args:
      lengths: int[N] tokens of each example.
      examples: examples of a micro-batch, a multiple of `groups`.
      groups, accumulate: see `Shape`.
      row_length, rows: values that the user has set; rows are those of a micro-batch.
    Raises:
      ValueError: if these values do not fit the examples.
    """
    first = _first_shape(lengths, examples, groups, accumulate, row_length, rows)
    number = _number_of(lengths, first)
    size = first.parts * first.examples
    sample = lengths[np.random.default_rng(0).permutation(len(lengths))[: max(_SAMPLED, 8 * size)]]
    tokens = float(sample.mean()) * min(size, len(sample))
    room = tokens / (1.0 - _LEAST_PADDING) if np.ptp(lengths) else tokens
    even = dealt_evenly(lengths, number)  # what `random_batches` falls back on
    different = _different(lengths, even)
    found: list[tuple[tuple[bool, float], Shape]] = []
    for width in [row_length] if row_length else _row_lengths(first, tokens):
        shape = dataclasses.replace(first, row_length=width)
        if rows is None:
            shape = dataclasses.replace(shape, rows=math.ceil(room / (shape.parts * width)))
            shape, exchanged = _fewest_rows(sample, _with_room(lengths, shape, even[:: max(1, number // 8)]))
        else:
            shape, exchanged = dataclasses.replace(shape, rows=rows // groups), 0.0
        padding = 1.0 - float(lengths.sum()) / (number * shape.slots)
        too_much = max(0.0, padding - _PADDING)
        found.append(((too_much > 0, shape.cost * (1.0 + exchanged + 3.0 * too_much)), shape))
    for _, shape in sorted(found, key=lambda each: each[0]):
        if all(place(each, shape) is not None for each in different):
            return shape
    if rows is not None:
        even_batches(lengths, shape, number)  # raises, and says what does not fit
    return _with_room(lengths, shape, even)


def choose_even_shape(lengths: np.ndarray, examples: int, *, groups: int = 1) -> tuple[Shape, list[np.ndarray]]:
    """Chooses the rows of `even_batches`, as evaluation uses them, and returns these too.

    Args:
      examples: the largest number of examples of a batch, a multiple of `groups`.
    """
    number = math.ceil(len(lengths) / examples)
    first = _first_shape(lengths, math.ceil(len(lengths) / (number * groups)) * groups, groups, 1, None, None)
    batches = dealt_evenly(lengths, number)
    tokens = max(float(lengths[batch].sum()) for batch in batches)
    found = []
    for size in _row_lengths(first, tokens):
        shape = dataclasses.replace(first, row_length=size, rows=max(1, math.ceil(tokens / (groups * size))))
        found.append(_with_room(lengths, shape, batches[:: max(1, number // 8)]))
    return _with_room(lengths, min(found, key=lambda each: each.cost), batches), batches


def _different(lengths: np.ndarray, batches: Sequence[np.ndarray]) -> list[np.ndarray]:
    """The different lengths that evenly dealt batches have, in order: of a large set, many batches have the same."""
    found = dict.fromkeys(lengths[batch].tobytes() for batch in batches)
    return [np.frombuffer(each, lengths.dtype) for each in found]


def _with_room(lengths: np.ndarray, shape: Shape, batches: Sequence[np.ndarray]) -> Shape:
    while any(place(lengths[batch], shape) is None for batch in batches):
        shape = dataclasses.replace(shape, rows=shape.rows + 1)
    return shape


def _first_shape(
    lengths: np.ndarray, examples: int, groups: int, accumulate: int, row_length: int | None, rows: int | None
) -> Shape:
    """A shape of one row, with what does not depend on the rows."""
    longest = int(lengths.max())
    problems = []
    if examples % groups:
        problems.append(f"data.groups is {groups}; it must divide the batch of {examples} examples.")
    if row_length is not None and row_length < longest:
        problems.append(
            f"data.row_length is {row_length} and the longest example has {longest} tokens; a row must hold it."
        )
    if rows is not None and rows % groups:
        problems.append(f"data.rows is {rows}; it must be a multiple of data.groups, {groups}.")
    if problems:
        raise ValueError(f"{' '.join(problems)} Correct the config, or use auto.")
    size = row_length or _rounded(longest)
    return Shape(1, size, examples // groups, _rounded(longest), max(1, int(lengths.min())), groups, accumulate)


def _row_lengths(shape: Shape, tokens: float) -> list[int]:
    """Lengths of a row that are worth trying, for batches of this many tokens."""
    longest = max(shape.longest, min(2 * max(shape.longest, 64) + 8, math.ceil(tokens / shape.parts * 1.5)))
    return list(range(shape.longest, _rounded(longest) + 1, _MULTIPLE))


def _rounded(length: int) -> int:
    return math.ceil(length / _MULTIPLE) * _MULTIPLE


def _number_of(lengths: np.ndarray, shape: Shape) -> int:
    return math.ceil(len(lengths) / (shape.parts * shape.examples))


def _fewest_rows(sample: np.ndarray, shape: Shape) -> tuple[Shape, float]:
    """The fewest rows, from the shape's own, with which few examples of a sample change places; the share that does."""
    order = np.arange(len(sample))
    while (found := _exchanged(sample, shape, order, _EXCHANGED)) is None:
        shape = dataclasses.replace(shape, rows=shape.rows + 1)
    return shape, found[1] / len(sample)
