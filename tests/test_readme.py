"""The README is true: its Python runs, and CI calls its commands."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SHORT = "--optim.max_steps 2 --data.max_length 32"
ROWS = 64  # in each file: two batches to train on, one to score
README = (ROOT / "README.md").read_text(encoding="utf-8")


def blocks(language):
    return re.findall(rf"^```{language}\n(.*?)^```", README, re.MULTILINE | re.DOTALL)


def run_block(code, *, cwd=None):
    """Runs the code; packages that are not installed here have stand-ins."""
    path = os.pathsep.join([str(ROOT / "tests" / "stand_ins"), *filter(None, [os.environ.get("PYTHONPATH")])])
    environment = {**os.environ, "PYTHONPATH": path}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=cwd, env=environment, capture_output=True, text=True, timeout=300, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_the_transformation_example_runs():
    out = run_block(blocks("python")[0])
    before, after = (float(x) for x in re.search(r"first: ([\d.]+) before, ([\d.]+) after", out).groups())
    assert after > 2 * before


@pytest.mark.slow
@pytest.mark.model
def test_the_encoder_example_runs(minilm, tmp_path):
    out = run_block(blocks("python")[3].replace("path/to/model", str(minilm)), cwd=tmp_path)
    assert "(1, 4, 384) (1, 384)" in out
    assert re.search(r"\{5: Array\(-0.(2|1999)", out)


@pytest.mark.slow
@pytest.mark.parametrize("page", sorted((ROOT / "docs").glob("*.md")), ids=lambda page: page.name)
def test_the_examples_of_a_page_run(page):
    for code in re.findall(r"^```python\n(.*?)^```", page.read_text(encoding="utf-8"), re.MULTILINE | re.DOTALL):
        run_block(code)


@pytest.mark.slow
@pytest.mark.model
def test_the_probe_example_prints_what_is_shown(minilm, tmp_path):
    out = run_block(blocks("python")[2].replace("path/to/model", str(minilm)), cwd=tmp_path)
    (shown,) = re.findall(r"^```\n(2 texts: means.*?)^```", README, re.MULTILINE | re.DOTALL)
    ours, theirs = (re.findall(r"[\w-]+(?:\.\d+)?", text) for text in (out, shown))
    assert len(ours) == len(theirs)
    for a, b in zip(ours, theirs, strict=True):  # the last digit may differ from machine to machine
        assert a == b or abs(float(a) - float(b)) < 2e-3
    assert {path.name for path in (tmp_path / "probe").iterdir()} >= {"probe.json", "measures.png", "measures.svg"}


@pytest.mark.slow
@pytest.mark.model
def test_the_search_example_finds_the_answers_before_and_after(minilm, tmp_path):
    out = run_block(blocks("python")[4].replace("path/to/model", str(minilm)), cwd=tmp_path)
    found = re.findall(r"^(before|after): .*\? -> (\w+) .*\((.*), mean of all (.*)\)$", out, re.MULTILINE)
    assert [(when, word) for when, word, _, _ in found] == [
        ("before", "You"),
        ("before", "Parcels"),
        ("after", "You"),
        ("after", "Parcels"),
    ]
    mean = {when: float(value) for when, _, _, value in found}
    assert mean["after"] < mean["before"]
    assert (tmp_path / "dense" / "model.safetensors").is_file()


def run_shell(script, **environment):
    """Runs lines of bash in the repository, with this interpreter."""
    done = subprocess.run(
        ["bash", "-ec", script.replace("python ", f"{sys.executable} ")],
        cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=500, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def cut(source, target, lines):
    """Writes the first lines of a file into another one."""
    target.parent.mkdir(parents=True, exist_ok=True)
    target.write_bytes(b"".join(line + b"\n" for line in source.read_bytes().split(b"\n")[:lines]))
    return target


@pytest.fixture
def glue(tmp_path, shared):
    """A few real rows of two tasks of GLUE."""
    for name in ("RTE", "MRPC"):
        for file in ("train.tsv", "dev.tsv"):
            cut(shared / "data" / "glue" / name / file, tmp_path / "glue" / name / file, 1 + ROWS)
    return tmp_path / "glue"


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.model
def test_the_sts_commands_run_on_real_data(tmp_path, shared, minilm):
    """The README's own lines, on some rows of the smallest task."""
    (sts_block,) = [block for block in blocks("bash") if "eval.py sts" in block]
    files = [
        entry["file"] for entry in json.loads((shared / "data" / "sts" / "tasks.json").read_text())["sts16"]["files"]
    ]
    for file in files:
        cut(shared / "data" / "sts" / file, tmp_path / "sts" / file, ROWS)
    index = {"sts16": {"files": [{"file": file, "pairs": ROWS} for file in files]}}
    (tmp_path / "sts" / "tasks.json").write_text(json.dumps(index))
    corpus = cut(shared / "data" / "glue" / "STS-B" / "dev.tsv", tmp_path / "dev.tsv", 501)
    sts_block = re.sub(r"^(STS|CORPUS|OUT)=.*\n", "", sts_block, flags=re.MULTILINE)
    run_shell(sts_block, MODEL=str(minilm), STS=str(tmp_path / "sts"), OUT=str(tmp_path), CORPUS=str(corpus))
    assert len(json.loads((tmp_path / "paper.json").read_text())) == 6
    assert json.loads((tmp_path / "honest.json").read_text())["fit"]["sentences"] > 800


def test_no_other_python_block_goes_untested():
    assert len(blocks("python")) == 5


