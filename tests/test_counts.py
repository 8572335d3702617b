"""The guard of `benchmarks.counts`: no count of the compiled programs rose against the committed ones."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

ROOT = Path(__file__).parents[1]
COMMITTED = json.loads((ROOT / "benchmarks" / "counts.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(jax.__version__ != COMMITTED["jax"], reason=f"the committed counts are of jax {COMMITTED['jax']}")
def test_no_count_rose():
    environment = {k: v for k, v in os.environ.items() if k not in ("JAX_DISABLE_MOST_OPTIMIZATIONS", "PJRT_NPROC")}
    command = [sys.executable, "-m", "benchmarks.counts"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none rose" in done.stdout


def test_the_transformation_costs_few_operations_and_its_polynomial_several_times_as_many():
    counts = COMMITTED["counts"]
    plain, gram = counts["training none 1x1x1"]["flops"], counts["training centered_soft_decay gram 1x1x1"]["flops"]
    assert plain < gram < 1.1 * plain
    assert counts["svt poly"]["flops"] > 2 * counts["svt gram"]["flops"]
