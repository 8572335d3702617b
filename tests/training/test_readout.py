"""Each step's metrics: what stops the run, and what its message names."""

import math

import numpy as np
import pytest
from rich.console import Console

from svt_jax.evaluation.metrics import NonFiniteError
from svt_jax.training.clock import Clock
from svt_jax.training.progress import TrainingProgress
from svt_jax.training.readout import Readout
from svt_jax.training.records import Records
from svt_jax.training.run_folder import RunFolder


@pytest.fixture
def readout(tmp_path):
    folder = RunFolder(tmp_path)
    records = Records(folder, 0, tensorboard=False)
    bar = TrainingProgress(Console(quiet=True), 10, 0, False)
    yield Readout(
        records, bar, Clock(), schedule=lambda step: 0.5, steps_per_epoch=5, logs=lambda step: step % 2 == 0,
        parameter_names=["a/kernel", "b/kernel", "c/bias"], last_good=lambda: "that of step 0 is good", max_svt_failures=3,
    ), folder  # fmt: skip
    records.close()


def metrics(loss=0.7, norms=(1.0, 1.0, 1.0), failures=0, svt=None):
    return {
        "loss": loss, "grad_norm": math.sqrt(sum(norms)), "squared_norms": np.array(norms), "alpha": {}, "svt": svt or {},
        "svt_failures": failures,
    }  # fmt: skip


def test_a_gradient_that_is_not_finite_names_its_first_parameter_and_the_step(readout):
    reads, _ = readout
    reads.add(1, metrics())
    reads.add(2, metrics(norms=(1.0, math.nan, math.inf)))
    with pytest.raises(
        NonFiniteError,
        match="step 2: the loss is 0.7 and the gradient of b/kernel is not finite; .*that of step 0 is good. Lower",
    ):
        reads.read_all()


def test_a_loss_that_is_not_finite_is_named_first(readout):
    reads, _ = readout
    reads.add(1, metrics(loss=math.inf, norms=(math.nan, 1.0, 1.0)))
    with pytest.raises(NonFiniteError, match="step 1: the loss is inf; "):
        reads.read_all()


def test_failed_decompositions_are_counted_and_stop_the_run_past_the_limit(readout):
    reads, folder = readout
    for step, failures in enumerate((1, 0, 0, 2), start=1):
        reads.add(step, metrics(failures=failures))
    reads.read_all()
    assert [line["svt_failures"] for line in folder.read_metrics()] == [1, 3]
    reads.add(5, metrics(failures=1))
    with pytest.raises(
        NonFiniteError, match="step 5: 4 decompositions have failed .* allowed are run.max_svt_failures 3"
    ):
        reads.read_all()


def test_a_line_has_every_parameter_by_layer_and_name(readout):
    reads, folder = readout
    reads.add(2, metrics(svt={3: {"gamma": np.float32(2.5), "scale": np.array([0.5, 0.25], np.float32)}, 11: {}}))
    reads.read_all()
    (line,) = folder.read_metrics()
    assert line["svt"] == {"3": {"gamma": 2.5, "scale": [0.5, 0.25]}, "11": {}}
    assert line["alpha"] == {}
