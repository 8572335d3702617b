"""Reading the official files: real row counts, their traps, errors that name file and line."""

import numpy as np
import pytest

from svt_jax.data.glue import TASKS, load_examples

# Numbers of rows and positives in the official release (train, dev, test).
COUNTS = {
    "cola": (8551, 1043, 1063),
    "sst2": (67349, 872, 1821),
    "mrpc": (3668, 408, 1725),
    "stsb": (5749, 1500, 1379),
    "rte": (2490, 277, 3000),
    "wnli": (635, 71, 146),
    "qnli": (None, 5463, 5463),
}


@pytest.mark.shared
@pytest.mark.parametrize("name", COUNTS)
def test_row_counts_of_the_real_files_come_out_exactly(shared, name):
    for split, count in zip(("train", "validation", "test"), COUNTS[name], strict=True):
        if count is None:
            continue
        examples = load_examples(TASKS[name], str(shared / "data" / "glue"), split)
        assert len(examples) == count
        assert (examples.labels is None) == (split == "test")
        assert all(examples.first)


@pytest.mark.shared
def test_labels_of_the_real_files_are_the_official_ones(shared):
    source = str(shared / "data" / "glue")
    assert np.bincount(load_examples(TASKS["cola"], source, "train").labels).tolist() == [2528, 6023]
    assert np.bincount(load_examples(TASKS["rte"], source, "validation").labels).tolist() == [146, 131]
    scores = load_examples(TASKS["stsb"], source, "train").labels
    assert (scores.min(), scores.max(), round(float(scores.mean()), 3)) == (0.0, 5.0, 2.701)
    mrpc = load_examples(TASKS["mrpc"], source, "train")
    assert mrpc.first[0].startswith('Amrozi accused his brother , whom he called " the witness "')
    assert np.bincount(mrpc.labels).tolist() == [1194, 2474]


def write(tmp_path, text, name="RTE/train.tsv"):
    path = tmp_path / name
    path.parent.mkdir(exist_ok=True)
    path.write_bytes(text.encode())
    return str(tmp_path)


def test_quotes_marks_and_control_characters_are_text(tmp_path):
    source = write(
        tmp_path,
        '\ufeffindex\tsentence1\tsentence2\tlabel\n0\t"Open quote\ta \x0b b\u2028c\tentailment\n1\t\tx ""\tnot_entailment\n',
    )
    examples = load_examples(TASKS["rte"], source, "train")
    assert examples.first == ['"Open quote', ""]
    assert examples.second == ["a \x0b b\u2028c", 'x ""']
    assert examples.labels.tolist() == [0, 1]


MNLI = "index\tpromptID\tpairID\tgenre\tsentence1_binary_parse\tsentence2_binary_parse\tsentence1_parse\tsentence2_parse\tsentence1\tsentence2"


def test_mnli_reads_matched_and_mismatched_files_by_their_own_columns(tmp_path):
    row = '0\t31193\t31193n\tfiction\t( a )\t( b )\t(ROOT a)\t(ROOT b)\tA "quoted" one.\tB.'
    write(
        tmp_path,
        f"{MNLI}\tlabel1\tgold_label\n{row}\tneutral\tneutral\n{row}\tneutral\tcontradiction\n",
        "MNLI/train.tsv",
    )
    five = "label1\tlabel2\tlabel3\tlabel4\tlabel5\tgold_label"
    for name, gold in (("matched", "entailment"), ("mismatched", "contradiction")):
        write(tmp_path, f"{MNLI}\t{five}\n{row}\ta\tb\tc\td\te\t{gold}\n", f"MNLI/dev_{name}.tsv")
        write(tmp_path, f"{MNLI}\n" + f"{row}\n" * len(name), f"MNLI/test_{name}.tsv")
    load = lambda split: load_examples(TASKS["mnli"], str(tmp_path), split)
    assert (load("train").first, load("train").second) == (['A "quoted" one.'] * 2, ["B."] * 2)
    assert load("train").labels.tolist() == [1, 2]
    assert load("validation").labels.tolist() == [0]
    assert load("validation_mismatched").labels.tolist() == [2]
    assert [(len(load(s)), load(s).labels) for s in ("test", "test_mismatched")] == [(7, None), (10, None)]
    assert TASKS["mnli"].parts("validation") == ["validation", "validation_mismatched"]
    assert TASKS["rte"].parts("validation") == ["validation"]


def test_qqp_leaves_out_the_two_halves_of_a_broken_row_and_says_so(tmp_path, caplog):
    rows = '0\t1\t2\tWhat is "it"?\t\t0\n1\t3\t4\t"Was he\n"\tWas he real?\t0\n2\t5\t6\tA?\tB?\t1\n'
    write(tmp_path, "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n" + rows, "QQP/train.tsv")
    examples = load_examples(TASKS["qqp"], str(tmp_path), "train")
    assert (examples.first, examples.second) == (['What is "it"?', "A?"], ["", "B?"])
    assert examples.labels.tolist() == [0, 1]
    assert "train.tsv: left out 2 rows with too few columns" in caplog.text
    write(tmp_path, "id\tquestion1\tquestion2\n0\tA?\tB?\n1\tC?\n", "QQP/test.tsv")
    with pytest.raises(ValueError, match="test.tsv, line 3: 2 columns"):  # a test row must not get lost
        load_examples(TASKS["qqp"], str(tmp_path), "test")


