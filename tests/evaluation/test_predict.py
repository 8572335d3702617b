"""Predictions by name, in Python and on the command line."""

import csv
import json
import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import svt_jax
from svt_jax import cli
from svt_jax.data.demo import load_demo, vocabulary
from svt_jax.data.tokenizer import demo_tokenizer
from svt_jax.errors import NonFiniteError
from svt_jax.evaluation import predict as module
from svt_jax.models.config import EncoderConfig
from svt_jax.models.encoder import Encoder
from svt_jax.models.heads import Classifier

NAMES = ("against", "neither", "for")
DEMO = load_demo("test")
STORIES, CLAIMS = list(DEMO.first[:30]), list(DEMO.second[:30])
PAIRS = list(zip(STORIES, CLAIMS, strict=True))


def make_classifier(num_labels):
    fields = {
        "model_type": "bert", "vocab_size": len(vocabulary()), "hidden_size": 8, "num_hidden_layers": 1,
        "num_attention_heads": 2, "intermediate_size": 16, "max_position_embeddings": 40, "initializer_range": 0.5,
    }  # fmt: skip
    return Classifier(Encoder(EncoderConfig.from_hf(fields), rngs=nnx.Rngs(0)), num_labels, rngs=nnx.Rngs(1))


def write(folder, num_labels, labels=None):
    svt_jax.export_hf(make_classifier(num_labels), folder, labels=labels)
    demo_tokenizer().save_pretrained(folder)
    return folder


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """A classifier of three classes, as export writes one."""
    return write(tmp_path_factory.mktemp("classes"), 3, NAMES)


@pytest.fixture(scope="module")
def regression(tmp_path_factory):
    return write(tmp_path_factory.mktemp("regression"), 1)


def alone(folder, *texts):
    """The logits of one example, in a batch of its own."""
    encoded = demo_tokenizer()(*texts, return_tensors="np")
    inputs = [jnp.asarray(encoded[name], jnp.int32) for name in ("input_ids", "attention_mask", "token_type_ids")]
    return np.asarray(svt_jax.load_classifier(folder)(*inputs))[0]


def test_pairs_have_the_names_and_probabilities_of_the_logits_without_padding(folder):
    found = svt_jax.load_classifier(folder).predict(PAIRS, demo_tokenizer())
    logits = np.array([alone(folder, *pair) for pair in PAIRS])
    assert found.classes == NAMES
    assert found.labels == [NAMES[n] for n in logits.argmax(axis=1)]
    assert len(set(found.labels)) > 1
    np.testing.assert_allclose(found.probabilities, jax.nn.softmax(logits), atol=2e-6)
    assert found.values is None
    numbers = list(list(found)[3]["probabilities"].values())
    assert (np.float32(numbers) == found.probabilities[3]).all()
    assert max(len(str(number)) for number in numbers) < 14, "no more digits than float32 has"


def test_one_call_takes_a_folder_and_single_texts_from_a_generator(folder):
    found = svt_jax.predict(folder, (text for text in STORIES))
    np.testing.assert_allclose(found.probabilities[7], jax.nn.softmax(alone(folder, STORIES[7])), atol=2e-6)
    assert len(found) == len(STORIES)
    assert len(svt_jax.predict(folder, [])) == 0


def test_a_regression_predicts_numbers(regression):
    found = svt_jax.predict(regression, PAIRS)
    assert (found.classes, found.labels, found.probabilities) == (None, None, None)
    np.testing.assert_allclose(found.values, [alone(regression, *pair)[0] for pair in PAIRS], atol=2e-6)


def test_a_second_call_with_other_texts_compiles_nothing(folder):
    classifier = svt_jax.load_classifier(folder)
    classifier.predict(PAIRS, demo_tokenizer())
    programs = module._program()._cache_size()
    classifier.predict(PAIRS[:25], demo_tokenizer())
    assert module._program()._cache_size() == programs


@pytest.mark.parametrize(
    "texts",
    ["one", [3], [("a", "b"), "c"], [("a", "b", "c")], None],
    ids=["single", "number", "mixed", "three", "none"],
)
def test_what_is_neither_texts_nor_pairs_is_refused(folder, texts):
    with pytest.raises(ValueError, match="allowed is a list of strings, or a list of pairs of strings"):
        svt_jax.load_classifier(folder).predict(texts, demo_tokenizer())


def test_a_logit_that_is_not_finite_is_no_prediction(folder):
    classifier = svt_jax.load_classifier(folder)
    classifier.classifier.bias[...] = jnp.nan
    with pytest.raises(NonFiniteError, match="30 of 30 predictions"):
        classifier.predict(PAIRS, demo_tokenizer())


def test_a_folder_without_a_head_or_with_another_number_of_names_is_refused(folder, tmp_path):
    svt_jax.export_hf(make_classifier(3).encoder, tmp_path / "encoder")
    with pytest.raises(ValueError, match="no classification head.*or give num_labels for a new head"):
        svt_jax.load_classifier(tmp_path / "encoder")
    write(tmp_path / "three", 3)
    config = json.loads((tmp_path / "three" / "config.json").read_text())
    for change, message in (
        ({"id2label": {"0": "no", "1": "yes"}}, "id2label.*for a head of 3 classes"),
        ({"problem_type": "multi_label_classification"}, "several classes at a time"),
    ):
        (tmp_path / "three" / "config.json").write_text(json.dumps({**config, **change}))
        with pytest.raises(ValueError, match=message):
            svt_jax.load_classifier(tmp_path / "three")
        assert svt_jax.load_classifier(tmp_path / "three", num_labels=3).num_labels == 3
    del config["id2label"]
    (tmp_path / "three" / "config.json").write_text(json.dumps(config))
    assert svt_jax.predict(svt_jax.load_classifier(tmp_path / "three"), ["a"], demo_tokenizer()).classes[2] == "LABEL_2"


