"""Search before a comparison: declared values, an equal number of tries, a held part of the training set."""

import json
from pathlib import Path

import numpy as np
import pytest

from svt_jax import cli
from svt_jax.data.tokenizer import demo_tokenizer
from svt_jax.run.config import DataConfig
from svt_jax.run.folder import read_run
from svt_jax.run.task_data import find_task, held_out, load_tokens
from svt_jax.run.task_model import DEMO_ENCODER
from svt_jax.training.search import declared

DEMO = str(Path(__file__).parents[2] / "configs" / "demo.yaml")


def demo_tokens(split, **data):
    config = DataConfig(**data)
    return load_tokens(find_task(config), config, demo_tokenizer(), DEMO_ENCODER, split)


def test_the_held_part_comes_from_the_training_set_and_is_not_trained_on():
    whole = demo_tokens("train")
    train, held = (demo_tokens(split, holdout=0.1) for split in ("train", "validation"))
    rows = held_out(len(whole), 0.1)
    assert (len(train), len(held)) == (len(whole) - len(rows), len(rows))
    assert len(rows) == round(0.1 * len(whole))
    others = np.setdiff1d(np.arange(len(whole)), rows)
    for part, chosen in ((train, others), (held, rows)):
        assert np.array_equal(part.ids, whole.ids[chosen, : part.longest])
        assert np.array_equal(part.types, whole.types[chosen, : part.longest])
        assert np.array_equal(part.labels, whole.labels[chosen])
    assert np.array_equal(demo_tokens("test", holdout=0.1).lengths, demo_tokens("test").lengths)


def test_a_share_that_leaves_nothing_is_an_error():
    with pytest.raises(ValueError, match=r"data.holdout 0.01 of 20 training examples are 0; both parts need one"):
        held_out(20, 0.01)
    with pytest.raises(ValueError, match=r"data.holdout is 1.0; allowed is a share from 0 to below 1"):
        DataConfig(holdout=1.0)


def write(folder, name, text):
    (folder / f"{name}.yaml").write_text(text)
    return f"{DEMO}+{folder / name}.yaml"


def test_values_are_declared_by_the_settings_files(tmp_path):
    plain = write(tmp_path, "plain", "svt: {function: none}\nsearch: {optim.learning_rate: [1.0e-4, 5.0e-4]}\n")
    soft = write(tmp_path, "soft", "svt: {function: soft_decay}\nsearch: {svt.alpha: [-0.2, -0.5]}\n")
    assert declared([plain, soft]) == {
        "plain": [{"optim.learning_rate": "1.0e-4"}, {"optim.learning_rate": "5.0e-4"}],
        "soft": [{"svt.alpha": "-0.2"}, {"svt.alpha": "-0.5"}],
    }
    assert declared([DEMO]) == {}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("search: {svt.alpha: [-0.2]}\n", "the settings try different numbers of values (plain 2, soft 1)"),
        ("search: {svt.alfa: [-0.2, -0.3]}\n", "unknown key 'svt.alfa'"),
        ("search: {svt.alpha: -0.2}\n", "svt.alpha is '-0.2'; allowed is a list of values"),
        ("search: [svt.alpha]\n", "allowed is a table of keys and lists of values"),
    ],
)
def test_a_faulty_search_starts_nothing(tmp_path, capsys, text, words):
    plain = write(tmp_path, "plain", "svt: {function: none}\nsearch: {optim.learning_rate: [1.0e-4, 5.0e-4]}\n")
    soft = write(tmp_path, "soft", "svt: {function: soft_decay}\n" + text)
    command = ["compare", "--config", plain, "--config", soft, "--seeds", "0", "--output", str(tmp_path / "out")]
    assert cli.evaluate(command) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error
    assert not (tmp_path / "out").exists()


@pytest.mark.slow
def test_each_setting_is_compared_with_the_values_that_it_chose_on_the_held_part(tmp_path, capsys):
    plain = write(tmp_path, "plain", "svt: {function: none}\nsearch: {optim.learning_rate: [5.0e-4, 2.0e-3]}\n")
    soft = write(tmp_path, "soft", "svt: {function: soft_decay}\nsearch: {svt.alpha: [-0.3, -0.5]}\n")
    output = tmp_path / "out"
    command = ["compare", "--config", plain, "--config", soft, "--seeds", "0,1", "--output", str(output)]
    command += ["--optim.max_steps", "30", "--holdout", "0.2", "--log.progress", "false"]
    assert cli.evaluate(command) == 0
    stored = json.loads((output / "compare.json").read_text())
    for name in ("plain", "soft"):
        tries = [json.loads((output / "search" / f"{name}-try{n}" / "results.json").read_text()) for n in (0, 1)]
        scores = [each["metrics"]["validation"]["accuracy"] for each in tries]
        assert stored["search"][name]["scores"] == scores
        assert stored["search"][name]["chosen"] == stored["search"][name]["tried"][int(np.argmax(scores))]
    chosen = {name: each["chosen"] for name, each in stored["search"].items()}
    for seed in (0, 1):
        plain, soft = (read_run(output / "runs" / f"{name}-seed{seed}")[1] for name in ("plain", "soft"))
        assert plain["optim"]["learning_rate"] == float(chosen["plain"]["optim.learning_rate"])
        assert soft["svt"]["alpha"] == float(chosen["soft"]["svt.alpha"])
        assert plain["data"]["holdout"] == soft["data"]["holdout"] == 0.0
    assert f"| soft | svt.alpha {chosen['soft']['svt.alpha']} |" in (output / "compare.md").read_text()
    assert stored["metrics"]["accuracy"]["soft"]["n"] == 2
    times = {path: path.stat().st_mtime_ns for path in output.rglob("results.json")}
    assert cli.evaluate(command) == 0  # nothing is trained again
    assert times == {path: path.stat().st_mtime_ns for path in output.rglob("results.json")}
