"""The documentation is true: pages made from the code are up to date, and links lead somewhere."""

import json
import re
import shlex
from pathlib import Path

import pytest

import svt_jax
from svt_jax.data.demo import load_demo
from svt_jax.embeddings.embed import Pooling
from svt_jax.evaluation.layer_measures import ALL
from tests.pages import load

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]


def test_every_key_is_described_as_the_dataclasses_do():
    made = load(ROOT / "docs" / "make_configuration.py").page()
    assert made == (ROOT / "docs" / "configuration.md").read_text(encoding="utf-8"), "run docs/make_configuration.py"


def test_every_measure_is_described():
    script = load(ROOT / "docs" / "make_measures.py")
    measures = set(svt_jax.measures.__all__) - script.NO_ROW | script.PARTS
    assert set(script.MEANING) == measures
    reported = {name.removesuffix("_1").removesuffix("_3") for name in ALL}
    assert {name for name in script.MEANING if script.reported(name)} == reported
    assert script.page() == (ROOT / "docs" / "measures.md").read_text(encoding="utf-8"), "run docs/make_measures.py"


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_links_lead_to_files(page):
    links = re.findall(r"\]\(([^)#\s]+)", page.read_text(encoding="utf-8"))
    assert [link for link in links if "://" not in link and not (page.parent / link).exists()] == []
    named = re.findall(r"`((?:docs|configs|benchmarks|tests)/[\w./-]+\.\w+)`", page.read_text(encoding="utf-8"))
    assert [name for name in named if not (ROOT / name).exists()] == []


def test_every_page_is_linked_from_the_index():
    index = ROOT / "docs" / "index.md"
    linked = {
        (index.parent / link).resolve() for link in re.findall(r"\]\(([^)#\s]+)", index.read_text(encoding="utf-8"))
    }
    assert [page for page in PAGES[1:] if page not in {*linked, index}] == []


def test_the_papers_sts_rows_are_those_of_the_configs():
    page = (ROOT / "docs" / "sts.md").read_text(encoding="utf-8")
    found = []
    for config in sorted((ROOT / "configs" / "paper" / "sts").glob("*.yaml")):
        for name, numbers in re.findall(r"^#   (\w+) +([\d. ]+)$", config.read_text(encoding="utf-8"), re.MULTILINE):
            found.append(f"| {config.stem} | {name} | {' | '.join(numbers.split())} |")
    assert len(found) == 12
    assert [row for row in found if row not in page] == []


def test_the_layers_of_each_pooling_are_those_that_the_sts_page_tells():
    page = (ROOT / "docs" / "sts.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([\w:,-]+)` \| ([\d, ]+) \|", page, re.MULTILINE)
    assert len(rows) == 3
    for option, layers in rows:
        assert str(Pooling.parse(option, num_layers=12)) == "mean:" + layers.replace(" ", "")


def test_the_tables_of_spectra_are_those_of_their_readings():
    page, spectra = (ROOT / "docs" / "spectra.md").read_text(encoding="utf-8"), load(ROOT / "docs" / "make_spectra.py")
    for prefix in spectra.MODELS.values():
        assert spectra.table(prefix) in page


def test_the_table_of_the_atlas_is_that_of_its_readings():
    script = load(ROOT / "docs" / "make_atlas.py")
    made = script.table(json.loads(script.READINGS.read_text(encoding="utf-8")))
    assert made.count("\n| ") >= 3
    assert made in (ROOT / "docs" / "atlas.md").read_text(encoding="utf-8"), "run docs/make_atlas.py"


def test_the_tables_of_the_bench_are_those_of_its_runs():
    script = load(ROOT / "docs" / "make_bench.py")
    page = (ROOT / "docs" / "bench.md").read_text(encoding="utf-8")
    for path in script.FOLDER.glob("*.json"):
        found = json.loads(path.read_text(encoding="utf-8"))
        assert script.table(found).count("\n| ") >= 15
        assert script.table(found) in page, "run docs/make_bench.py"
        assert script.searched(found) in page, "run docs/make_bench.py"


def test_the_table_of_scores_is_that_of_its_runs():
    script = load(ROOT / "docs" / "make_scores.py")
    made = script.table(json.loads(script.RUNS.read_text(encoding="utf-8")))
    assert made.count("\n| ") > 10
    assert made in (ROOT / "docs" / "scores.md").read_text(encoding="utf-8"), "run docs/make_scores.py"


def test_what_the_page_on_pods_shows_is_what_the_software_prints(tmp_path):
    from svt_jax.mesh import make_mesh
    from svt_jax.run.command_line import parse_config
    from svt_jax.run.distributed import describe

    page = (ROOT / "docs" / "first-hour-on-a-pod.md").read_text(encoding="utf-8")
    assert describe(make_mesh()) in page
    for command in re.findall(r"(?:svt-jax train|tpu-vm-slice.sh) ((?:.*\\\n)*.*)", page):
        options = shlex.split(command.replace("\\\n", " "))
        assert parse_config([*options, *([] if "demo" in options else ["--model.path", "m"])]).run.seed == 0
    task = load_demo("train")
    config = parse_config(["--config", "demo"])
    steps = -(-len(task) // config.optim.batch_size) * config.optim.epochs
    assert f"the whole demo takes {steps}" in page
