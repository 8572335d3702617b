"""GLUE's official layout written from the hub; a stand-in is the hub."""

import logging

import numpy as np
import pytest

from svt_jax import cli
from svt_jax.data.glue import TASKS, load_examples

BROKEN = "a tab\there, a line\nbreak and\r\nanother"


@pytest.fixture
def hub(monkeypatch):
    """Stands in for datasets.load_dataset; every split of a task has six rows."""
    import datasets

    asked = []

    def load_dataset(path, name, split):
        assert path == "nyu-mll/glue"
        asked.append((name, split))
        task, test = TASKS[name], split.startswith("test")
        texts = [f'{split} "{name}" ü {n} \\' for n in range(5)] + [""]
        labels = [n % task.num_labels for n in range(6)]
        if task.labels is None:  # float32 on the hub
            labels = [float(np.float32(x)) for x in (0, 0.25, 3.8, 1.667, 4.333, 5)]
        columns = {
            column: [f"{text}{n}" if text else "" for text in texts]
            for n, column in enumerate(task.hub_text or task.text)
        }
        return datasets.Dataset.from_dict({**columns, "label": [-1] * 6 if test else labels, "idx": list(range(6))})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    return asked


def test_what_is_written_of_every_task_is_what_the_hub_has(hub, tmp_path, capsys):
    assert cli.main(["data", "glue", "--to", str(tmp_path / "glue")]) == 0
    out = capsys.readouterr().out
    assert out.count("wrote ") == sum(len(task.files) for task in TASKS.values()) == 29
    assert out.endswith(f"see {tmp_path}/glue: --data.source {tmp_path}/glue\n")
    for task in TASKS.values():
        for split in task.files:
            ours, theirs = (load_examples(task, source, split) for source in (str(tmp_path / "glue"), "hub"))
            assert (ours.first, ours.second) == (theirs.first, theirs.second)
            np.testing.assert_array_equal(ours.labels, theirs.labels)
    assert (tmp_path / "glue" / "CoLA" / "dev.tsv").read_text().startswith('\t0\t\tvalidation "cola" ü 0 \\0\n\t1\t\t')
    assert (tmp_path / "glue" / "RTE" / "test.tsv").read_text().startswith("index\tsentence1\tsentence2\n0\t")


def test_a_second_time_what_is_there_is_kept_and_the_rest_is_written(hub, tmp_path, capsys):
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "train.tsv").write_text("mine")
    assert cli.main(["data", "glue", "--to", str(tmp_path), "--tasks", "rte"]) == 0
    assert f"kept {tmp_path}/RTE/train.tsv\n" in capsys.readouterr().out
    assert (tmp_path / "RTE" / "train.tsv").read_text() == "mine"
    assert hub == [("rte", "validation"), ("rte", "test")]
    assert sorted(path.name for path in tmp_path.iterdir()) == ["RTE"]


def test_a_break_inside_a_text_becomes_a_space_and_is_told(monkeypatch, tmp_path, caplog):
    import datasets

    table = {"sentence": [BROKEN, "plain"], "label": [1, 0]}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict(table))
    with caplog.at_level(logging.WARNING):
        assert cli.main(["data", "glue", "--to", str(tmp_path), "--tasks", "sst2"]) == 0
    assert "SST-2/train.tsv: in 1 rows a tab or a line break" in caplog.text
    assert load_examples(TASKS["sst2"], str(tmp_path), "train").first == [
        "a tab here, a line break and  another", "plain",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--to", "{}/new", "--tasks", "rte", "glue"], "unknown tasks glue; allowed are cola, sst2"),
        (["--to", "{}/new", "--tasks", "rtf"], "Did you mean rte?"),
        (["--to", "{}/file"], "file is a file; allowed is a folder"),
        (["--to", "{}/new", "--tasks", "rte"], "Check the network, or run this command on a machine"),  # no hub here
        ([], "--to is missing"),
    ],
)
def test_bad_input_is_one_line(tmp_path, capsys, options, message):
    (tmp_path / "file").write_text("")
    assert cli.main(["data", "glue", *(word.format(tmp_path) for word in options)]) == 2
    err = capsys.readouterr().err
    assert len(err.splitlines()) == 1
    assert message in err
    assert not list(tmp_path.rglob("*.tsv*"))


def test_the_folder_above_or_below_is_an_error_that_names_the_right_one(hub, tmp_path):
    assert cli.main(["data", "glue", "--to", str(tmp_path / "data" / "glue"), "--tasks", "rte", "cola"]) == 0
    right = tmp_path / "data" / "glue"
    for wrong in (right / "RTE", right.parent):
        with pytest.raises(ValueError, match=f"does not exist.*The folder to name is {right}.$"):
            load_examples(TASKS["rte"], str(wrong), "train")
    with pytest.raises(
        ValueError, match="holds CoLA, RTE; allowed is the folder that holds MRPC/.*svt-jax data glue --to DIR"
    ):
        load_examples(TASKS["mrpc"], str(right), "train")


def test_without_a_network_one_short_try_ends_in_one_line(tmp_path, monkeypatch, capsys):
    import datasets
    import huggingface_hub

    def unreachable(*_, **__):
        raise ConnectionError("no network")

    def never(*_, **__):
        pytest.fail("the reader of data sets tries for half a minute")

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(huggingface_hub.HfApi, "dataset_info", unreachable)
    monkeypatch.setattr(datasets, "load_dataset", never)
    assert cli.main(["data", "glue", "--to", str(tmp_path)]) == 2
    assert capsys.readouterr().err == (
        "error: the hub does not give nyu-mll/glue (ConnectionError). Check the network, or run this command on a machine "
        "that has one and copy the folder here.\n"
    )
    assert not any(tmp_path.iterdir())
