"""The guard of `benchmarks.counts`: no count of the compiled programs exceeds the committed one."""

import dataclasses
import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import pytest

from benchmarks.compiled import programs
from benchmarks.passed_on import PASSED_ON
from svt_jax.mesh import make_mesh
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.task_model import DEMO_ENCODER

ROOT = Path(__file__).parents[1]
COMMITTED = json.loads((ROOT / "benchmarks" / "counts.json").read_text())


@pytest.mark.slow
@pytest.mark.skipif(jax.__version__ != COMMITTED["jax"], reason=f"the committed counts are of jax {COMMITTED['jax']}")
def test_no_count_rose():
    of_tests = ("JAX_DISABLE_MOST_OPTIMIZATIONS", "PJRT_NPROC", "XLA_FLAGS")
    environment = {name: value for name, value in os.environ.items() if name not in of_tests}
    command = [sys.executable, "-m", "benchmarks.counts"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, timeout=600)
    assert done.returncode == 0, done.stdout + done.stderr
    assert "none rose" in done.stdout


@pytest.mark.slow
def test_the_transformation_costs_few_operations():
    encoder = dataclasses.replace(DEMO_ENCODER, hidden_size=128, intermediate_size=512)
    mesh = make_mesh(devices=jax.devices()[:1])

    def flops(svt):
        return programs(encoder, svt, mesh, batch=16, tokens=64)[0].lower().cost_analysis()["flops"]

    whole = flops(PASSED_ON)
    assert whole < flops(SVTConfig("centered_soft_decay", solver="gram")) < 1.1 * whole
    assert flops(SVTConfig()) < 0.7 * whole
