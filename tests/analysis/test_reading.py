"""`svt_jax.probe`: from texts to a table, a picture and a JSON, for whatever holds an encoder."""

import contextlib
import json
import sys
from pathlib import Path

import numpy as np
import pytest

import svt_jax
from svt_jax.analysis import measure_plots
from svt_jax.data.demo import vocabulary
from svt_jax.data.tokenizer import demo_tokenizer
from svt_jax.evaluation.layer_measures import ALL, MEASURES, OF_ATTENTION, OF_EXAMPLES, OF_SAMPLE, chosen_measures
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.task_model import DEMO_ENCODER, random_classifier

WORDS = [word for word in vocabulary() if word.isalpha()]
TEXTS = [" ".join(WORDS[n : n + 4 + n % 5]) for n in range(6)]
MODEL = random_classifier(DEMO_ENCODER, SVTConfig("soft_decay", layers=[1], alpha=-0.4), 2, dtype="float32", seed=0)
TOKENIZER = demo_tokenizer()
NAMES = ("token_uniformity", "stable_rank", "iso_score", "linear_cka", "attention_entropy", "self_similarity")


def probe(texts=TEXTS, **options):
    return svt_jax.probe(MODEL, texts, tokenizer=TOKENIZER, **options)


@pytest.fixture(scope="module")
def reading():
    return probe(measures=NAMES)


def rows_of(reading, **wanted):
    table = reading.table
    rows = [dict(zip(table, row, strict=True)) for row in zip(*table.values(), strict=True)]
    return [row for row in rows if all(row[name] == value for name, value in wanted.items())]


def test_the_table_has_a_row_for_each_layer_and_measure_that_the_state_has(reading):
    assert {len(column) for column in reading.table.values()} == {len(reading.table["mean"])}
    assert [row["layer"] for row in rows_of(reading, measure="stable_rank", state="output")] == [-1, 0, 1]
    assert [row["layer"] for row in rows_of(reading, measure="attention_entropy")] == [0, 1]
    places = [(row["layer"], row["state"]) for row in rows_of(reading, measure="linear_cka")]
    assert places == [(0, "output"), (1, "output"), (1, "svt_output")]
    assert {row["n"] for row in rows_of(reading, measure="token_uniformity")} == {len(TEXTS)}
    assert {row["n"] for row in rows_of(reading, measure="iso_score")} == {1}


def test_means_are_those_of_the_measures_of_padded_states(reading):
    encoded = TOKENIZER(TEXTS, padding=True, return_tensors="np")
    ids, mask = encoded["input_ids"].astype(np.int32), encoded["attention_mask"].astype(bool)
    out = MODEL.encoder(ids, mask, output_hidden_states=True, output_attentions=True)
    m = svt_jax.measures
    for n, x in enumerate(out.hidden_states):
        tokens, before = np.asarray(x)[mask], np.asarray(out.hidden_states[max(n - 1, 0)])[mask]
        words = ids[mask]
        expected = {
            "token_uniformity": m.token_uniformity(x, mask), "stable_rank": m.stable_rank(x, mask),
            "iso_score": m.iso_score(tokens),
            "self_similarity": m.self_similarity(tokens, words, ~np.isin(words, TOKENIZER.all_special_ids)),
        }  # fmt: skip
        if n:
            expected["linear_cka"] = m.linear_cka(tokens, before)
            expected["attention_entropy"] = m.attention_entropy(out.attentions[n - 1], mask).mean(-1)
        for name, values in expected.items():
            (row,) = rows_of(reading, layer=n - 1, measure=name, state="output")
            assert row["mean"] == pytest.approx(float(np.mean(values)), rel=2e-4), (name, n)
            assert row["std"] == pytest.approx(float(np.std(values)), rel=1e-3, abs=1e-5), (name, n)


def test_it_prints_a_row_for_each_state_and_saves_json_and_pictures(reading, tmp_path):
    lines = str(reading).splitlines()
    assert lines[0] == "6 texts: means"
    assert [line.split("  ")[0] for line in lines[3:8]] == ["embeddings", "layer 0", "layer 1", "layer 1, SVT input", "layer 1, SVT output"]  # fmt: skip
    paths = reading.save(tmp_path / "new" / "folder")
    assert [path.name for path in paths] == ["probe.json", "measures.svg", "measures.png", "spectra.svg", "spectra.png"]
    stored = json.loads(paths[0].read_text())
    assert stored["table"] == reading.table
    assert stored["measures"] == list(NAMES)


