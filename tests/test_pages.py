"""The pages of docs/ are true: their Python runs and prints what they show, and their commands run."""

import json
import re
import shlex

import pytest

from tests.pages import MODEL, ROOT, ROWS, SHORT, assert_prints, blocks, cut, load, run_python, run_shell, shown, text

PAGES = sorted(str(page.relative_to(ROOT)) for page in (ROOT / "docs").glob("*.md"))


def marked(page):
    marks = [pytest.mark.slow, *([pytest.mark.model] if MODEL in text(page) else [])]
    return pytest.param(page, marks=marks, id=page.removeprefix("docs/"))


@pytest.mark.parametrize("page", [marked(page) for page in PAGES if blocks(page, "python")])
def test_the_examples_of_a_page_run(page, tmp_path, request):
    model = request.getfixturevalue("minilm") if MODEL in text(page) else None
    codes, expected = zip(*shown(page), strict=True)
    for output, says in zip(run_python(codes, model=model, cwd=tmp_path), expected, strict=True):
        if says is not None:
            assert_prints(output, says)


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.model
def test_the_sts_commands_run_on_real_data(tmp_path, shared, minilm):
    """The page's own lines, on some rows of the smallest task."""
    (script,) = blocks("docs/sts.md", "bash")
    index = json.loads((shared / "data" / "sts" / "tasks.json").read_text())
    files = [entry["file"] for entry in index["sts16"]["files"]]
    for file in files:
        cut(shared / "data" / "sts" / file, tmp_path / "sts" / file, ROWS)
    index = {"sts16": {"files": [{"file": file, "pairs": ROWS} for file in files]}}
    (tmp_path / "sts" / "tasks.json").write_text(json.dumps(index))
    corpus = cut(shared / "data" / "glue" / "STS-B" / "dev.tsv", tmp_path / "dev.tsv", 501)
    script = re.sub(r"^(STS|CORPUS|OUT)=.*\n", "", script, flags=re.MULTILINE)
    run_shell(script, MODEL=str(minilm), STS=str(tmp_path / "sts"), OUT=str(tmp_path), CORPUS=str(corpus))
    assert len(json.loads((tmp_path / "paper.json").read_text())) == 6
    assert json.loads((tmp_path / "honest.json").read_text())["fit"]["sentences"] > 800


def test_the_fine_tuning_commands_are_those_of_the_readme():
    (script,) = blocks("docs/fine-tuning.md", "bash")
    assert set(script.splitlines()) == set(
        next(block for block in blocks("README.md", "bash") if "--no-deps" in block).splitlines()
    )


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.model
def test_the_comparison_command_runs_on_real_data(tmp_path, glue, two_layers):
    (script,) = blocks("docs/seeds.md", "bash")
    script = script.replace("--output comparison", f"--output {tmp_path} {SHORT}").replace("0,1,2", "0")
    run_shell(script, MODEL=str(two_layers), GLUE=str(glue))
    assert len((tmp_path / "compare.csv").read_text().splitlines()) == 3  # a head, two settings


@pytest.mark.slow
@pytest.mark.model
def test_the_commands_of_a_users_own_task_run(tmp_path, two_layers):
    (script,) = blocks("docs/extending.md", "bash")
    script = script.replace("runs/verdicts", f"{tmp_path}/verdicts")
    script = script.replace("--run.name", f"--run.output_dir {tmp_path} --optim.batch_size 8 {SHORT} --run.name")
    rows = [["question", "answer", "verdict"], ["is it red?", "it is blue", "no"], ["is it red?", "it is", "yes"]]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.tsv").write_text("".join("\t".join(row) + "\n" for row in [rows[0], *rows[1:] * 8]))
    out = run_shell(script, MODEL=str(two_layers), FOLDER=str(tmp_path))
    assert '"examples": 16' in out


@pytest.mark.slow
def test_the_commands_that_read_a_run_run(tmp_path):
    """The page's own lines, on a run of the demo cut to two steps."""
    (block,) = blocks("docs/probing.md", "bash")
    run = f"python train.py --run.output_dir {tmp_path} --optim.max_steps 2\n"
    run_shell(
        run + block.replace("runs/demo", f"{tmp_path}/demo").replace("--output spectra", f"--output {tmp_path}/spectra")
    )
    assert len(json.loads((tmp_path / "spectra" / "spectrum.json").read_text())["states"]) == 5


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.model
def test_the_commands_of_the_page_of_spectra_run(tmp_path, glue, two_layers):
    """The page's own lines with other folders; training is cut to two steps."""
    (script,) = blocks("docs/spectra.md", "bash")
    script = script.replace("FOLDER", str(two_layers)).replace("GLUE", str(glue))
    script = script.replace("--optim.epochs 3", f"{SHORT} --run.output_dir {tmp_path}/runs")
    script = script.replace("--task mrpc", "--task mrpc --data.max_length 32")
    script = script.replace("--run runs/", f"--run {tmp_path}/runs/").replace("--output ", f"--output {tmp_path}/")
    run_shell(script)
    for name, states in (("pretrained", 3), ("plain", 3), ("soft_decay", 5)):
        reading = json.loads((tmp_path / "spectra" / name / "spectrum.json").read_text())
        assert len(reading["states"]) == states


@pytest.mark.slow
@pytest.mark.model
def test_the_command_of_the_atlas_adds_a_model(tmp_path, minilm, monkeypatch, capsys):
    (script,) = blocks("docs/atlas.md", "bash")
    command, texts, *models = shlex.split(script.removeprefix("python ").replace("--texts ", ""))
    atlas = load(ROOT / command)
    monkeypatch.setattr(atlas, "READINGS", tmp_path / "atlas.json")
    monkeypatch.setattr(atlas, "PICTURES", tmp_path)
    (tmp_path / texts).write_text("One text a line.\n\nAnd another one, which is longer.\n")
    named = models[-1].replace("path/to/folder", str(minilm))
    monkeypatch.setattr("sys.argv", [command, "--texts", str(tmp_path / texts), named])
    atlas.main()
    readings = json.loads((tmp_path / "atlas.json").read_text())
    assert [(name, each["texts"], len(each["states"])) for name, each in readings.items()] == [("mine", 2, 7)]
    assert capsys.readouterr().out.count("| mine | 6 |") == 3
    assert (tmp_path / "atlas.svg").is_file()


def test_no_other_command_goes_untested():
    """Tests here run them; those of a pod are parsed in test_docs."""
    known = {
        "atlas",
        "sts",
        "fine-tuning",
        "seeds",
        "extending",
        "probing",
        "spectra",
        "first-hour-on-a-pod",
        "object-stores",
    }
    assert {page.removeprefix("docs/").removesuffix(".md") for page in PAGES if blocks(page, "bash")} == known


def test_the_table_of_contents_names_what_is_there():
    (section,) = re.findall(r"^## Where things live\n(.*?)^`configs/`", text("CONTRIBUTING.md"), re.M | re.DOTALL)
    table = re.findall(r"^\| `(\w+(?:/|\.py))` \|", section, re.MULTILINE)
    package = ROOT / "svt_jax"
    there = {p.name + "/" for p in package.iterdir() if (p / "__init__.py").is_file()}
    there |= {p.name for p in package.glob("[!_]*.py")}
    assert set(table) == there
