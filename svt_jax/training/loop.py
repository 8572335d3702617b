"""The training loop, in the order in which things happen: start, step, log, evaluate, read the spectrum, save, end."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from svt_jax.data.batching import Batch, tokens_of
from svt_jax.data.shards import global_batch
from svt_jax.errors import NonFiniteError, StoppedBySignalError
from svt_jax.mesh import batch_sharding
from svt_jax.models.slot import plain_parameters
from svt_jax.run import distributed
from svt_jax.run.checkpoint import TrainState, abstract, last_good
from svt_jax.run.config import TrainConfig
from svt_jax.run.folder import write_results
from svt_jax.training.callbacks import Callbacks
from svt_jax.training.clock import Clock
from svt_jax.training.profiling import Profiler
from svt_jax.training.results import make_results, worse_in_a_row
from svt_jax.training.setup import Experiment
from svt_jax.training.signals import StopSignals
from svt_jax.training.step_metrics import ADVICE, StepMetrics


@dataclasses.dataclass
class Run:
    """The state and progress of a run.

    Attributes:
      config: the run's config.
      folder: the run's folder.
      num_steps: number of steps, unless `optim.stop_after_worse` ends it earlier.
      steps_per_epoch: number of steps in an epoch.
      step: number of steps done.
      state: what a step changes, a `TrainState`; None once the run is over.
      clock: seconds, examples, compilations.
      evaluations: step and scores of each evaluation.
      svt: current parameters of each SVT by layer and name; `first_svt` has those before the first step.
      results: what results.json holds, once the run is complete.
    """

    config: TrainConfig
    folder: Path
    num_steps: int
    steps_per_epoch: int
    step: int = 0
    state: Any = None
    clock: Clock = dataclasses.field(default_factory=Clock)
    evaluations: list[dict[str, Any]] = dataclasses.field(default_factory=list)
    svt: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    first_svt: dict[str, dict[str, Any]] = dataclasses.field(default_factory=dict)
    results: dict[str, Any] = dataclasses.field(default_factory=dict)


def train(experiment: Experiment, callbacks: Sequence[Any] = ()) -> Run:
    """Trains to the end, from the newest checkpoint if there is one.

    Raises:
      NonFiniteError: if the loss or a gradient is not finite; the last good checkpoint stays.
      StoppedBySignalError: after SIGTERM or SIGINT, once the state is saved.
      OSError: if the folder can no longer be written; the last checkpoint stays.
    """
    config, checkpoints = experiment.config, experiment.checkpoints
    log, call = config.log, Callbacks(callbacks)
    with contextlib.ExitStack() as stack:  # exits in the reverse order
        if experiment.lock is not None:
            stack.callback(experiment.lock.release)
        stack.callback(checkpoints.close)
        stack.callback(call.close)
        run = _start(experiment)
        metrics = StepMetrics(experiment, run, call)
        programs = _Programs(experiment, run, metrics, call)
        stack.enter_context(jax.set_mesh(experiment.model.mesh))
        call.on_start(run)
        signals = stack.enter_context(StopSignals())
        profiler = Profiler(experiment.folder, log.traced_steps if distributed.is_first() else None, programs.texts)
        stack.callback(profiler.close)
        stack.enter_context(run.clock.running())

        if log.spectrum_every_steps and run.step == 0:
            jax.block_until_ready(run.state)
            with run.clock.paused():
                _read_spectrum(experiment, run, call)

        stream, over = experiment.batches.from_batch(run.step), _is_over(experiment, run)
        while not over:
            profiler.before(run.step + 1)
            with jax.profiler.StepTraceAnnotation("train", step_num=run.step + 1):
                batch = next(stream)
                run.state, found = programs.step(run.state, batch, run.step)
            run.step += 1
            run.clock.count(batch, experiment.lengths)
            metrics.add(run.step, found, _svt(experiment, run.state) if metrics.logs(run.step) else {})

            if profiler.ends_after(run.step):
                jax.block_until_ready(run.state)
                with run.clock.paused():
                    profiler.finish()

            over, stopped_by = run.step == run.num_steps, signals.stops_after(run.step)
            evaluates = _every(log.evaluate_every_steps or experiment.steps_per_epoch, run.step) or over
            measures = _every(log.spectrum_every_steps, run.step)
            saves = _every(config.checkpoint.every_steps, run.step) or evaluates or stopped_by is not None
            if evaluates or measures or saves:
                metrics.read_all()
                jax.block_until_ready(run.state)
                with run.clock.paused():
                    _check_finite(experiment, run)  # such a state has no score, and must not become a checkpoint
                    if evaluates:
                        _evaluate(experiment, run, call)
                        over = _is_over(experiment, run)
                    if measures or over:
                        _read_spectrum(experiment, run, call)  # before saving: a resumed run keeps those up to its step
                    if saves:
                        _save(experiment, run, call)
            if stopped_by is not None and not over:
                checkpoints.wait()
                raise StoppedBySignalError(
                    f"stopped by {signal.Signals(stopped_by).name} after step {run.step}; the state is saved. "
                    "Start the same command again to resume.",
                    stopped_by,
                )

        with run.clock.paused():
            checkpoints.wait()
            run.results = make_results(experiment, run)
        distributed.on_first(write_results, experiment.folder, run.results)
        signals.__exit__(None, None, None)  # a signal from here on ends the process at once: nothing is lost
        call.on_end(run.results)
    distributed.on_first(lambda: None)  # the others wait for what the first one's callbacks still write
    run.state = None
    return run


def _is_over(experiment: Experiment, run: Run) -> bool:
    limit = run.config.optim.stop_after_worse
    assert experiment.model.task is not None
    gave_up = limit is not None and worse_in_a_row(experiment.model.task, run.evaluations) >= limit
    return run.step == run.num_steps or gave_up


def _every(steps: int | None, step: int) -> bool:
    return steps is not None and step % steps == 0


def _start(experiment: Experiment) -> Run:
    """Starts from the newest checkpoint, or from the weights that the model came with."""
    model = experiment.model
    run = Run(experiment.config, experiment.folder.path, experiment.num_steps, experiment.steps_per_epoch)
    if experiment.checkpoints.steps:
        optimizer = jax.eval_shape(experiment.init_optimizer, model.params)
        like = abstract(TrainState(model.params, model.constants, optimizer), experiment.shardings)
        run.step, run.state, progress = experiment.checkpoints.restore(like)
        run.clock, run.evaluations = Clock(**progress["clock"]), progress["evaluations"]
        run.svt = progress.get("svt") or plain_parameters(_svt(experiment, run.state)["svt"])
        run.first_svt = progress.get("first_svt", run.svt)  # earlier versions wrote neither
    else:
        run.state = TrainState(model.params, model.constants, experiment.init_optimizer(model.params))
        run.first_svt = run.svt = plain_parameters(_svt(experiment, run.state)["svt"])
    experiment.model = dataclasses.replace(model, params=None, constants=None)  # type: ignore[arg-type]  # the first step takes over the buffers
    return run


class _Programs:
    """The compiled step for each shape of a batch; there is one with packed rows."""

    def __init__(self, experiment: Experiment, run: Run, metrics: StepMetrics, call: Callbacks):
        self._experiment, self._run, self._metrics, self._call = experiment, run, metrics, call
        self._sharding = batch_sharding(experiment.model.mesh)
        self._compiled: dict[Any, Any] = {}

    def texts(self) -> list[str]:
        """The compiled programs, as XLA writes them."""
        return [program.as_text() for program in self._compiled.values()]

    def step(self, state: TrainState, batch: Batch, number: int) -> tuple[TrainState, dict[str, jax.Array]]:
        arrays = {name: values for name, values in batch.items() if name != "index"}
        plan = self._experiment.plan
        there = global_batch(arrays, self._sharding, plan.num_rows, plan.num_examples)
        # the seed is an input, so that all seeds run one compiled program
        inputs = (state, there, np.int32(self._experiment.config.run.seed), np.int32(number))
        shape = tokens_of(batch).shape
        if shape not in self._compiled:
            self._metrics.wait()
            self._call.on_busy(f"compiling for rows of {shape[1]} tokens")
            with self._run.clock.compiling():
                self._compiled[shape] = self._experiment.step.lower(*inputs).compile()
            self._call.on_busy("")
        state, metrics = self._compiled[shape](*inputs)
        if not self._run.clock.first_step_seconds:
            jax.block_until_ready(metrics)
            self._run.clock.first_step_seconds = time.perf_counter() - self._experiment.started
        return state, metrics


def _svt(experiment: Experiment, state: TrainState) -> dict[str, Any]:
    """Alpha by layer, and each parameter by layer and name."""
    found: dict[str, Any] = _svt_values(experiment.model.graphdef, state.params, state.constants)
    return found


@functools.partial(jax.jit, static_argnums=0)
def _svt_values(graphdef: nnx.GraphDef, params: nnx.State, constants: nnx.State) -> dict[str, Any]:
    encoder = nnx.merge(graphdef, params, constants).encoder
    # new buffers: the state's own are donated to the next step
    return jax.tree.map(lambda value: value + 0, {"alpha": encoder.alphas, "svt": encoder.svt_parameters})


@jax.jit
def _all_finite(params: nnx.State) -> jax.Array:
    return jnp.all(jnp.stack([jnp.all(jnp.isfinite(leaf)) for leaf in jax.tree.leaves(params)]))


def _check_finite(experiment: Experiment, run: Run) -> None:
    """Checks the new parameters: loss and gradient are those before the step, and may have been finite."""
    if not _all_finite(run.state.params):
        raise NonFiniteError(
            f"step {run.step}: a parameter is not finite after it; {last_good(experiment.checkpoints)}. {ADVICE}"
        )


def _evaluate(experiment: Experiment, run: Run, call: Callbacks) -> None:
    call.on_busy("evaluating")
    try:
        scores = {split: evaluator.score(run.state) for split, evaluator in experiment.evaluators.items()}
    except NonFiniteError as error:  # the parameters are finite but huge
        raise NonFiniteError(f"step {run.step}: {error}; {last_good(experiment.checkpoints)}. {ADVICE}") from error
    call.on_evaluate(run.step, scores)
    others: dict[str, Any] = {split: each for split, each in scores.items() if split != "validation"}
    run.evaluations = [*run.evaluations, {"step": run.step, "metrics": scores["validation"], **others}]
    call.on_busy("")


def _read_spectrum(experiment: Experiment, run: Run, call: Callbacks) -> None:
    call.on_busy("measuring spectra")
    call.on_spectrum(run.step, experiment.probe.read(run.state))
    call.on_busy("")


def _save(experiment: Experiment, run: Run, call: Callbacks) -> None:
    call.on_busy("saving")
    run.svt = plain_parameters(_svt(experiment, run.state)["svt"])
    call.on_checkpoint(run.step)
    call.on_busy("")