@pytest.mark.parametrize(
    ("rows", "words"),
    [("0\t1\n1\t2\n", "train.tsv has no row of 6 columns"), ("0\t1\n1\t3\t4\tA?\tB?\tyes\n", "'yes'")],
)
def test_a_file_that_cannot_be_used_is_told_in_one_line(tmp_path, caplog, rows, words):
    write(tmp_path, "id\tqid1\tqid2\tquestion1\tquestion2\tis_duplicate\n" + rows, "QQP/train.tsv")
    with pytest.raises(ValueError, match=words):
        load_examples(TASKS["qqp"], str(tmp_path), "train")
    assert caplog.text == ""


def test_a_file_without_header_keeps_its_first_row(tmp_path):
    source = write(tmp_path, "gj04\t1\t\tOne.\ngj04\t0\t*\tTwo.\n", "CoLA/train.tsv")
    examples = load_examples(TASKS["cola"], source, "train")
    assert (examples.first, examples.second, examples.labels.tolist()) == (["One.", "Two."], None, [1, 0])


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n", r"train.tsv, line 2: label 'maybe'; allowed is entailment or not_entailment"),
        ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tentailment\n1\ta\n", "train.tsv, line 3: 2 columns where 4 are expected"),
        ("index\tsentence1\tlabel\n0\ta\tentailment\n", r"lacks the columns \['sentence2'\]"),
        ("index\tsentence1\tsentence2\tlabel\n", "has no rows"),
        ("", "has no rows"),
        ("index\tsentence1\tsentence2\tlabel\n0\ta\tb\tmaybe\n1\ta\tb\tno\n", "line 2: label 'maybe'.*; .*line 3: label 'no'"),
    ],
)  # fmt: skip
def test_malformed_files_are_errors_that_name_the_place(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        load_examples(TASKS["rte"], write(tmp_path, text), "train")


@pytest.mark.parametrize("score", ["nan", "5.1", "-1", "high"])
def test_scores_outside_their_range_are_errors(tmp_path, score):
    source = write(tmp_path, f"sentence1\tsentence2\tscore\na\tb\t{score}\n", "STS-B/train.tsv")
    with pytest.raises(ValueError, match=f"line 2: label '{score}'; allowed is a number from 0 to 5"):
        load_examples(TASKS["stsb"], source, "train")


def test_missing_folder_file_and_wrong_encoding_are_errors(tmp_path):
    with pytest.raises(ValueError, match="data.source '.*nowhere' is not a folder; allowed are 'hub'"):
        load_examples(TASKS["rte"], str(tmp_path / "nowhere"), "train")
    with pytest.raises(ValueError, match="RTE/train.tsv does not exist"):
        load_examples(TASKS["rte"], str(tmp_path), "train")
    (tmp_path / "RTE").mkdir()
    (tmp_path / "RTE" / "train.tsv").write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match="allowed is UTF-8 text"):
        load_examples(TASKS["rte"], str(tmp_path), "train")


def test_the_hub_gives_the_same_examples_as_the_files(monkeypatch):
    import datasets

    table = {"sentence1": ["a", "c"], "sentence2": ["b", "d"], "label": [1, 0], "idx": [0, 1]}
    asked = []

    def load_dataset(*args, **kwargs):
        asked.append((args, kwargs))
        return datasets.Dataset.from_dict(table)

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    examples = load_examples(TASKS["mrpc"], "hub", "train")
    assert asked == [(("nyu-mll/glue", "mrpc"), {"split": "train"})]
    assert (examples.first, examples.second, examples.labels.tolist()) == (["a", "c"], ["b", "d"], [1, 0])
    assert load_examples(TASKS["mrpc"], "hub", "test").labels is None


@pytest.mark.parametrize(
    ("task", "changes", "words"),
    [
        ("rte", {"sentence1": ["a", None]}, "nyu-mll/glue rte train, row 1: sentence1 is None; allowed is text"),
        ("rte", {"label": [0, -1]}, "nyu-mll/glue rte train, row 1: label -1; allowed is a number from 0 to 1"),
        ("rte", {"label": [None, 1]}, "nyu-mll/glue rte train, row 0: label None; allowed"),
        (
            "stsb",
            {"label": [0.5, float("nan")]},
            "nyu-mll/glue stsb train, row 1: label nan; allowed is a number from 0 to 5",
        ),
        ("stsb", {"label": [None, 1.0]}, "nyu-mll/glue stsb train, row 0: label None; allowed"),
    ],
)
def test_a_missing_value_from_the_hub_is_an_error_that_names_the_row(monkeypatch, task, changes, words):
    import datasets

    table = {"sentence1": ["a", "c"], "sentence2": ["b", "d"], "label": [1, 0], **changes}
    monkeypatch.setattr(datasets, "load_dataset", lambda *_, **__: datasets.Dataset.from_dict(table))
    with pytest.raises(ValueError, match=words):
        load_examples(TASKS[task], "hub", "train")


def test_the_hubs_names_for_mnli(monkeypatch):
    import datasets

    asked = []

    def load_dataset(*args, split):
        asked.append(split)
        return datasets.Dataset.from_dict({"premise": ["a"], "hypothesis": ["b"], "label": [2]})

    monkeypatch.setattr(datasets, "load_dataset", load_dataset)
    splits = ["train", "validation", "validation_mismatched", "test", "test_mismatched"]
    examples = [load_examples(TASKS["mnli"], "hub", split) for split in splits]
    assert asked == ["train", "validation_matched", "validation_mismatched", "test_matched", "test_mismatched"]
    assert [e.labels is None for e in examples] == [False, False, False, True, True]
    assert (examples[0].first, examples[0].second) == (["a"], ["b"])


def test_an_unreachable_hub_is_an_error_that_says_what_to_do():
    with pytest.raises(ValueError, match="the hub does not give nyu-mll/glue rte.*give a folder"):
        load_examples(TASKS["rte"], "hub", "train")
