"""From files to scores and predictions, on a tiny pretrained model: MNLI's two validation sets, and a custom task."""

import dataclasses
import json
import shutil

import jax
import numpy as np
import pytest
from flax import nnx

from svt_jax import cli
from svt_jax.data.demo import load_demo
from svt_jax.data.glue import TASKS
from svt_jax.data.tokenizer import demo_tokenizer
from svt_jax.evaluation.glue import Evaluator
from svt_jax.models.encoder import Encoder
from svt_jax.models.export import export_hf
from svt_jax.models.heads import Classifier
from svt_jax.run.task_model import DEMO_ENCODER

STORIES = load_demo("validation")
SIZES = {"hidden_size": 16, "num_attention_heads": 2, "intermediate_size": 16, "num_hidden_layers": 1}


@pytest.fixture(scope="module")
def model(tmp_path_factory):
    folder = tmp_path_factory.mktemp("model") / "tiny"
    export_hf(Encoder(dataclasses.replace(DEMO_ENCODER, **SIZES), rngs=nnx.Rngs(0)), folder)
    demo_tokenizer().save_pretrained(folder)
    return folder


def train(model, data, runs, *options):
    steps = ["--optim.max_steps", "3", "--optim.batch_size", "8", "--data.max_length", "32", "--run.name", "run"]
    paths = ["--model.path", str(model), "--data.source", str(data), "--run.output_dir", str(runs)]
    return cli.train([*paths, *steps, *options])


def evaluate(run, capsys, *options):
    assert cli.evaluate(["glue", "--run", str(run), *options]) == 0
    return json.loads(capsys.readouterr().out.strip().splitlines()[-1])


