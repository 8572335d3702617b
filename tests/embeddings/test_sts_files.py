"""Reading STS files: real counts, their traps, errors that name file and line."""

import json

import pytest

from svt_jax.embeddings.sts_files import load_sts, read_corpus, read_pairs


@pytest.mark.shared
def test_the_real_files_come_out_whole(shared):
    tasks = load_sts(shared / "data" / "sts")
    counts = {task.name: sum(map(len, task.files)) for task in tasks}
    assert counts == {
        "sts12": 3108,
        "sts13": 1500,
        "sts14": 3750,
        "sts15": 3000,
        "sts16": 1186,
        "stsb": 1379,
        "sickr": 4927,
    }
    files = [file for task in tasks for file in task.files]
    assert len(files) == 26
    assert len({s for file in files for s in (*file.first, *file.second)}) == 26083
    par = tasks[0].files[0]
    assert (par.name, len(par), round(float(par.scores.mean()), 3)) == ("sts12.MSRpar.tsv", 750, 3.271)


def write(folder, texts, index=None):
    for name, text in texts.items():
        (folder / name).write_bytes(text.encode())
    if index is None:
        files = [{"file": name, "pairs": text.count("\n")} for name, text in texts.items()]
        index = json.dumps({"a": {"pairs": 0, "files": files}})
    (folder / "tasks.json").write_text(index)
    return folder


def test_quotes_spaces_and_separators_are_text(tmp_path):
    write(tmp_path, {"x.tsv": '5.000\t"Open quote\ta \x0b b\u2028c\n1.80\t x""\ty \r\n'})
    (task,) = load_sts(tmp_path)
    assert task.files[0].first == ['"Open quote', ' x""']
    assert task.files[0].second == ["a \x0b b\u2028c", "y "]
    assert task.files[0].scores.tolist() == [5.0, 1.8]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("1\ta\tb\n1\ta\n", r"x.tsv, line 2: 2 columns where 3 are expected .score, sentence1, sentence2."),
        ("1\ta\tb\n\n2\ta\tb\n", "x.tsv, line 2: 1 columns"),
        ("1\ta\tb\n5.5\ta\tb\n", "x.tsv, line 2: score '5.5', allowed is a number from 0 to 5"),
        ("nan\ta\tb\n", "x.tsv, line 1: score 'nan'"),
        ("good\ta\tb\n", "x.tsv, line 1: score 'good'"),
        ("1\t \tb\n", "x.tsv, line 1: sentence1 is empty"),
        ("6\ta\tb\n1\ta\n1\ta\t\n", "line 1: score '6'.*; .*line 2: 2 columns.*; .*line 3: sentence2 is empty"),
        ("7\ta\tb\n" * 8, "line 5: score '7'.*; and 3 more. Correct the files"),
        ("", "x.tsv has no rows. Correct the files, or download them again"),
    ],
)
def test_malformed_lines_are_named_and_listed_at_once(tmp_path, text, words):
    with pytest.raises(ValueError, match=words):
        load_sts(write(tmp_path, {"x.tsv": text}))


def test_problems_of_several_files_come_together(tmp_path):
    with pytest.raises(ValueError, match="x.tsv, line 1: score '9'.*y.tsv, line 1: 1 columns"):
        load_sts(write(tmp_path, {"x.tsv": "9\ta\tb\n", "y.tsv": "z\n"}))


@pytest.mark.parametrize(
    ("index", "words"),
    [
        ("{", "tasks.json is not a table of tasks"),
        ('{"a": 3}', "tasks.json is not a table of tasks"),
        ("{}", "tasks.json has no task"),
        ('{"a": {"files": []}}', "a task without files"),
        ('{"a": {"files": [{"file": "x.tsv", "pairs": 1}, {"file": "x.tsv", "pairs": 1}]}}', "a file twice"),
        ('{"a": {"files": [{"file": "x.tsv", "pairs": 2}]}}', "x.tsv: 1 pairs where tasks.json says 2"),
        ('{"a": {"files": [{"file": "z.tsv", "pairs": 2}]}}', "z.tsv cannot be read"),
    ],
)
def test_a_bad_index_is_refused(tmp_path, index, words):
    with pytest.raises(ValueError, match=words):
        load_sts(write(tmp_path, {"x.tsv": "1\ta\tb\n"}, index))


def test_missing_or_binary_files_are_named(tmp_path):
    with pytest.raises(ValueError, match=r"tasks.json does not exist; the folder of --data"):
        load_sts(tmp_path)
    (tmp_path / "x.tsv").write_bytes(b"1\t\xff\tb\n")
    with pytest.raises(ValueError, match="x.tsv cannot be read .*UTF-8"):
        read_pairs(tmp_path / "x.tsv")


