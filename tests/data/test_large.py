"""Large tables and splits: read, tokenised and mapped in blocks, with the same examples, tokens and hashes."""

import errno
import logging
import tempfile

import numpy as np
import pytest

from svt_jax.data import stored_texts, table_rows, token_cache, tokenizer
from svt_jax.data.custom import custom_task, find_classes, load_custom
from svt_jax.data.demo import load_demo
from svt_jax.data.glue import TASKS, load_examples
from svt_jax.data.packed_rows import pack
from svt_jax.data.packing import choose_shape, dealt_evenly, random_batches
from svt_jax.data.stored_texts import StoredTexts
from svt_jax.data.tables import Table, read_columns
from svt_jax.data.token_cache import cached_tokens
from svt_jax.data.tokenizer import demo_tokenizer, tokenize
from svt_jax.data.tokens import Tokens, hash_tokens

DEMO = load_demo("validation")
NUMBER = 400


@pytest.fixture
def small(monkeypatch, tmp_path):
    """Makes every limit so small that 400 rows are many."""
    monkeypatch.setenv("SVT_JAX_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(table_rows, "BLOCK_BYTES", 1000)
    monkeypatch.setattr(stored_texts, "KEPT_BYTES", 0)
    for module in (tokenizer, token_cache):
        monkeypatch.setattr(module, "BLOCK", 70)
    monkeypatch.setattr(token_cache, "LARGE", 100)
    monkeypatch.setattr(token_cache, "_MAPPED", 0)
    return tmp_path


def rows(kind):
    """A file with texts of several lines where the format allows them, and letters of several bytes."""
    texts = [(f"{DEMO.first[n]} é{n}", DEMO.second[n], n % 2) for n in range(NUMBER)]
    if kind == ".tsv":
        return "a\tb\tlabel\n" + "".join(f"{a}\t{b}\t{label}\n" for a, b, label in texts)
    if kind == ".csv":
        return "\ufeffa,b,label\r\n" + "".join(f'"{a}\n""x""",{b},{label}\r\n\r\n' for a, b, label in texts)
    return "".join(f'{{"a": "{a}", "b": "{b}", "label": {label}}}\n\n' for a, b, label in texts)


@pytest.mark.parametrize("kind", [".tsv", ".csv", ".jsonl"])
def test_texts_that_stay_on_disk_are_those_of_the_whole_file(small, kind):
    path = small / f"train{kind}"
    path.write_text(rows(kind), encoding="utf-8", newline="")
    whole = read_columns(path, ["a", "b"])
    assert len(list(Table(path, ["a"]).blocks())) > 10
    examples = load_custom(custom_task(["a", "b"], "label", find_classes(str(small), "label")), str(small), "train")
    assert not isinstance(examples.first, list)
    assert len(examples) == NUMBER
    assert [*examples.first] == whole.values["a"]
    assert examples.second[:] == whole.values["b"]
    for start, stop in ((0, 1), (17, 18), (5, 203), (390, 1000), (7, 7)):
        assert examples.first[start:stop] == whole.values["a"][start:stop]
    assert examples.first[-1] == whole.values["a"][-1]
    assert examples.labels.tolist() == [n % 2 for n in range(NUMBER)]


@pytest.mark.parametrize("kind", [".tsv", ".csv", ".jsonl"])
def test_blocks_have_the_lines_of_the_file(small, kind):
    path = small / f"train{kind}"
    path.write_text(rows(kind), encoding="utf-8", newline="")
    lines = [line for block in Table(path, ["a"]).blocks() for line in block.columns.lines]
    step, first = {".tsv": (1, 2), ".csv": (3, 2), ".jsonl": (2, 1)}[kind]
    assert lines == [first + step * n for n in range(NUMBER)]


def test_errors_of_all_blocks_are_told_at_once(small):
    lines = rows(".tsv").split("\n")
    lines[3], lines[200], lines[300] = "x", "x\ty\t7", "x\t\t1"
    (small / "train.tsv").write_text("\n".join(lines), encoding="utf-8")
    task = custom_task(["a", "b"], "label", ["0", "1"])
    with pytest.raises(ValueError, match=r"line 4: 1 columns .*line 201: label '7'; .*line 301: b is empty\. Correct"):
        load_custom(task, str(small), "train")


def test_rows_cut_short_are_left_out_of_every_block(small, caplog):
    lines = ["question1\tquestion2\tis_duplicate", *(f"q{n}\t{'r' * 20}\t{n % 2}" for n in range(NUMBER))]
    lines[10] = lines[350] = "cut"
    (small / "QQP").mkdir()
    (small / "QQP" / "train.tsv").write_text("\n".join([*lines, "", ""]))
    with caplog.at_level(logging.WARNING):
        examples = load_examples(TASKS["qqp"], str(small), "train")
    assert "left out 2 rows with too few columns" in caplog.text
    assert [*examples.first] == [f"q{n}" for n in range(NUMBER) if n not in (9, 349)]


def test_a_file_that_changes_meanwhile_is_an_error(small):
    path = small / "train.tsv"
    path.write_text(rows(".tsv"), encoding="utf-8")
    table = Table(path, ["a"])
    texts = StoredTexts(table)
    for block in table.blocks():
        texts.add(block)
    path.write_text(rows(".tsv")[:2500], encoding="utf-8")
    with pytest.raises(ValueError, match="has changed while it was read"):
        texts.rows("a", 0, NUMBER)


def test_the_hubs_texts_stay_in_its_files(small, monkeypatch):
    import datasets

    monkeypatch.setattr("svt_jax.data.glue.KEPT_ROWS", 100)
    table = {
        "question1": DEMO.first[:NUMBER],
        "question2": DEMO.second[:NUMBER],
        "label": [n % 2 for n in range(NUMBER)],
    }
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict(table))
    examples = load_examples(TASKS["qqp"], "hub", "train")
    assert not isinstance(examples.first, list)
    assert examples.first[7:300] == table["question1"][7:300]
    assert examples.labels.tolist() == table["label"]
    assert hash_tokens(cached_tokens(examples, demo_tokenizer(), 20)) == hash_tokens(
        tokenize(type(DEMO)(table["question1"], table["question2"], examples.labels), demo_tokenizer(), 20)
    )