@pytest.fixture(scope="module")
def mnli(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("mnli")
    names = ("entailment", "neutral", "contradiction")
    (folder / "MNLI").mkdir()
    for file, start, rows in (("train", 0, 24), ("dev_matched", 24, 21), ("dev_mismatched", 45, 13)):
        lines = [f"{STORIES.first[n]}\t{STORIES.second[n]}\t{names[n % 3]}\n" for n in range(start, start + rows)]
        (folder / "MNLI" / f"{file}.tsv").write_text("sentence1\tsentence2\tgold_label\n" + "".join(lines))
    for file, start, rows in (("test_matched", 58, 19), ("test_mismatched", 77, 10)):
        lines = [f"{n}\t{STORIES.first[n]}\t{STORIES.second[n]}\n" for n in range(start, start + rows)]
        (folder / "MNLI" / f"{file}.tsv").write_text("index\tsentence1\tsentence2\n" + "".join(lines))
    assert train(model, folder, folder, "--data.task", "mnli") == 0
    return folder / "run"


@pytest.mark.slow
def test_mnli_reports_both_validation_sets(mnli, capsys):
    results = json.loads((mnli / "results.json").read_text())
    assert set(results["metrics"]) == {"validation", "validation_mismatched"}
    assert results["best"] == {"step": 3, "metrics": results["metrics"]["validation"]}
    outcome = evaluate(mnli, capsys)
    assert outcome["metrics"] == results["metrics"]["validation"]
    assert outcome["metrics_mismatched"] == results["metrics"]["validation_mismatched"]
    assert (outcome["examples"], outcome["examples_mismatched"]) == (21, 13)


def test_test_rows_are_predicted_once_and_in_order_under_any_batch(mnli, tmp_path, capsys):
    written = []
    for size in (8, 64):
        folder = tmp_path / str(size)
        options = ["--split", "test", "--data.eval_batch_size", str(size), "--output", str(folder)]
        outcome = evaluate(mnli, capsys, *options)
        assert outcome["files"] == [str(folder / name) for name in ("MNLI-m.tsv", "MNLI-mm.tsv")]
        assert (outcome["examples"], outcome["examples_mismatched"]) == (19, 10)
        written.append([(folder / name).read_text() for name in ("MNLI-m.tsv", "MNLI-mm.tsv")])
    assert written[0] == written[1]
    for text, rows in zip(written[0], (19, 10), strict=True):
        assert [line.split("\t")[0] for line in text.splitlines()] == ["index", *map(str, range(rows))]
        assert {line.split("\t")[1] for line in text.splitlines()[1:]} <= {"entailment", "neutral", "contradiction"}


def classifier_with_classes(order):
    """Weights are larger than usual, so that not every example has the same class."""
    config = dataclasses.replace(DEMO_ENCODER, **SIZES, initializer_range=0.5)
    rngs = nnx.Rngs(0)
    classifier = Classifier(Encoder(config, rngs=rngs), 3, rngs=rngs)
    columns = np.array(order)
    nnx.update(classifier.classifier, jax.tree.map(lambda a: a[..., columns], nnx.state(classifier.classifier)))
    return classifier


@pytest.mark.parametrize(
    ("named", "order"),
    [
        (["Contradiction", "neutral", "entailment"], [2, 1, 0]),
        (["LABEL_0", "LABEL_1", "LABEL_2"], [0, 1, 2]),
        (["yes", "maybe", "no"], [0, 1, 2]),
    ],
)
def test_the_classes_of_a_model_are_put_in_the_tasks_order_by_name(mnli, tmp_path, caplog, capsys, named, order):
    """Two folders have the same head; the second says that its classes have another order."""
    rows = {}
    for folder, columns in (("ours", [0, 1, 2]), ("theirs", order)):
        export_hf(classifier_with_classes(columns), tmp_path / folder)
        demo_tokenizer().save_pretrained(tmp_path / folder)
        names = TASKS["mnli"].labels if folder == "ours" else named
        config = json.loads((tmp_path / folder / "config.json").read_text())
        config["id2label"] = {str(n): name for n, name in enumerate(names)}
        (tmp_path / folder / "config.json").write_text(json.dumps(config))
        caplog.clear()
        command = ["glue", "--model", str(tmp_path / folder), "--task", "mnli", "--data.source", str(mnli.parent)]
        assert (
            cli.evaluate([*command, "--data.max_length", "32", "--split", "test", "--output", str(tmp_path / "out")])
            == 0
        )
        rows[folder] = (tmp_path / "out" / "MNLI-m.tsv").read_text()
    assert rows["ours"] == rows["theirs"]
    assert len({line.split("\t")[1] for line in rows["ours"].splitlines()[1:]}) > 1, "one class would show no order"
    assert ("are taken to be, in this order, entailment, neutral, contradiction" in caplog.text) == (order == [0, 1, 2])


COLUMNS = ["--data.text_columns", "[story, claim]", "--data.label_column", "is it so"]


def write_custom(folder, yes="yes"):
    folder.mkdir(exist_ok=True)
    for split, start, rows in (("train", 0, 24), ("validation", 24, 21), ("test", 45, 11)):
        lines = [{"story": STORIES.first[n], "claim": STORIES.second[n]} for n in range(start, start + rows)]
        for line, label in zip(lines, STORIES.labels[start : start + rows], strict=True):
            line |= {} if split == "test" else {"is it so": yes if label else "no"}
        (folder / f"{split}.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))


@pytest.fixture(scope="module")
def custom(model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("custom")
    write_custom(folder / "data")
    assert train(model, folder / "data", folder, "--data.task", "custom", *COLUMNS) == 0
    return folder / "run"


def test_a_custom_runs_classes_are_saved_and_used_again(custom, tmp_path, capsys):
    assert json.loads((custom / "manifest.json").read_text())["classes"] == ["no", "yes"]
    reported = json.loads((custom / "results.json").read_text())["metrics"]["validation"]
    assert set(reported) == {"accuracy", "f1", "matthews_correlation"}
    write_custom(tmp_path)
    (tmp_path / "train.jsonl").unlink()  # the classes come from the run
    assert evaluate(custom, capsys, "--data.source", str(tmp_path))["metrics"] == reported
    outcome = evaluate(custom, capsys, "--split", "test")
    text = (custom / "submission" / "custom.tsv").read_text()
    assert outcome["files"] == [str(custom / "submission" / "custom.tsv")]
    assert [line.split("\t")[0] for line in text.splitlines()] == ["index", *map(str, range(11))]
    assert {line.split("\t")[1] for line in text.splitlines()[1:]} <= {"no", "yes"}


def test_a_run_is_not_resumed_with_other_classes(model, custom, tmp_path, capsys):
    shutil.copytree(custom, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    data = custom.parent / "data"
    write_custom(data, yes="oui")
    status = train(model, data, tmp_path, "--data.task", "custom", *COLUMNS)
    write_custom(data)
    assert status == 2
    assert "began with the classes ['no', 'yes'] and the training file now has ['no', 'oui']" in capsys.readouterr().err


def test_a_run_is_not_resumed_with_other_data(model, custom, tmp_path, capsys):
    """The data have as many rows but other words: moments and example order would belong to the old ones."""
    shutil.copytree(custom, tmp_path / "run")
    (tmp_path / "run" / "results.json").unlink()
    data = custom.parent / "data"
    path = data / "train.jsonl"
    path.write_text(path.read_text().replace("kite", "lamp"))
    status = train(model, data, tmp_path, "--data.task", "custom", *COLUMNS)
    write_custom(data)
    assert status == 2
    assert "began with other tokens or labels in train than data.source now gives" in capsys.readouterr().err


def test_predictions_that_are_not_finite_are_not_written(custom, tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(Evaluator, "logits", lambda self, *_: np.full((11, 2), np.nan))
    assert cli.evaluate(["glue", "--run", str(custom), "--split", "test", "--output", str(tmp_path / "out")]) == 3
    assert "11 of 11 predictions are not finite" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.task", "rte", *COLUMNS], "data.task is 'rte' and there is data.text_columns ['story', 'claim'], data.label_column"),
        (["--data.task", "custom"], "data.text_columns is None and data.label_column is None; the task custom needs"),
        (["--data.task", "custom", "--data.text_columns", "[a, a]", "--data.label_column", "b"], "data.text_columns is ['a', 'a']"),
        (["--data.task", "custom", *COLUMNS, "--data.labels", "[a]"], "data.labels is ['a']; allowed are two or more"),
        (["--data.task", "custom", *COLUMNS, "--data.labels", "classes"], "data.labels is "),
    ],
)  # fmt: skip
def test_keys_of_a_custom_task_are_checked(model, tmp_path, capsys, options, words):
    assert train(model, tmp_path, tmp_path / "runs", *options) == 2
    error = capsys.readouterr().err
    assert error.count("\n") == 1
    assert words in error, error
    assert not (tmp_path / "runs").exists()


def test_a_custom_task_is_evaluated_through_its_run(model, capsys):
    assert cli.evaluate(["glue", "--model", str(model), "--task", "custom"]) == 2
    assert "--model needs --task, not custom; allowed are cola" in capsys.readouterr().err