def test_a_corpus_is_text_or_pairs_or_a_table_with_a_header(tmp_path, caplog):
    (tmp_path / "a.txt").write_text("one\ttab\n\ntwo\none\ttab\n")
    assert read_corpus(tmp_path / "a.txt") == ["one\ttab", "two"]
    (tmp_path / "b.tsv").write_text("1\ta\tb\n2\tb\tc\n")
    assert sorted(read_corpus(tmp_path / "b.tsv")) == ["a", "b", "c"]
    (tmp_path / "c.tsv").write_text("index\tsentence1\tsentence2\n0\tu\tv\n")
    assert read_corpus(tmp_path / "c.tsv") == ["u", "v"]
    (tmp_path / "qqp.tsv").write_text("id\tquestion1\tquestion2\tis_duplicate\n0\tu\tv\t1\n1\tcut\n off\tw\t0\n")
    assert read_corpus(tmp_path / "qqp.tsv") == ["u", "v"], "as in QQP's official files, a row is cut in two"
    assert "left out 2 rows with too few columns" in caplog.text
    (tmp_path / "cola.tsv").write_text("gj04\t1\t\tu\ngj04\t0\t*\tv\n")
    assert read_corpus(tmp_path / "cola.tsv") == ["u", "v"]
    (tmp_path / "mrpc.txt").write_text("\ufeffQuality\t#1 ID\t#2 ID\t#1 String\t#2 String\r\n1\t2\t3\tu\tv\r\n")
    assert read_corpus(tmp_path / "mrpc.txt") == ["u", "v"]
    (tmp_path / "d.csv").write_text('id,sentence1,sentence2\n0,"u, or\nv",\n1,w,x\n')
    assert read_corpus(tmp_path / "d.csv") == ["u, or\nv", "w", "x"]
    assert "d.csv: left out 1 empty texts" in caplog.text
    (tmp_path / "e.jsonl").write_text('{"label": null, "text": "u"}\n{"label": 1, "text": "v"}\n')
    assert read_corpus(tmp_path / "e.jsonl") == ["u", "v"]


@pytest.mark.shared
def test_a_corpus_may_be_any_of_glues_own_files(shared):
    numbers = {}
    for path in sorted((shared / "data" / "glue").glob("*/*")):
        if path.name == "dev_ids.tsv":
            with pytest.raises(ValueError, match=r"dev_ids.tsv, line 1: 2 columns, .'1606495'"):
                read_corpus(path)
            continue
        lines, found = path.read_text(encoding="utf-8-sig").split("\n"), read_corpus(path)
        assert not any("\t" in sentence or sentence in ("sentence", "#1 String") for sentence in found)
        assert all(any(sentence in line for line in lines[:5]) for sentence in found[:2]), path
        numbers[f"{path.parent.name}/{path.name}"] = len(found)
    assert (numbers["CoLA/dev.tsv"], numbers["CoLA/test.tsv"], numbers["SST-2/dev.tsv"]) == (1039, 1060, 872)
    assert numbers["MRPC/train.tsv"] + 408 * 2 > numbers["MRPC/msr_paraphrase_train.txt"] > numbers["MRPC/train.tsv"]


@pytest.mark.parametrize(
    ("name", "text", "words"),
    [
        ("a.txt", "\n \n", "a.txt holds no sentence"),
        ("a.tsv", "index\tsentence\n0\n", "a.tsv, line 2: 1 columns where 2 are expected"),
        ("a.tsv", "0\tx\n", "a.tsv, line 1: 2 columns, .'0', 'x'.; allowed are a header with one of .*sentence1"),
        ("a.csv", "left,right\nx,y\n", "a.csv, line 1: 2 columns, .'left', 'right'.; allowed are a header"),
        ("a.jsonl", '{"review": "x"}\n', "a.jsonl, line 1: 1 columns, .'review'.; allowed are a header"),
        ("a.jsonl", "x\ny\n", "a.jsonl, line 1: this is not JSON .*; .*line 2"),
        ("a.tsv", "", "a.tsv has no rows"),
        ("a.tsv", "word " * 99, "a.tsv, line 1: 1 columns, .'word word word word word word ...'.; allowed"),
        ("a.jsonl", '{"text": "x"}\n{"text": null}\n', "a.jsonl, line 2: text is null; allowed is text"),
        (
            "a.txt",
            "x\ty\nz\tw\n",
            "a.txt is a table: 2 columns in every line; allowed in a .txt is one sentence a line",
        ),
        ("a.txt", '{"text": "x"}\n{"text": "y"}\n', "a.txt is a table: every line is a JSON object; allowed"),
        ("a.md", "x\n", "a.md ends in '.md'; allowed are .tsv, .csv, .jsonl and .txt"),
        ("corpus", "x\n", "corpus ends in ''; allowed"),
        ("a.tsv", "1\tx\ty\n7\tz\tw\n", "a.tsv, line 2: score '7'"),
        ("a.tsv", "gj04\t1\t\tx\ngj04\t0\n", "a.tsv, line 2: 2 columns where 4 are expected .source, label"),
    ],
)
def test_a_bad_corpus_is_refused(tmp_path, name, text, words):
    (tmp_path / name).write_text(text)
    with pytest.raises(ValueError, match=words):
        read_corpus(tmp_path / name)


def test_a_lone_carriage_return_is_text(tmp_path):
    (tmp_path / "a.tsv").write_bytes(b"1.0\tone\rpart\ttwo\r\n")
    pairs = read_pairs(tmp_path / "a.tsv")
    assert (pairs.first, pairs.second) == (["one\rpart"], ["two"])
