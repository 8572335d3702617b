"""A user's own task: files, classes, regression, errors."""

import pytest

from svt_jax.data.custom import custom_task, find_classes, load_custom
from svt_jax.run.config import DataConfig
from svt_jax.run.task_data import find_task, load_split


def folder(tmp_path, **files):
    for name, text in files.items():
        (tmp_path / name.replace("_", ".")).write_text(text)
    return str(tmp_path)


TSV = "a\tb\tlabel\nx\ty\tred\nx\tz\tblue\n"


def test_pairs_and_sentences_with_the_classes_of_the_training_file(tmp_path):
    source = folder(tmp_path, train_tsv=TSV, validation_csv='a,b,label\n"p, q",r,blue\n')
    config = DataConfig(task="custom", source=source, text_columns=["a", "b"], label_column="label")
    task = find_task(config)
    assert (task.labels, task.metrics) == (("blue", "red"), ("accuracy", "matthews_correlation", "f1"))
    train, held_out = (load_split(task, config, split) for split in ("train", "validation"))
    assert (train.first, train.second, train.labels.tolist()) == (["x", "x"], ["y", "z"], [1, 0])
    assert (held_out.first, held_out.second, held_out.labels.tolist()) == (["p, q"], ["r"], [0])
    assert load_custom(custom_task(["b"], "label", task.labels), source, "train").second is None


def test_classes_come_in_order_of_number_or_alphabet(tmp_path):
    for labels, expected in (("10 9 0 07", "0 07 9 10"), ("b a 10", "10 a b")):
        source = folder(tmp_path, train_tsv="t\tlabel\n" + "".join(f"x\t{name}\n" for name in labels.split()))
        assert find_classes(source, "label") == tuple(expected.split())


def test_classes_that_are_named_or_saved_keep_their_numbers(tmp_path):
    source = folder(tmp_path, train_tsv=TSV)
    given = {"task": "custom", "source": source, "text_columns": ["a"], "label_column": "label"}
    named = find_task(DataConfig(**given, labels=["red", "green", "blue"]))
    assert named.labels == ("red", "green", "blue")
    assert named.metrics == ("accuracy", "matthews_correlation")
    assert find_task(DataConfig(**given), ["red", "blue"]).labels == ("red", "blue")


def test_a_row_without_a_class_is_an_error_and_no_class_of_its_own(tmp_path):
    source = folder(tmp_path, train_csv="t,label\nx,red\ny,\nz,blue\nu, \n")
    with pytest.raises(ValueError, match="train.csv, line 3: label is empty; .*train.csv, line 5: label is empty"):
        find_classes(source, "label")


@pytest.mark.parametrize(
    "files",
    [
        {"train_csv": "t,label\nx,red\ny,NaN\nz,blue\n"},
        {"train_tsv": "t\tlabel\nx\tred\ny\tnan\nz\tblue\n"},
        {"train_jsonl": '{"t": "x", "label": "red"}\n{"t": "y", "label": NaN}\n{"t": "z", "label": "blue"}\n'},
        {"train_jsonl": '{"t": "x", "label": "red"}\n{"t": "y", "label": null}\n{"t": "z", "label": "blue"}\n'},
        {"train_jsonl": '{"t": "x", "label": "red"}\n{"t": "y"}\n{"t": "z", "label": "blue"}\n'},
    ],
)
def test_no_format_makes_a_class_of_a_missing_value(tmp_path, files):
    words = r"line [23]: (label is 'nan'|label is 'NaN'|label is NaN|label is null|it lacks \['label'\])"
    with pytest.raises(ValueError, match=words):
        find_classes(folder(tmp_path, **files), "label")


def test_a_number_in_two_spellings_is_no_two_classes(tmp_path):
    source = folder(tmp_path, train_jsonl='{"t": "x", "label": 1}\n{"t": "y", "label": 0}\n{"t": "z", "label": 1.0}\n')
    with pytest.raises(
        ValueError, match="has the classes '1' and '1.0' in 'label'; allowed is one spelling of a number"
    ):
        find_classes(source, "label")
    assert load_custom(custom_task(["t"], "label", ["0", "1", "1.0"]), source, "train").labels.tolist() == [1, 0, 2]


