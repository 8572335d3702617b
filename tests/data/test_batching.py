"""Batches: every example once, static shapes, a seeded order that can start anywhere."""

import functools
import itertools

import numpy as np
import pytest

from svt_jax.data.batching import (
    MAX_BUCKETS,
    TrainingBatches,
    choose_buckets,
    collate,
    epoch_batches,
    even_batch_size,
    longest_of_each,
    sorted_batches,
    training_buckets,
)
from svt_jax.data.tokens import Tokens


def tokens(n=103, longest=40, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, longest + 1, n).astype(np.int32)
    ids = rng.integers(5, 99, (n, longest)).astype(np.int32)
    ids[np.arange(longest) >= lengths[:, None]] = 7  # this tokenizer's padding is not zero
    return Tokens.of_padded(ids, ids % 2, lengths, rng.integers(0, 2, n).astype(np.int32), pad_id=7)


DATA = tokens()
BUCKETS = [16, 24, 40]


GROUPED = pytest.mark.parametrize("grouped", [False, True])


def batches(start=0, count=20, batch_size=16, seed=0, grouped=True):
    return list(itertools.islice(stream(DATA, batch_size, seed, BUCKETS, grouped).from_batch(start), count))


def stream(data, batch_size, seed, buckets, grouped):
    order = functools.partial(epoch_batches, data.lengths, batch_size, seed, group_by_length=grouped)
    make = functools.partial(collate, data, buckets=buckets, batch_size=batch_size)
    return TrainingBatches(-(-len(data) // batch_size), order, make)


def rows(batch):
    return batch["index"][batch["weights"] > 0].tolist()


@GROUPED
def test_an_epoch_holds_each_example_once_and_epochs_differ(grouped):
    two = batches(count=14, grouped=grouped)
    first, second = (list(itertools.chain(*map(rows, part))) for part in (two[:7], two[7:]))
    assert sorted(first) == sorted(second) == list(range(103))
    assert first != second
    assert {b["input_ids"].shape[0] for b in two} == {16}
    assert sorted(len(rows(b)) for b in two[:7]) == [7, *[16] * 6]


@GROUPED
def test_reading_can_begin_at_any_batch(grouped):
    whole = batches(count=15, grouped=grouped)
    for start in (0, 6, 7, 9):  # in the first and the second epoch, and where they meet
        for batch, expected in zip(batches(start, count=5, grouped=grouped), whole[start:], strict=False):
            assert all(np.array_equal(batch[name], expected[name]) for name in expected)


@GROUPED
def test_the_order_depends_on_the_seed_alone(grouped):
    assert [rows(b) for b in batches(grouped=grouped)] == [rows(b) for b in batches(grouped=grouped)]
    assert [rows(b) for b in batches(grouped=grouped)] != [rows(b) for b in batches(seed=1, grouped=grouped)]


@pytest.mark.parametrize(
    ("grouped", "expected"),
    [(False, [[9, 0, 8], [6, 7, 1], [3, 4, 2], [5]]), (True, [[0, 7, 1], [4, 9, 3], [5], [8, 6, 2]])],
)
def test_the_order_is_the_same_on_every_machine(grouped, expected):
    lengths = np.array([3, 4, 30, 20, 4, 5, 30, 3, 30, 20])
    assert [b.tolist() for b in epoch_batches(lengths, 3, 7, 1, group_by_length=grouped)] == expected


@pytest.mark.parametrize("number", [1, 15, 16, 17, 799, 800, 801, 5000])
def test_grouping_keeps_every_example_whatever_their_number(number):
    lengths = np.random.default_rng(0).integers(3, 99, number)
    grouped = epoch_batches(lengths, 16, 0, 0, group_by_length=True)
    assert len(grouped) == -(-number // 16)
    assert sorted(np.concatenate(grouped)) == list(range(number))


def test_grouped_batches_are_of_like_length_and_come_in_random_order():
    lengths = np.random.default_rng(0).integers(8, 129, 16 * 200 + 5)
    chosen = epoch_batches(lengths, 16, 0, 0, group_by_length=True)
    spread = [np.ptp(lengths[rows]) for rows in chosen if len(rows) == 16]
    assert np.mean(spread) < 5  # the whole range is 121; a random batch spans 107
    means = np.array([lengths[rows].mean() for rows in chosen])
    assert abs(np.corrcoef(means[:-1], means[1:])[0, 1]) < 0.2
    # the smaller batch is like the others: in it, the longest examples would weigh more
    left_over = [
        lengths[r].mean()
        for e in range(40)
        for r in epoch_batches(lengths, 16, 0, e, group_by_length=True)
        if len(r) == 5
    ]
    assert abs(np.mean(left_over) - lengths.mean()) < 3 * lengths.std() / np.sqrt(5 * 40)


def test_batches_hold_the_right_tokens_padded_to_a_bucket():
    for batch in batches():
        length = batch["input_ids"].shape[1]
        longest = DATA.lengths[rows(batch)].max()
        assert length == min(b for b in BUCKETS if b >= longest)
        for row, (index, weight) in enumerate(zip(batch["index"], batch["weights"], strict=True)):
            n = DATA.lengths[index]
            assert np.array_equal(batch["input_ids"][row, :n], DATA.ids[index, :n])
            assert np.all(batch["input_ids"][row, n:] == 7)
            assert batch["attention_mask"][row].sum() == n
            if weight:
                assert batch["labels"][row] == DATA.labels[index]


@pytest.mark.parametrize("batch_size", [1, 10, 64, 200])
def test_evaluation_counts_each_example_once_whatever_the_batch_size(batch_size):
    made = [collate(DATA, each, BUCKETS, batch_size) for each in sorted_batches(DATA.lengths, batch_size)]
    assert sorted(itertools.chain(*map(rows, made))) == list(range(103))


def test_the_batch_that_is_filled_up_is_the_shortest():
    first, *rest = sorted_batches(DATA.lengths, 10)
    assert (len(first), {len(rows) for rows in rest}) == (3, {10})
    assert DATA.lengths[first].max() == np.sort(DATA.lengths)[2]
    assert [len(rows) for rows in sorted_batches(DATA.lengths[:20], 10)] == [10, 10]


@pytest.mark.parametrize("number", [1, 8, 63, 64, 65, 277, 1043])
def test_even_batches_are_as_few_and_have_less_to_fill_up(number):
    size = even_batch_size(number, 64, multiple=8)
    count = -(-number // 64)
    assert size <= 64
    assert size % 8 == 0
    assert count * (size - 8) < number <= count * size


def padded_length(buckets, lengths):
    return np.asarray(buckets)[np.searchsorted(buckets, lengths)].mean()


def test_buckets_are_the_best_of_their_number():
    lengths = np.random.default_rng(0).geometric(0.06, 400).clip(3, 64)
    chosen = choose_buckets(lengths, max_buckets=3, multiple=8, tolerance=0.0)
    top = int(-(-lengths.max() // 8) * 8)
    others = [sorted({*pair, top}) for pair in itertools.combinations(range(8, top, 8), 2)]
    assert len(chosen) == 3
    assert padded_length(chosen, lengths) == min(padded_length(buckets, lengths) for buckets in others)


def test_a_bucket_must_be_worth_its_compilation():
    lengths = np.random.default_rng(0).geometric(0.2, 400).clip(3, 128)
    cost = {n: padded_length(choose_buckets(lengths, n, tolerance=0.0), lengths) for n in range(1, 7)}
    cost = {n: padded / cost[6] for n, padded in cost.items()}
    assert len(choose_buckets(lengths, max_buckets=6)) == min(n for n in cost if cost[n] <= 1.05) < 6


def test_a_long_run_of_a_large_model_has_more_buckets():
    lengths = np.random.default_rng(0).geometric(0.2, 400).clip(3, 128)

    def number(steps, hidden_size):
        return len(training_buckets(lengths, 8, steps, hidden_size, group_by_length=True, longest=128))

    longer = [number(steps, 384) for steps in (1, 100, 1_000, 10_000, 100_000)]
    assert longer == sorted(longer)
    assert longer[0] == 1 < longer[2] < longer[-1] == MAX_BUCKETS
    assert number(4_000, 192) == number(1_000, 384) == number(250, 768)


@GROUPED
def test_training_batches_of_every_epoch_and_seed_fit_the_few_buckets(grouped):
    lengths = np.random.default_rng(0).geometric(0.03, 900).clip(3, 200)
    buckets = training_buckets(lengths, 8, 400, 768, group_by_length=grouped, longest=300)
    assert len(buckets) <= MAX_BUCKETS
    assert buckets[-1] == -(-lengths.max() // 2) * 2
    data = Tokens.of_padded(np.ones((900, 200), np.int32), np.zeros((900, 200), np.int32), lengths, None, 0)
    made = itertools.islice(stream(data, 8, 5, buckets, grouped).from_batch(113 * 3), 113)
    assert {b["input_ids"].shape for b in made} <= {(8, length) for length in buckets}


def test_grouping_saves_padding():
    lengths = np.random.default_rng(0).geometric(0.05, 3000).clip(3, 128)
    padded = {
        grouped: padded_length(
            training_buckets(lengths, 32, 300, 768, group_by_length=grouped, longest=128),
            longest_of_each(lengths, epoch_batches(lengths, 32, 9, 0, group_by_length=grouped)),
        )
        for grouped in (False, True)
    }
    assert padded[True] < 1.5 * lengths.mean()
    assert padded[False] > 3.5 * lengths.mean()


def test_no_bucket_is_longer_than_the_model():
    assert choose_buckets(np.array([3, 21]), longest=21) == [4, 21]


def test_one_length_needs_one_bucket():
    assert choose_buckets(np.full(10, 11)) == [12]
