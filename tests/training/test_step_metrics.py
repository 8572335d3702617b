"""Step metrics: what stops the run, and what its message names."""

import math
from types import SimpleNamespace

import numpy as np
import pytest
from flax import nnx

from svt_jax.errors import NonFiniteError
from svt_jax.run.config import LogConfig, RunConfig, TrainConfig
from svt_jax.training.callbacks import Callback, Callbacks
from svt_jax.training.session import Run
from svt_jax.training.step_metrics import StepMetrics

PARAMETERS = nnx.State({name: {"kernel": nnx.Param(0)} for name in "abc"})


class Lines(Callback):
    def on_start(self, run):
        self.lines, self.steps = [], []

    def on_step(self, step, metrics):
        self.steps.append(step)

    def on_log(self, step, metrics):
        self.lines.append(metrics)


@pytest.fixture
def reads(tmp_path):
    """Step metrics of a run whose last good checkpoint is step 0's, and the lines that they wrote."""
    experiment = SimpleNamespace(
        schedule=lambda step: 0.5,
        steps_per_epoch=5,
        shardings=SimpleNamespace(params=PARAMETERS),
        checkpoints=SimpleNamespace(steps=[0]),
    )
    config = TrainConfig(run=RunConfig(max_svt_failures=3), log=LogConfig(every_steps=2))
    lines = Lines()
    lines.on_start(None)
    return StepMetrics(experiment, Run(config, tmp_path, 10, 5), Callbacks([lines])), lines


def metrics(loss=0.7, norms=(1.0, 1.0, 1.0), failures=0):
    norm = math.sqrt(sum(norms))
    return {"loss": loss, "grad_norm": norm, "squared_norms": np.array(norms), "svt_failures": failures}


def svt(gamma=2.0):
    return {"alpha": {}, "svt": {1: {"gamma": np.float32(gamma)}}}


def test_a_gradient_that_is_not_finite_names_its_first_parameter_and_the_step(reads):
    reads, _ = reads
    reads.add(1, metrics(), {})
    reads.add(2, metrics(norms=(1.0, math.nan, math.inf)), svt())
    with pytest.raises(
        NonFiniteError,
        match="step 2: the loss is 0.7 and the gradient of b/kernel is not finite; .*of step 0 is the last good one. Lower",
    ):
        reads.read_all()


def test_a_loss_that_is_not_finite_is_named_first(reads):
    reads, _ = reads
    reads.add(1, metrics(loss=math.inf, norms=(math.nan, 1.0, 1.0)), {})
    with pytest.raises(NonFiniteError, match="step 1: the loss is inf; "):
        reads.read_all()


def test_failed_decompositions_are_counted_and_stop_the_run_past_the_limit(reads):
    reads, told = reads
    for step, failures in enumerate((1, 0, 0, 2), start=1):
        reads.add(step, metrics(failures=failures), svt() if reads.logs(step) else {})
    reads.read_all()
    assert [line["svt_failures"] for line in told.lines] == [1, 3]
    reads.add(5, metrics(failures=1), {})
    with pytest.raises(
        NonFiniteError, match="step 5: svt.function none has failed 4 times .* allowed are run.max_svt_failures 3"
    ):
        reads.read_all()


def test_every_step_is_told_and_every_second_one_is_a_line_with_the_functions_parameters(reads):
    reads, told = reads
    for step in range(1, 6):
        reads.add(step, metrics(loss=step / 10), svt(gamma=step) if reads.logs(step) else {})
    assert told.steps == [1, 2, 3]  # two steps late
    reads.read_all()
    assert told.steps == [1, 2, 3, 4, 5]
    assert [(line["step"], line["loss"], line["svt"]["1"]["gamma"]) for line in told.lines] == [
        (2, 0.2, 2),
        (4, 0.4, 4),
    ]