def test_a_panel_shows_the_means_of_its_measure(reading):
    figure = measure_plots.by_depth(reading.values, NAMES)
    assert len(figure.axes) == len(NAMES)
    for panel, name in zip(figure.axes, NAMES, strict=True):
        means = [row["mean"] for row in rows_of(reading, measure=name, state="output")]
        np.testing.assert_allclose(panel.lines[0].get_ydata(), means)


@pytest.mark.slow
def test_no_text_of_the_picture_of_all_measures_overlaps_another():
    sys.path.insert(0, str(Path(__file__).parent))
    from test_plots import assert_no_overlap

    assert_no_overlap(measure_plots.by_depth(probe().values, ALL))


@pytest.mark.slow
def test_more_texts_than_a_batch_are_all_measured():
    texts = [" ".join(WORDS[n % 20 : n % 20 + 3 + n % 4]) for n in range(150)]
    names = ("token_uniformity", "random_pair_similarity")
    several, alone = probe(texts, measures=names), probe(texts[:1], measures=names)
    (row,) = rows_of(several, measure="token_uniformity", layer=0)
    assert row["n"] == 150
    (row,) = rows_of(several, measure="random_pair_similarity", layer=0)
    assert row["n"] == several.values["batches"] > 1
    assert {row["std"] for row in rows_of(alone)} == {0.0}


@pytest.mark.slow
def test_a_folder_an_encoder_and_pairs_of_texts_do(tmp_path):
    svt_jax.export_hf(MODEL.encoder, tmp_path / "model", svt="keep")
    TOKENIZER.save_pretrained(tmp_path / "model")
    one = svt_jax.probe(tmp_path / "model", TEXTS, measures="stable_rank")
    other = svt_jax.probe(MODEL.encoder, TEXTS, measures="stable_rank", tokenizer=TOKENIZER)
    assert one.table == other.table
    assert one.values["model"] == str(tmp_path / "model")
    pairs = probe([(TEXTS[0], TEXTS[1]), (TEXTS[2], TEXTS[3])], measures="stable_rank")
    assert {row["n"] for row in rows_of(pairs)} == {2}


@pytest.mark.slow
def test_a_runs_folder_does_and_the_command_measures_the_same(tmp_path, capsys):
    run = svt_jax.train(
        {"run": {"output_dir": str(tmp_path), "name": "demo"}, "optim": {"max_steps": 2}, "log": {"progress": False}}
    )
    reading = svt_jax.probe(run.folder, TEXTS, measures=["token_uniformity"])
    assert len(rows_of(reading, state="output")) == 3
    from svt_jax.cli import main

    output = tmp_path / "spectrum"
    with contextlib.suppress(SystemExit):
        main(
            [
                "eval",
                "spectrum",
                "--run",
                str(run.folder),
                "--output",
                str(output),
                "--measures",
                "stable_rank",
                "two_nn",
            ]
        )
    stored = json.loads((output / "spectrum.json").read_text())
    assert {"stable_rank", "two_nn", *MEASURES} <= stored["states"][0].keys()
    assert json.loads((output / "probe" / "probe.json").read_text())["measures"] == ["stable_rank", "two_nn"]
    assert "two_nn" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: probe("one text"), "texts must be a list of strings, or of pairs"),
        (lambda: probe([]), "at least one"),
        (lambda: probe([1]), "texts must be a list"),
        (lambda: probe(measures=["rank"]), "measures: 'rank'; allowed are skewness"),
        (lambda: probe(measures=["stable_rnk"]), "Did you mean stable_rank?"),
        (lambda: probe(measures=[]), "measures: none; allowed"),
        (lambda: svt_jax.probe(MODEL, TEXTS), "Classifier in memory has no tokenizer"),
        (lambda: svt_jax.probe("no/such/folder", TEXTS), "is not a folder here"),
    ],
)
def test_wrong_input_is_one_error_that_says_what_is_allowed(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_all_measures_have_a_name():
    assert chosen_measures("all") == chosen_measures(["all"]) == chosen_measures(None) == ALL


def test_each_measure_of_the_probe_is_of_one_kind():
    assert len(set(ALL)) == len(ALL) == len(OF_EXAMPLES) + len(OF_SAMPLE) + len(OF_ATTENTION)
    assert set(MEASURES) <= set(OF_EXAMPLES)
