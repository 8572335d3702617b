"""Batches: every example once, static shapes, a seeded order that can be entered anywhere."""

import itertools

import numpy as np
import pytest

from svt_jax.data.batching import TrainingBatches, choose_buckets, evaluation_batches
from svt_jax.data.tokenizer import Tokens


def tokens(n=103, longest=40, seed=0):
    rng = np.random.default_rng(seed)
    lengths = rng.integers(3, longest + 1, n).astype(np.int32)
    ids = rng.integers(5, 99, (n, longest)).astype(np.int32)
    ids[np.arange(longest) >= lengths[:, None]] = 7  # this tokenizer's padding is not zero
    return Tokens(ids, ids % 2, lengths, rng.integers(0, 2, n).astype(np.int32), pad_id=7)


DATA = tokens()
BUCKETS = [16, 24, 40]


def batches(start=0, count=20, batch_size=16, seed=0):
    stream = TrainingBatches(DATA, batch_size, seed, BUCKETS).from_batch(start)
    return list(itertools.islice(stream, count))


def rows(batch):
    return batch["index"][batch["weights"] > 0].tolist()


def test_an_epoch_holds_each_example_once_and_epochs_differ():
    two = batches(count=14)
    first, second = (list(itertools.chain(*map(rows, part))) for part in (two[:7], two[7:]))
    assert sorted(first) == sorted(second) == list(range(103))
    assert first != second
    assert {b["input_ids"].shape[0] for b in two} == {16}


def test_reading_can_begin_at_any_batch():
    for batch, expected in zip(batches(start=9, count=6), batches(count=15)[9:], strict=True):
        assert all(np.array_equal(batch[name], expected[name]) for name in expected)


def test_the_order_depends_on_the_seed_alone():
    assert [rows(b) for b in batches()] == [rows(b) for b in batches()]
    assert [rows(b) for b in batches()] != [rows(b) for b in batches(seed=1)]


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
    counted = list(itertools.chain(*map(rows, evaluation_batches(DATA, batch_size, BUCKETS))))
    assert sorted(counted) == list(range(103))


def expected_length(buckets, lengths, batch_size):
    draws = np.random.default_rng(0).choice(lengths, (20000, batch_size)).max(1)
    return np.asarray(buckets)[np.searchsorted(buckets, draws)].mean()


@pytest.mark.parametrize("batch_size", [1, 8])
def test_buckets_are_the_best_of_their_number(batch_size):
    lengths = np.random.default_rng(0).geometric(0.06, 400).clip(3, 64)
    chosen = choose_buckets(lengths, batch_size, max_buckets=3)
    top = int(-(-lengths.max() // 8) * 8)
    others = [sorted({*pair, top}) for pair in itertools.combinations(range(8, top, 8), 2)]
    best = min(others, key=lambda b: expected_length(b, lengths, batch_size))
    assert len(chosen) <= 3
    assert chosen[-1] == top
    assert expected_length(chosen, lengths, batch_size) <= expected_length(best, lengths, batch_size) * 1.01


def test_no_bucket_is_longer_than_the_model():
    assert choose_buckets(np.array([3, 20]), 1, longest=20) == [8, 20]


def test_one_length_needs_one_bucket():
    assert choose_buckets(np.full(10, 12), 4) == [16]