def large(folder):
    (folder / "train.tsv").write_text(rows(".tsv"), encoding="utf-8")
    return load_custom(custom_task(["a", "b"], "label", ["0", "1"]), str(folder), "train")


def test_tokens_of_a_large_split_are_mapped_and_the_same(small, monkeypatch):
    examples, words, told = large(small), demo_tokenizer(), []
    in_memory = tokenize(examples, words, 20)
    for _ in range(2):  # first made, then read
        tokens = cached_tokens(examples, words, 20, 0, told.append)
        assert isinstance(tokens.flat_ids, np.memmap)
        assert isinstance(tokens.flat_types, np.memmap)
        for name in ("flat_ids", "flat_types", "lengths", "labels"):
            assert np.array_equal(getattr(tokens, name), getattr(in_memory, name)), name
        assert hash_tokens(tokens) == hash_tokens(in_memory)
        assert np.array_equal(tokens.used_ids(), np.unique(in_memory.flat_ids))
    assert told == [70] * 5 + [50]
    assert [path.suffix for path in (small / "cache").iterdir()] == [".npz"]
    shape = choose_shape(tokens.lengths, 32)
    batch = random_batches(tokens.lengths, shape, 0, 0)[0]
    for name, values in pack(in_memory, batch, shape).items():
        assert np.array_equal(pack(tokens, batch, shape)[name], values), name


def test_a_disk_without_room_for_a_large_split_is_a_warning(small, monkeypatch, caplog):
    examples = large(small)

    def full(*_, **__):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(tempfile, "TemporaryFile", full)
    monkeypatch.setattr(token_cache, "_told", set())
    with caplog.at_level(logging.WARNING):
        tokens = cached_tokens(examples, demo_tokenizer(), 20)
    assert hash_tokens(tokens) == hash_tokens(tokenize(examples, demo_tokenizer(), 20))
    assert "tokens are not kept: [Errno 28] No space left on device" in caplog.text


def test_the_hash_of_tokens_is_that_of_the_padded_arrays():
    """A run that an earlier version began compares it when it resumes."""
    tokens = Tokens(
        np.array([5, 6, 7, 8, 9], np.uint16), np.array([0, 0, 1, 0, 1], np.uint8), np.array([3, 2], np.int32),
        np.array([1, 0], np.int32), pad_id=4,
    )  # fmt: skip
    assert tokens.ids.tolist() == [[5, 6, 7], [8, 9, 4]]
    assert hash_tokens(tokens) == "b6b6257e9ccc7ae3be0c6253f2079cb693b4650dd3987562026868814a5903c8"


def test_dealing_many_is_dealing_there_and_back():
    lengths = np.random.default_rng(0).integers(3, 30, 1003)
    for number in (1, 2, 7, 50, 1003):
        order = np.argsort(-lengths, kind="stable")
        turns, places = np.divmod(np.arange(len(order)), number)
        dealt = np.where(turns % 2, number - 1 - places, places)
        found = dealt_evenly(lengths, number)
        assert [batch.tolist() for batch in found] == [order[dealt == n].tolist() for n in range(number)]


def test_a_text_that_changes_in_a_large_file_makes_other_tokens(small):
    first = large(small)
    cached_tokens(first, demo_tokenizer(), 20)
    text = (small / "train.tsv").read_text(encoding="utf-8")
    (small / "train.tsv").write_text(text.replace("é350", "è350"), encoding="utf-8")
    second = load_custom(custom_task(["a", "b"], "label", ["0", "1"]), str(small), "train")
    cached_tokens(second, demo_tokenizer(), 20)
    assert len(list((small / "cache").iterdir())) == 2
    assert first.first.digest != second.first.digest
    assert first.second.digest == second.second.digest
