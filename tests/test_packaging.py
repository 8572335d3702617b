"""Version ranges are honest: CI installs the lower bounds. Rooms import downwards."""

import ast
import re
import tomllib
from pathlib import Path

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
