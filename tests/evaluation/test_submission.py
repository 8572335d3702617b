"""The leaderboard's files: names, header, label strings, each row once and in order."""

import dataclasses

import numpy as np
import pytest

from svt_jax.data.custom import custom_task
from svt_jax.data.glue import TASKS, load_examples
from svt_jax.evaluation.submission import check_submission, check_text, find_rules, write_submission

# Output of `wc -l *.tsv`, as users of the leaderboard report it: rows plus a header line.
LINES = {
    "CoLA.tsv": 1064, "MNLI-mm.tsv": 9848, "MNLI-m.tsv": 9797, "MRPC.tsv": 1726, "QNLI.tsv": 5464, "QQP.tsv": 390966,
    "RTE.tsv": 3001, "SST-2.tsv": 1822, "STS-B.tsv": 1380, "WNLI.tsv": 147,
}  # fmt: skip
TEST_SETS = [(name, split) for name, task in TASKS.items() for split in task.parts("test")]


def logits(task, rows):
    return np.random.default_rng(0).normal(2.0, 3.0, size=(rows, task.num_labels)).astype(np.float32)


def test_a_whole_submission_keeps_every_rule(tmp_path):
    for name, split in TEST_SETS:
        task = TASKS[name]
        path = write_submission(task, split, logits(task, find_rules(task, split).rows), tmp_path)
        assert path.read_bytes().startswith(b"index\tprediction\n0\t")
    assert {p.name: p.read_bytes().count(b"\n") for p in tmp_path.iterdir()} == LINES
    assert check_submission(tmp_path) == []
    (tmp_path / "MNLI-mm.tsv").unlink()
    assert check_submission(tmp_path) == ["MNLI-mm.tsv is missing"]


def test_predictions_are_the_tasks_label_strings(tmp_path, caplog):
    three = np.eye(3, dtype=np.float32)
    expected = {
        "mnli": "0\tentailment\n1\tneutral\n2\tcontradiction",
        "rte": "0\tentailment\n1\tnot_entailment",
        "qqp": "0\t0\n1\t1",
    }
    for name, rows in expected.items():
        size = TASKS[name].num_labels
        path = write_submission(TASKS[name], "test", three[:size, :size], tmp_path)
        assert path.read_text() == f"index\tprediction\n{rows}\n"
    assert "QQP.tsv has 2 rows; the leaderboard takes exactly 390965" in caplog.text


def test_scores_are_clipped_to_the_tasks_range(tmp_path):
    path = write_submission(TASKS["stsb"], "test", np.float32([[-1.0], [2.5], [5.2]]), tmp_path)
    assert path.read_text().splitlines()[1:] == ["0\t0.000000", "1\t2.500000", "2\t5.000000"]


def test_a_class_that_the_file_cannot_hold_is_an_error(tmp_path):
    task = custom_task(["a"], "label", ["no", "tab\there"])
    with pytest.raises(ValueError, match="no predictions were written: custom.tsv, row 1: 3 columns"):
        write_submission(task, "test", np.eye(2, dtype=np.float32), tmp_path / "out")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("id\tprediction\n0\t1\n1\t0\n", "the header is"),
        ("index\tprediction\n0\t1\n", "has 1 rows, not 2"),
        ("index\tprediction\n0\t1\n1\t0\n2\t0\n", "has 3 rows, not 2"),
        ("index\tprediction\n1\t1\n0\t0\n", "row 0: index '1', not 0"),
        ("index\tprediction\n0\t1\n0\t1\n", "row 1: index '0', not 1"),
        ("index\tprediction\n0\t1\n1\tentailment\n", "row 1: prediction 'entailment'; allowed is 0 or 1"),
        ("index\tprediction\n0\t1\n1,0\n", "row 1: 1 columns, not 2"),
        ("index\tprediction\n0\t1\n1\t0\n\n", "row 2: 1 columns, not 2"),
    ],
)
def test_the_checker_sees_each_fault(text, problem):
    rules = dataclasses.replace(find_rules(TASKS["wnli"], "test"), rows=2)
    assert any(problem in found for found in check_text(text, rules)), check_text(text, rules)
    assert check_text("index\tprediction\n0\t1\n1\t0\n", rules) == []


@pytest.mark.parametrize("score", ["nan", "5.1", "-0.1", "high"])
def test_the_checker_sees_a_score_outside_its_range(score):
    problems = check_text(f"index\tprediction\n0\t{score}\n", find_rules(TASKS["stsb"], "test"))
    assert problems[0] == f"STS-B.tsv, row 0: prediction '{score}'; allowed is a number from 0 to 5"


@pytest.mark.shared
@pytest.mark.parametrize(("name", "split"), [(n, s) for n, s in TEST_SETS if n not in ("qqp", "mnli")])
def test_the_real_test_files_have_the_rows_of_the_rules_in_order(shared, name, split):
    task = TASKS[name]
    examples = load_examples(task, str(shared / "data" / "glue"), split)
    assert len(examples) == find_rules(task, split).rows
    path = shared / "data" / "glue" / task.folder / task.files[split]
    lines = path.read_bytes().decode("utf-8-sig").split("\n")[1:-1]
    assert [line.split("\t")[0] for line in lines] == [str(n) for n in range(len(examples))]


def test_other_predictions_are_never_overwritten(tmp_path):
    first = write_submission(TASKS["wnli"], "test", np.eye(2, dtype=np.float32), tmp_path).read_bytes()
    assert write_submission(TASKS["wnli"], "test", np.eye(2, dtype=np.float32), tmp_path).read_bytes() == first
    with pytest.raises(ValueError, match="WNLI.tsv has other predictions, and nothing is overwritten"):
        write_submission(TASKS["wnli"], "test", 1 - np.eye(2, dtype=np.float32), tmp_path)
    assert (tmp_path / "WNLI.tsv").read_bytes() == first