def test_ci_calls_the_readmes_set_up_commands_as_they_stand():
    script = (ROOT / ".ci" / "run").read_text()
    for command in blocks("bash")[0].strip().splitlines():
        assert command in script, command


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.model
def test_the_fine_tuning_commands_run_on_real_data(tmp_path, glue, minilm):
    """The README's own lines, cut to two steps of 32 tokens; installing the model is left to CI."""
    lines = [line for line in blocks("bash")[1].strip().splitlines() if not line.startswith(("pip ", "GLUE="))]
    script = "\n".join(lines).replace("runs/rte", f"{tmp_path}/rte")
    script = script.replace("--run.name rte", f"--run.name rte --run.output_dir {tmp_path} {SHORT}")
    script = script.replace("rte-model", f"{tmp_path}/rte-model").replace(
        "--task rte", "--task rte --data.max_length 32"
    )
    out = run_shell(script, GLUE=str(glue))
    assert (tmp_path / "rte" / "report.html").is_file()
    of_run, of_model = (json.loads(line) for line in out.splitlines() if line.startswith("{"))
    assert of_run["examples"] == ROWS
    assert (of_model["examples"], of_model["metrics"]) == (ROWS, of_run["metrics"])
    out = run_block(blocks("python")[1], cwd=tmp_path)
    assert re.fullmatch(r"(not_)?entailment \(2, 2\)\n", out)


@pytest.mark.slow
def test_the_comparison_of_the_demo_runs(tmp_path):
    """The README's own line, cut to two steps."""
    (command,) = [block for block in blocks("bash") if block.startswith("svt-jax eval compare")]
    command = command.replace("svt-jax", "python -m svt_jax").replace("--output comparison", f"--output {tmp_path}/out")
    out = run_shell(f"{command.strip()} --optim.max_steps 2")
    assert "runs 1 to 4 of 8, side by side: plain-seed0, plain-seed1, plain-seed2, plain-seed3" in out
    assert "runs 5 to 8 of 8, side by side: demo-seed0" in out
    shown = (tmp_path / "out" / "compare.md").read_text()
    assert all(f" {name} |" in shown for name in ("metric", "setting", "n", "mean ± std", "difference"))


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.model
def test_the_comparison_command_runs_on_real_data(tmp_path, glue, minilm):
    (script,) = [block for block in blocks("bash") if block.startswith("python eval.py compare")]
    script = script.replace("--output comparison", f"--output {tmp_path} {SHORT}").replace("0,1,2", "0")
    run_shell(script, MODEL=str(minilm), GLUE=str(glue))
    assert len((tmp_path / "compare.csv").read_text().splitlines()) == 3  # a head, two settings


@pytest.mark.slow
@pytest.mark.model
def test_the_commands_of_a_users_own_task_run(tmp_path, minilm):
    (script,) = re.findall(
        r"^```bash\n(.*?)^```", (ROOT / "docs" / "extending.md").read_text(), re.MULTILINE | re.DOTALL
    )
    script = script.replace("runs/verdicts", f"{tmp_path}/verdicts")
    script = script.replace("--run.name", f"--run.output_dir {tmp_path} --optim.batch_size 8 {SHORT} --run.name")
    rows = [["question", "answer", "verdict"], ["is it red?", "it is blue", "no"], ["is it red?", "it is", "yes"]]
    for split in ("train", "validation"):
        (tmp_path / f"{split}.tsv").write_text("".join("\t".join(row) + "\n" for row in [rows[0], *rows[1:] * 8]))
    out = run_shell(script, MODEL=str(minilm), FOLDER=str(tmp_path))
    assert '"examples": 16' in out


def test_no_other_command_goes_untested():
    """Set-up, fine-tuning, report, spectrum, comparison and STS: tests here run them, or CI calls them."""
    assert len(blocks("bash")) == 6


@pytest.mark.slow
def test_the_spectra_commands_run(tmp_path):
    """The README's own lines, on a run of the demo cut to two steps."""
    (block,) = [block for block in blocks("bash") if "eval.py spectrum" in block]
    run = f"python train.py --run.output_dir {tmp_path} --optim.max_steps 2\n"
    script = run + block.replace("runs/demo", f"{tmp_path}/demo").replace(
        "--output spectra", f"--output {tmp_path}/spectra"
    )
    run_shell(script)
    assert len(json.loads((tmp_path / "spectra" / "spectrum.json").read_text())["states"]) == 5


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.model
def test_the_commands_of_the_page_of_spectra_run(tmp_path, glue, minilm):
    """The page's own lines with other folders; training is cut to two steps."""
    page = (ROOT / "docs" / "spectra.md").read_text(encoding="utf-8")
    (script,) = re.findall(r"^```bash\n(.*?)^```", page, re.MULTILINE | re.DOTALL)
    script = script.replace("FOLDER", str(minilm)).replace("GLUE", str(glue))
    script = script.replace("--optim.epochs 3", f"{SHORT} --run.output_dir {tmp_path}/runs")
    script = script.replace("--task mrpc", "--task mrpc --data.max_length 32")
    script = script.replace("--run runs/", f"--run {tmp_path}/runs/").replace("--output ", f"--output {tmp_path}/")
    run_shell(script)
    for name, states in (("pretrained", 7), ("plain", 7), ("soft_decay", 9)):
        reading = json.loads((tmp_path / "spectra" / name / "spectrum.json").read_text())
        assert len(reading["states"]) == states


def test_the_table_of_contents_names_what_is_there():
    (section,) = re.findall(r"^## Where things are\n(.*?)^`configs/`", README, re.MULTILINE | re.DOTALL)
    table = re.findall(r"^\| `(\w+(?:/|\.py))` \|", section, re.MULTILINE)
    package = ROOT / "svt_jax"
    there = {p.name + "/" for p in package.iterdir() if (p / "__init__.py").is_file()}
    there |= {p.name for p in package.glob("[!_]*.py")}
    assert set(table) == there
