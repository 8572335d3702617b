"""Columns of TSV, CSV and JSON lines: every row as it stands, errors that name file and line."""

import csv

import pytest

from svt_jax.data.tables import read_columns


def write(tmp_path, name, text):
    path = tmp_path / name
    path.write_bytes(text if isinstance(text, bytes) else text.encode())
    return path


def test_the_three_formats_give_the_same_columns(tmp_path):
    expected = {"text": ['say "no", twice', " b ", ""], "label": ["1", "1.0", "true"]}
    files = {
        "a.tsv": 'label\ttext\n1\tsay "no", twice\n1.0\t b \ntrue\t\n',
        "a.csv": 'label,text\r\n1,"say ""no"", twice"\r\n1.0, b \r\ntrue,\r\n',
        "a.jsonl": '{"label": 1, "text": "say \\"no\\", twice"}\n{"text": " b ", "label": 1.0}\n{"label": true, "text": ""}\n',
    }
    for name, text in files.items():
        columns = read_columns(write(tmp_path, name, text), ["text", "label"], may_be_empty=["text"])
        assert columns.values == expected, name


def test_a_value_of_json_is_the_text_that_stands_there(tmp_path):
    written = ["1", "-0", "1e2", "1.50", "12345678901234567890123", "true", "false"]
    path = write(tmp_path, "a.jsonl", "".join(f'{{"a": {value}}}\n{{"a": "{value}"}}\n' for value in written))
    assert read_columns(path, ["a"]).values["a"] == [value for value in written for _ in range(2)]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        (
            "a.tsv",
            "a\tb\nx\t1\n\t2\n \t3\ny\n",
            "line 3: a is empty; .*line 4: a is empty; .*line 5: 1 columns where 2",
        ),
        ("a.csv", 'a,b\nx,1\n"",2\n ,3\ny\n', "line 3: a is empty; .*line 4: a is empty; .*line 5: 1 columns where 2"),
        (
            "a.jsonl",
            '{"a": "x"}\n{"a": ""}\n{"a": null}\n{"a": NaN}\n{"b": 1}\n{"a": [1]}\n',
            "line 2: a is empty; .*line 3: a is null; .*line 4: a is NaN; .*line 5: it lacks .'a'.*line 6: a is .*allowed",
        ),
    ],
)
def test_a_missing_value_is_an_error_with_its_line_in_every_format(tmp_path, name, text, words):
    with pytest.raises(ValueError, match=words):
        read_columns(write(tmp_path, name, text), ["a"])


def test_a_value_missing_in_a_column_that_nobody_reads_is_none_of_our_business(tmp_path):
    for name, text in (("a.tsv", "a\tb\nx\t\n"), ("a.csv", "a,b\nx,\n"), ("a.jsonl", '{"a": "x", "b": null}\n')):
        assert read_columns(write(tmp_path, name, text), ["a"]).values == {"a": ["x"]}


def test_only_a_newline_ends_a_line_of_a_tsv(tmp_path):
    text = 'a\tb\n"x\ry\t\x08\x0b\x0c\x1c\x85\u2028\u2029\n\ufeffz \t\n'
    columns = read_columns(write(tmp_path, "a.tsv", "\ufeff" + text), ["a", "b"], may_be_empty=["b"])
    assert columns.values == {"a": ['"x\ry', "\ufeffz "], "b": ["\x08\x0b\x0c\x1c\x85\u2028\u2029", ""]}
    assert columns.lines == [2, 3]


@pytest.mark.parametrize("end", ["", "\n", "\r\n", "\n\n\n"])
def test_the_end_of_a_file_adds_no_row(tmp_path, end):
    assert len(read_columns(write(tmp_path, "a.tsv", "a\tb\n1\t\n2\t" + end), ["a"])) == 2
    assert len(read_columns(write(tmp_path, "a.csv", "a,b\n1,\n2," + end), ["a"])) == 2
    assert len(read_columns(write(tmp_path, "a.jsonl", '{"a": 1}\n{"a": 2}' + end), ["a"])) == 2


