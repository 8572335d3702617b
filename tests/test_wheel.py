"""The wheel holds all that training needs: installed in an empty folder, it trains the demo from there."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]


def run(*command, cwd, **variables):
    done = subprocess.run(
        command, cwd=cwd, env={**os.environ, **variables}, capture_output=True, text=True, check=False, timeout=500
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.mark.slow
def test_a_wheel_in_an_empty_folder_trains_the_demo(tmp_path):
    pytest.importorskip("hatchling")
    pip = (sys.executable, "-m", "pip")
    run(*pip, "wheel", "--no-deps", "--no-build-isolation", "-q", "-w", tmp_path / "dist", ROOT, cwd=tmp_path)
    (wheel,) = (tmp_path / "dist").iterdir()
    run(*pip, "install", "--no-deps", "-q", "--target", tmp_path / "site", wheel, cwd=tmp_path)
    empty = tmp_path / "empty"
    empty.mkdir()
    there = {"PYTHONPATH": str(tmp_path / "site"), "XLA_FLAGS": ""}
    assert run(sys.executable, "-c", "import svt_jax; print(svt_jax.__file__)", cwd=empty, **there).startswith(
        str(tmp_path / "site")
    )
    assert run(sys.executable, "-m", "svt_jax", "--version", cwd=empty, **there).strip() not in ("", "unknown")
    run(sys.executable, "-m", "svt_jax", "train", "--optim.max_steps", "2", cwd=empty, **there)
    assert json.loads((empty / "runs" / "demo" / "results.json").read_text())["steps"] == 2
    assert "soft_decay" in (empty / "runs" / "demo" / "config.yaml").read_text()


def test_importing_the_package_loads_no_library():
    """The command's help does not either, since a user waits for it."""
    program = "import sys, svt_jax, svt_jax.cli; print([m for m in ('jax', 'flax', 'transformers', 'datasets') if m in sys.modules])"
    assert run(sys.executable, "-c", program, cwd=ROOT).strip() == "[]"


def test_the_transformation_needs_no_model_library():
    program = (
        "import sys, svt_jax; svt_jax.svt, svt_jax.SoftDecay; "
        "print([m for m in ('flax', 'transformers', 'datasets', 'matplotlib', 'sklearn') if m in sys.modules])"
    )
    assert run(sys.executable, "-c", program, cwd=ROOT).strip() == "[]"
