"""Version ranges are honest: CI installs the lower bounds. Rooms import downwards. Project files agree."""

import ast
import re
import tomllib
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[1]


def test_lowest_versions_are_the_lower_bounds():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    bounds = {}
    for requirement in project["dependencies"]:
        if "<'3.12'" in requirement:
            continue
        name, version = re.match(r"([\w-]+)(?:\[\w+\])?>=([\d.]+)", requirement).groups()
        bounds[name] = version
    lines = [line for line in (ROOT / ".ci" / "lowest.txt").read_text().splitlines() if not line.startswith("#")]
    tested = dict(line.split("==") for line in lines)
    assert {name: version.removesuffix(".0") for name, version in tested.items()} == {
        name: version.removesuffix(".0") for name, version in bounds.items()
    }


# A floor may import those before it.
FLOORS = (
    ("errors", "text", "host", "mesh", "stores", "writing", "yaml_files"),
    ("spectral",),
    ("remedies",),
    ("models",),
    ("data",),
    ("run",),
    ("evaluation",),
    ("embeddings",),
    ("analysis",),
    ("training",),
    ("cli",),
)
ROOMS = tuple(room for floor in FLOORS for room in floor)
# data needs no model
MAY_NOT = {("data", "models"), ("data", "spectral"), ("data", "remedies")}


def test_imports_point_down():
    wrong = []
    for path in sorted((ROOT / "svt_jax").glob("*/**/*.py")):
        room = path.relative_to(ROOT / "svt_jax").parts[0]
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("svt_jax."):
                other = node.module.split(".")[1]
                if other != room and (
                    other not in ROOMS or ROOMS.index(other) > ROOMS.index(room) or (room, other) in MAY_NOT
                ):
                    wrong.append(f"{path.relative_to(ROOT)} imports {node.module}")
    assert not wrong, wrong


def test_changelog_and_citation_are_of_this_version():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    changes = (ROOT / "CHANGELOG.md").read_text(encoding="utf-8")
    assert re.findall(r"^## (.*)$", changes, re.MULTILINE)[0] == project["version"]
    citation = yaml.safe_load((ROOT / "CITATION.cff").read_text(encoding="utf-8"))
    assert (citation["version"], citation["license"]) == (project["version"], project["license"])
    assert {"cff-version", "message", "title", "authors"} <= citation.keys()
    (paper,) = citation["references"]
    assert paper["url"] == project["urls"]["Paper"]


def test_what_contributing_names_is_there():
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:svt_jax|configs|docs|benchmarks|\.ci)/[\w./]*)`", text))
    assert len(named) > 8
    assert [name for name in named if not (ROOT / name).exists()] == []
    for page in ("CONTRIBUTING.md", "CHANGELOG.md"):
        links = re.findall(r"\]\(([^)#\s]+)", (ROOT / page).read_text(encoding="utf-8"))
        assert links
        assert [link for link in links if not (ROOT / link).exists()] == []