def test_a_line_of_a_single_column_may_be_empty(tmp_path):
    columns = read_columns(write(tmp_path, "a.tsv", "a\n\nx\n\n"), ["a"], may_be_empty=["a"])
    assert columns.values == {"a": ["", "x", ""]}


def test_a_quoted_newline_of_a_csv_is_text_and_lines_stay_right(tmp_path):
    path = write(tmp_path, "a.csv", 'a,b\n"one\ntwo",1\nthree,2\n')
    columns = read_columns(path, ["a"])
    assert columns.values["a"] == ["one\ntwo", "three"]
    assert columns.lines == [2, 4]


def test_a_cell_of_a_csv_may_be_a_long_document(tmp_path):
    before = csv.field_size_limit()
    assert read_columns(write(tmp_path, "a.csv", "a,b\n" + "x" * 200_000 + ",1\n"), ["a"]).values["a"] == [
        "x" * 200_000
    ]
    assert csv.field_size_limit() == before


def test_an_optional_column_is_there_for_all_rows_or_for_none(tmp_path):
    assert read_columns(write(tmp_path, "a.tsv", "a\n1\n"), ["a"], optional=["b"]).values == {"a": ["1"]}
    assert read_columns(write(tmp_path, "a.jsonl", '{"a": 1}\n'), ["a"], optional=["b"]).values == {"a": ["1"]}
    for rows in ('{"a": 1, "b": 2}\n{"a": 1}\n', '{"a": 1}\n{"a": 1, "b": 2}\n'):
        with pytest.raises(ValueError, match=r"line [12]: it lacks \['b'\] and has \['a'\]"):
            read_columns(write(tmp_path, "a.jsonl", rows), ["a"], optional=["b"])


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.tsv", "", "has no rows"),
        ("a.tsv", "a\tb\n", "has no rows"),
        ("a.jsonl", "\n\n", "has no rows"),
        ("a.tsv", "x\ty\n1\t2\n", r"lacks the columns \['a'\]; it has \['x', 'y'\]"),
        ("a.tsv", "a\ta\n1\t2\n", r"names the columns \['a'\] more than once"),
        ("a.tsv", "a\tb\n1\t2\n3\n", "line 3: 1 columns where 2 are expected"),
        ("a.tsv", "a\tb\n1\t2\n\n3\t4\n", "line 3: 1 columns where 2 are expected"),
        ("a.csv", 'a,b\n1,2\n"3,4\n', "a.csv, line 3: .*allowed is CSV with double quotes"),
        ("a.csv", 'a,b\n"1"x,2\n', "a.csv, line 2: "),
        ("a.jsonl", '{"a": 1}\n{"a": \n', "line 2: this is not JSON"),
        ("a.jsonl", '{"a": "x", "a": "y"}\n', "line 1: this is not JSON .'a' stands more than once."),
        ("a.jsonl", "[" * 100_000, "line 1: this is not JSON"),
        ("a.parquet", "a\n1\n", "a.parquet ends in '.parquet'; allowed are .tsv, .csv, .jsonl and .txt"),
        ("a.jsonl", "[1]\n", "line 1: allowed is an object"),
        ("a.jsonl", '{"a": null}\n', "line 1: a is null; allowed is text, a number, true or false"),
        ("a.jsonl", '{"a": {"c": 1}}\n', "line 1: a is .*; allowed is text, a number, true or false"),
        ("a.jsonl", '{"b": 1}\n', r"line 1: it lacks \['a'\] and has \['b'\]"),
        ("a.tsv", b"a\tb\n\xff\t1\n", "allowed is UTF-8 text"),
        ("a.jsonl", '{"a": "x"}\n{"a": "the kite \\ud83d"}\n', r"line 2: a holds half of a surrogate pair, 'the kite .ud83d'"),
    ],
)  # fmt: skip
def test_malformed_files_are_errors_that_name_the_place(tmp_path, name, text, words):
    with pytest.raises(ValueError, match=words):
        read_columns(write(tmp_path, name, text), ["a"])