def test_without_its_tokenizer_a_classifier_says_what_to_give(folder):
    with pytest.raises(ValueError, match="allowed is one with tokenizer=, .*or call svt_jax.predict"):
        svt_jax.load_classifier(folder).predict(PAIRS)


@pytest.mark.parametrize(
    "read", [svt_jax.load_classifier, svt_jax.load_encoder, lambda run: svt_jax.predict(run, ["a"])]
)
def test_a_runs_folder_is_told_how_it_becomes_a_model(tmp_path, read):
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(ValueError, match=f"is a run, .*: svt-jax eval export --run {tmp_path} --svt keep --output DIR"):
        read(tmp_path)


def test_names_of_classes_are_exported_again(folder, tmp_path):
    svt_jax.export_hf(svt_jax.load_classifier(folder), tmp_path / "again")
    assert svt_jax.load_classifier(tmp_path / "again").class_names == NAMES


@pytest.mark.parity
def test_transformers_gives_the_same_probabilities(folder):
    import torch
    from transformers import AutoModelForSequenceClassification

    model = AutoModelForSequenceClassification.from_pretrained(folder).eval()
    inputs = demo_tokenizer()(STORIES, CLAIMS, padding=True, return_tensors="pt")
    with torch.no_grad():
        expected = torch.softmax(model(**inputs).logits, dim=1).numpy()
    np.testing.assert_allclose(svt_jax.predict(folder, PAIRS).probabilities, expected, atol=2e-6)
    assert tuple(model.config.id2label.values()) == NAMES


def table(path, columns):
    """Writes columns in the format of the path's ending."""
    rows = list(zip(*columns.values(), strict=True))
    if path.suffix == ".jsonl":
        text = "".join(json.dumps(dict(zip(columns, row, strict=True))) + "\n" for row in rows)
    else:
        text = "".join(("\t" if path.suffix == ".tsv" else ",").join(row) + "\n" for row in [tuple(columns), *rows])
    path.write_text(text)
    return path


@pytest.mark.parametrize("ending", [".tsv", ".csv", ".jsonl"])
def test_the_command_predicts_pairs_of_a_table(folder, tmp_path, capsys, ending):
    source = table(tmp_path / f"in{ending}", {"number": ["1"] * 30, "claim": CLAIMS, "story": STORIES})
    assert cli.main(["predict", f"--model={folder}", f"--input={source}", "--data.text_columns", "story", "claim"]) == 0
    out, err = capsys.readouterr()
    assert err == ""
    assert [json.loads(line) for line in out.splitlines()] == list(svt_jax.predict(folder, PAIRS))


def test_the_command_writes_a_table_of_the_lines_of_a_text(folder, regression, tmp_path, capsys):
    source, output = tmp_path / "in.txt", tmp_path / "out.csv"
    source.write_text("\n".join(STORIES))
    assert cli.main(["predict", f"--model={folder}", f"--input={source}", f"--output={output}"]) == 0
    assert capsys.readouterr().out == f"see {output}: 30 predictions\n"
    rows = list(csv.DictReader(output.read_text().splitlines()))
    expected = svt_jax.predict(folder, STORIES)
    assert [row["label"] for row in rows] == expected.labels
    np.testing.assert_allclose([float(row["probability_for"]) for row in rows], expected.probabilities[:, 2])
    assert (
        cli.main(["predict", f"--model={regression}", f"--input={source}", f"--output={tmp_path / 'out.jsonl'}"]) == 0
    )
    values = [json.loads(line)["value"] for line in (tmp_path / "out.jsonl").read_text().splitlines()]
    np.testing.assert_allclose(values, svt_jax.predict(regression, STORIES).values)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ("--input {in}/in.csv --data.text_columns stori", r"Did you mean story\?"),
        ("--input {in}/none.txt", "cannot be read: there is no such file. Check the path"),
        ("--input {in}/in.csv", "has the columns story, claim; needed is which to read"),
        ("--input {in}/in.csv --data.text_columns tale", r"lacks the columns \['tale'\]"),
        ("--input {in}/in.csv --data.text_columns story story", "one column, or two different ones"),
        ("--input {in}/in.txt --output {in}/out.xlsx", "allowed is a file that ends in .jsonl or .csv"),
        (
            "--input {in}/in.csv --data.text_columns story --output {in}/in.csv",
            "is there already, and nothing is overwritten",
        ),
        ("--input {in}/in.txt --output {in}/no/out.csv", "a file in a folder that exists"),
        ("--input {in}/empty.txt", "line 2: it is empty"),
        ("--model {in} --input {in}/in.txt", "config.json"),
        ("--output x.csv", "--input is missing"),
    ],
)
def test_bad_input_is_one_line_and_writes_nothing(folder, tmp_path, capsys, options, message):
    table(tmp_path / "in.csv", {"story": STORIES, "claim": CLAIMS})
    (tmp_path / "in.txt").write_text("\n".join(STORIES))
    (tmp_path / "empty.txt").write_text("a\n\nb\n")
    before = {path: path.read_bytes() for path in Path(tmp_path).iterdir()}
    arguments = [word.replace("{in}", str(tmp_path)) for word in options.split()]
    model = [] if "--model" in arguments else [f"--model={folder}"]
    assert cli.main(["predict", *model, *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == ""
    assert len(err.splitlines()) == 1
    assert re.search(message, err), err
    assert {path: path.read_bytes() for path in Path(tmp_path).iterdir()} == before
