"""A run in this process, from its start, or from its newest checkpoint, to its end: what happens around its steps."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from svt_jax.data.batching import Batch
from svt_jax.errors import NonFiniteError, StoppedBySignalError
from svt_jax.models.slot import plain_parameters
from svt_jax.run import distributed
from svt_jax.run.checkpoint import TrainState, abstract, last_good
from svt_jax.run.config import TrainConfig
from svt_jax.run.folder import write_results
from svt_jax.training.callbacks import Callbacks
from svt_jax.training.clock import Clock
from svt_jax.training.results import make_results, worse_in_a_row
from svt_jax.training.setup import Experiment
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


class Session:
    """A context in which a run trains; on leaving it, the run's lock, checkpoints and callbacks are closed.

    Whoever makes the steps calls, in this order: `begin`; until `over`, `next_batch` and, after the step, `after_step`;
    then `complete`. All of it in a context of the model's mesh.

    Attributes:
      experiment: all that the run needs. The first step takes over the buffers of its model.
      run: the run.
      call: the callbacks.
      over: whether the run has made its last step.
      paused: returns a context whose time does not count as training.
    """

    def __init__(self, experiment: Experiment, callbacks: Sequence[Any] = ()):
        self.experiment, self.call = experiment, Callbacks(callbacks)
        self._stack = contextlib.ExitStack()  # exits in the reverse order

    def __enter__(self) -> Session:
        with contextlib.ExitStack() as stack:
            if self.experiment.lock is not None:
                stack.callback(self.experiment.lock.release)
            stack.callback(self.experiment.checkpoints.close)
            stack.callback(self.call.close)
            self.run = _start(self.experiment)
            self.metrics = StepMetrics(self.experiment, self.run, self.call)
            self.paused: Callable[[], contextlib.AbstractContextManager[None]] = self.run.clock.paused
            self._stack = stack.pop_all()
        return self

    def __exit__(self, *error: Any) -> None:
        self._stack.__exit__(*error)

    def begin(self) -> None:
        """Starts the clock and the batches. A new run that records spectra reads the first one."""
        self.call.on_start(self.run)
        self._stack.enter_context(self.run.clock.running())
        if self.run.config.log.spectrum_every_steps and self.run.step == 0:
            jax.block_until_ready(self.run.state)
            with self.paused():
                self._read_spectrum()
        self._stream: Iterator[Batch] = self.experiment.batches.from_batch(self.run.step)
        self.over = self._is_over()

    def next_batch(self) -> Batch:
        """The next step's batch."""
        self._batch = next(self._stream)
        return self._batch

    def after_step(self, found: dict[str, jax.Array], stopped_by: int | None) -> None:
        """What follows a step: its metrics, and when it is time an evaluation, a spectrum, a checkpoint.

        Args:
          found: the step's metrics. `run.state` is the state after it.
          stopped_by: the signal that ends the run after this step.
        Raises:
          NonFiniteError: if the loss or a gradient is not finite; the last good checkpoint stays.
          StoppedBySignalError: after a signal, once the state is saved.
          OSError: if the folder can no longer be written; the last checkpoint stays.
        """
        run, log, checkpoint = self.run, self.run.config.log, self.run.config.checkpoint
        run.step += 1
        run.clock.count(self._batch, self.experiment.lengths)
        self.metrics.add(run.step, found, self._svt() if self.metrics.logs(run.step) else {})

        self.over = run.step == run.num_steps
        evaluates = _every(log.evaluate_every_steps or self.experiment.steps_per_epoch, run.step) or self.over
        measures = _every(log.spectrum_every_steps, run.step)
        saves = _every(checkpoint.every_steps, run.step) or evaluates or stopped_by is not None
        if evaluates or measures or saves:
            self.metrics.read_all()
            jax.block_until_ready(found)
            with self.paused():
                self._check_finite()  # such a state has no score, and must not become a checkpoint
                if evaluates:
                    self._evaluate()
                    self.over = self._is_over()
                if measures or self.over:
                    self._read_spectrum()  # before saving: a resumed run keeps those up to its step
                if saves:
                    self._save()
        if stopped_by is not None and not self.over:
            self.experiment.checkpoints.wait()
            raise StoppedBySignalError(
                f"stopped by {signal.Signals(stopped_by).name} after step {run.step}; the state is saved. "
                "Start the same command again to resume.",
                stopped_by,
            )

    def complete(self) -> None:
        """Writes results.json. From then on a signal loses nothing."""
        with self.paused():
            self.experiment.checkpoints.wait()
            self.run.results = make_results(self.experiment, self.run)
        distributed.on_first(write_results, self.experiment.folder, self.run.results)

    def _is_over(self) -> bool:
        limit = self.run.config.optim.stop_after_worse
        assert self.experiment.model.task is not None
        gave_up = limit is not None and worse_in_a_row(self.experiment.model.task, self.run.evaluations) >= limit
        return self.run.step == self.run.num_steps or gave_up

    def _svt(self) -> dict[str, Any]:
        return _svt(self.experiment, self.run.state)

    def _check_finite(self) -> None:
        """Checks the new parameters: loss and gradient are those before the step, and may have been finite."""
        if not _all_finite(self.run.state.params):
            raise NonFiniteError(
                f"step {self.run.step}: a parameter is not finite after it; {last_good(self.experiment.checkpoints)}. {ADVICE}"
            )

    def _evaluate(self) -> None:
        run = self.run
        self.call.on_busy("evaluating")
        try:
            scores = {split: evaluator.score(run.state) for split, evaluator in self.experiment.evaluators.items()}
        except NonFiniteError as error:  # the parameters are finite but huge
            good = last_good(self.experiment.checkpoints)
            raise NonFiniteError(f"step {run.step}: {error}; {good}. {ADVICE}") from error
        self.call.on_evaluate(run.step, scores)
        others: dict[str, Any] = {split: each for split, each in scores.items() if split != "validation"}
        run.evaluations = [*run.evaluations, {"step": run.step, "metrics": scores["validation"], **others}]
        self.call.on_busy("")

    def _read_spectrum(self) -> None:
        self.call.on_busy("measuring spectra")
        self.call.on_spectrum(self.run.step, self.experiment.probe.read(self.run.state))
        self.call.on_busy("")

    def _save(self) -> None:
        self.call.on_busy("saving")
        self.run.svt = plain_parameters(self._svt()["svt"])
        self.call.on_checkpoint(self.run.step)
        self.call.on_busy("")


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
