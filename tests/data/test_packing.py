"""Packed batches: random, every example once, all of one shape, whatever the number of devices."""

import dataclasses
import itertools

import numpy as np
import pytest

from svt_jax.data.batching import TrainingBatches
from svt_jax.data.packed_rows import pack
from svt_jax.data.packing import (
    Shape,
    choose_even_shape,
    choose_shape,
    dealt_evenly,
    place,
    random_batches,
)
from svt_jax.data.tokens import Tokens

RNG = np.random.default_rng(0)
LENGTHS = RNG.geometric(0.08, 1003).clip(3, 60).astype(np.int32)
IDS = RNG.integers(5, 99, (1003, 60)).astype(np.int32)
DATA = Tokens.of_padded(IDS, IDS % 2, LENGTHS, RNG.integers(0, 2, 1003).astype(np.int32), pad_id=7)
SHAPES = {
    f"{groups} groups, {accumulate} micro-batches": choose_shape(LENGTHS, 32, groups=groups, accumulate=accumulate)
    for groups, accumulate in ((1, 1), (4, 1), (2, 4))
}
EACH = pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)


def padding(lengths, shape):
    return 1 - lengths.sum() / (len(random_batches(lengths, shape, 0, 0)) * shape.slots)


@EACH
def test_an_epoch_holds_each_example_once_and_all_batches_but_the_last_are_whole(shape):
    size = shape.parts * shape.examples
    batches = random_batches(LENGTHS, shape, 3, 1)
    assert sorted(np.concatenate(batches)) == list(range(1003))
    assert [len(batch) for batch in batches] == [size] * (1003 // size) + [1003 % size]
    assert all(place(LENGTHS[batch], shape) is not None for batch in batches)
    assert not np.array_equal(batches[0], random_batches(LENGTHS, shape, 3, 2)[0])
    assert not np.array_equal(batches[0], random_batches(LENGTHS, shape, 4, 1)[0])


def test_few_examples_change_places_and_the_rest_is_a_plain_shuffle():
    shape = SHAPES["1 groups, 1 micro-batches"]
    order = np.random.default_rng((0, 0)).permutation(1003)
    moved = np.concatenate(random_batches(LENGTHS, shape, 0, 0)) != order
    assert 0 < moved.mean() < 0.2
    first = [LENGTHS[random_batches(LENGTHS, shape, 0, epoch)[0]].mean() for epoch in range(60)]
    assert abs(np.mean(first) - LENGTHS.mean()) < 3 * LENGTHS.std() / np.sqrt(32 * 60)


def test_the_order_is_the_same_on_every_machine():
    lengths = np.array([3, 4, 9, 8, 4, 5, 9, 3, 9, 8])
    shape = Shape(rows=2, row_length=11, examples=3, longest=16)
    # the shuffle is 9 0 8 6 7 1 3 4 2 5; of 3 4 2, with 8, 4 and 9 tokens, the longest changes places with the next
    assert [batch.tolist() for batch in random_batches(lengths, shape, 7, 1)] == [[9, 0, 8], [6, 7, 1], [3, 4, 5], [2]]


def test_a_batch_that_cannot_be_random_is_dealt_evenly_and_still_holds_each_once():
    lengths = np.array([10, 10, 10, 2, 2, 2])  # two long ones never fit
    shape = Shape(rows=1, row_length=14, examples=2, longest=16)
    batches = random_batches(lengths, shape, 0, 0)
    assert sorted(np.concatenate(batches)) == list(range(6))
    assert sorted(lengths[batch].sum() for batch in batches) == [12, 12, 12]


def test_one_length_needs_no_padding_and_no_exchange():
    lengths = np.full(640, 16)
    shape = choose_shape(lengths, 32)
    assert padding(lengths, shape) == 0.0
    order = np.random.default_rng((0, 0)).permutation(640)
    assert np.array_equal(np.concatenate(random_batches(lengths, shape, 0, 0)), order)


@pytest.mark.parametrize("mean", [12, 30, 60])
def test_random_batches_of_thirty_two_have_at_most_a_twelfth_of_padding(mean):
    lengths = np.random.default_rng(mean).normal(mean, 0.4 * mean, 2048).clip(4, 128).astype(int)
    shape = choose_shape(lengths, 32)
    assert 0.0 < padding(lengths, shape) <= 1 / 12
    assert choose_shape(np.random.default_rng(1).permutation(lengths), 32).slots == pytest.approx(shape.slots, rel=0.05)


@pytest.mark.parametrize("batch_size", [1, 10, 64, 2000])
def test_evaluation_holds_each_example_once_with_little_padding(batch_size):
    shape, batches = choose_even_shape(LENGTHS, batch_size)
    assert sorted(np.concatenate(batches)) == list(range(1003))
    assert max(map(len, batches)) <= min(batch_size, 1003)
    assert all(place(LENGTHS[batch], shape) is not None for batch in batches)
    if batch_size >= 64:
        assert 1 - LENGTHS.sum() / (len(batches) * shape.slots) < 0.06


def test_even_batches_have_the_same_tokens():
    totals = [LENGTHS[batch].sum() for batch in dealt_evenly(LENGTHS, 20)]
    assert max(totals) - min(totals) <= LENGTHS.max()


@EACH
def test_a_batch_holds_the_right_tokens(shape):
    batch = pack(DATA, random_batches(LENGTHS, shape, 0, 0)[2], shape)
    rows = shape.parts * shape.rows
    assert {batch[n].shape for n in ("ids", "token_types", "segment", "position")} == {(rows, shape.row_length)}
    assert {batch[n].shape for n in ("row", "start", "length", "number", "labels", "index", "weights")} == {
        (shape.parts * shape.examples,)
    }
    seen = np.zeros((rows, shape.row_length), bool)
    for slot, (index, weight) in enumerate(zip(batch["index"], batch["weights"], strict=True)):
        part, number = divmod(slot, shape.examples)
        row, start, length = part * shape.rows + batch["row"][slot], batch["start"][slot], batch["length"][slot]
        assert length == (LENGTHS[index] if weight else 0)
        there = row, slice(start, start + length)
        assert np.array_equal(batch["ids"][there], IDS[index, :length])
        assert np.array_equal(batch["token_types"][there], IDS[index, :length] % 2)
        assert np.array_equal(batch["position"][there], np.arange(length))
        assert np.all(batch["segment"][there] == number + 1)
        assert not seen[there].any()
        seen[there] = True
        if weight:
            assert batch["labels"][slot] == DATA.labels[index]
            begins = (batch["position"][row, :start] == 0) & (batch["segment"][row, :start] > 0)
            assert batch["number"][slot] == begins.sum() < shape.static["per_row"]
    assert np.array_equal(batch["segment"] > 0, seen)
    assert np.all(batch["ids"][~seen] == 7)


def test_a_process_makes_the_parts_that_its_devices_hold():
    shape = SHAPES["2 groups, 4 micro-batches"]
    rows = random_batches(LENGTHS, shape, 0, 0)[0]
    whole, half = pack(DATA, rows, shape), pack(DATA, rows, shape, np.arange(4, 8))
    for name in ("ids", "segment", "row", "labels"):
        assert np.array_equal(half[name], whole[name][len(whole[name]) // 2 :])
    for name in ("weights", "index"):  # counted by each process
        assert np.array_equal(half[name], whole[name])


def test_reading_can_begin_at_any_batch():
    shape = SHAPES["1 groups, 1 micro-batches"]

    def batches(start, count):
        stream = TrainingBatches(
            32, lambda epoch: random_batches(LENGTHS, shape, 0, epoch), lambda rows: pack(DATA, rows, shape)
        )
        return list(itertools.islice(stream.from_batch(start), count))

    whole = batches(28, 10)
    for start in (31, 32, 35):  # in the first epoch and the second, and where they meet
        for batch, expected in zip(batches(start, 2), whole[start - 28 :], strict=False):
            assert all(np.array_equal(batch[name], expected[name]) for name in expected)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"row_length": 40}, "data.row_length is 40 and the longest example has 60 tokens"),
        ({"groups": 3}, "data.groups is 3; it must divide the batch of 32 examples"),
        ({"groups": 4, "rows": 6}, "data.rows is 6; it must be a multiple of data.groups, 4"),
        ({"rows": 3, "row_length": 64}, "do not fit 3 rows of 64"),
    ],
)
def test_rows_that_do_not_fit_are_refused(settings, words):
    with pytest.raises(ValueError, match=words):
        choose_shape(LENGTHS, 32, **settings)


def test_the_user_s_rows_are_used():
    shape = choose_shape(LENGTHS, 32, rows=10, row_length=96)
    assert dataclasses.astuple(shape)[:3] == (10, 96, 32)