def test_true_and_false_of_json_are_the_classes_of_a_csv(tmp_path):
    source = folder(
        tmp_path,
        train_jsonl='{"t": "x", "label": true}\n{"t": "y", "label": false}\n',
        validation_csv="t,label\nx,false\ny,true\n",
    )
    task = custom_task(["t"], "label", find_classes(source, "label"))
    assert task.labels == ("false", "true")
    assert [load_custom(task, source, split).labels.tolist() for split in ("train", "validation")] == [[1, 0], [0, 1]]


def test_a_text_that_is_missing_is_an_error_in_each_split(tmp_path):
    task = custom_task(["a", "b"], "label", ["red", "blue"])
    source = folder(tmp_path, train_csv="a,b,label\nx,,red\n", test_jsonl='{"a": "x", "b": "y"}\n{"a": "", "b": "y"}\n')
    with pytest.raises(ValueError, match=r"train.csv, line 2: b is empty"):
        load_custom(task, source, "train")
    with pytest.raises(ValueError, match=r"test.jsonl, line 2: a is empty"):
        load_custom(task, source, "test")


def test_a_custom_task_takes_any_iterable():
    task = custom_task(iter(["a"]), "label", iter(["red", "blue"]))
    assert (task.text, task.labels, task.metrics[-1]) == (("a",), ("red", "blue"), "f1")


def test_regression_takes_any_finite_number(tmp_path):
    rows = '{"t": "x", "y": -3}\n{"t": "y", "y": "2.5"}\n'
    source = folder(tmp_path, train_jsonl=rows, validation_jsonl='{"t": "x", "y": "inf"}\n')
    config = DataConfig(task="custom", source=source, text_columns=["t"], label_column="y", labels="regression")
    task = find_task(config)
    assert (task.regression, task.num_labels, task.metrics) == (True, 1, ("spearmanr", "pearson"))
    assert load_split(task, config, "train").labels.tolist() == [-3.0, 2.5]
    with pytest.raises(ValueError, match=r"validation.jsonl, line 1: label 'inf'; allowed is a finite number"):
        load_split(task, config, "validation")


def test_a_test_file_may_have_labels_or_not(tmp_path):
    source = folder(tmp_path, test_tsv="a\nx\ny\n")
    task = custom_task(["a"], "label", ["red", "blue"])
    assert (len(load_custom(task, source, "test")), load_custom(task, source, "test").labels) == (2, None)
    folder(tmp_path, test_tsv="a\tlabel\nx\tblue\n")
    assert load_custom(task, source, "test").labels.tolist() == [1]


def test_missing_ambiguous_and_wrong_files_are_errors(tmp_path):
    task = custom_task(["a"], "label", ["red", "blue"])
    with pytest.raises(ValueError, match="data.source 'hub' is not a folder; the task custom needs one with train.tsv"):
        load_custom(task, "hub", "train")
    with pytest.raises(ValueError, match="holds nothing; allowed is exactly one of train.tsv, train.csv, train.jsonl"):
        load_custom(task, str(tmp_path), "train")
    source = folder(tmp_path, train_tsv="a\tlabel\nx\tred\ny\tgreen\n", validation_tsv=TSV, validation_csv="a\n")
    with pytest.raises(ValueError, match="train.tsv, line 3: label 'green'; allowed is red or blue"):
        load_custom(task, source, "train")
    with pytest.raises(ValueError, match="holds train.tsv, validation.csv, validation.tsv; allowed is exactly one of"):
        load_custom(task, source, "validation")
    folder(tmp_path, train_tsv="a\tlabel\nx\tred\n")
    with pytest.raises(ValueError, match="has the one class 'red' in 'label'; allowed are two or more"):
        find_classes(source, "label")
    with pytest.raises(ValueError, match=r"lacks the columns \['colour'\]"):
        find_classes(source, "colour")
