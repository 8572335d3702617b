"""The training loop of one run; session.py has what happens around its steps, side_by_side.py several runs at once."""

from __future__ import annotations

import contextlib
import time
from collections.abc import Sequence
from typing import Any

import jax
import numpy as np

from svt_jax.data.batching import Batch, tokens_of
from svt_jax.data.shards import global_batch
from svt_jax.mesh import batch_sharding
from svt_jax.run import distributed
from svt_jax.run.checkpoint import TrainState
from svt_jax.training.profiling import Profiler
from svt_jax.training.session import Run, Session
from svt_jax.training.setup import Experiment
from svt_jax.training.signals import StopSignals


def train(experiment: Experiment, callbacks: Sequence[Any] = ()) -> Run:
    """Trains to the end, from the newest checkpoint if there is one.

    Raises:
      NonFiniteError, StoppedBySignalError, OSError: as `Session.after_step`.
    """
    traced = experiment.config.log.traced_steps if distributed.is_first() else None
    with Session(experiment, callbacks) as session, contextlib.ExitStack() as stack:
        run, programs = session.run, _Programs(session)
        stack.enter_context(jax.set_mesh(experiment.model.mesh))
        signals = stack.enter_context(StopSignals())
        profiler = Profiler(experiment.folder, traced, programs.texts)
        stack.callback(profiler.close)
        session.begin()
        while not session.over:
            profiler.before(run.step + 1)
            with jax.profiler.StepTraceAnnotation("train", step_num=run.step + 1):
                run.state, found = programs.step(session.next_batch())
            if profiler.ends_after(run.step + 1):
                jax.block_until_ready(run.state)
                with session.paused():
                    profiler.finish()
            session.after_step(found, signals.stops_after(run.step + 1))
        session.complete()
        signals.__exit__(None, None, None)  # a signal from here on ends the process at once: nothing is lost
        session.call.on_end(run.results)
    distributed.on_first(lambda: None)  # the others wait for what the first one's callbacks still write
    run.state = None
    return run


class _Programs:
    """The compiled step for each shape of a batch; there is one with packed rows."""

    def __init__(self, session: Session):
        self._session, self._experiment, self._run = session, session.experiment, session.run
        self._sharding = batch_sharding(session.experiment.model.mesh)
        self._compiled: dict[Any, Any] = {}

    def texts(self) -> list[str]:
        """The compiled programs, as XLA writes them."""
        return [program.as_text() for program in self._compiled.values()]

    def step(self, batch: Batch) -> tuple[TrainState, dict[str, jax.Array]]:
        arrays = {name: values for name, values in batch.items() if name != "index"}
        plan, run = self._experiment.plan, self._run
        there = global_batch(arrays, self._sharding, plan.num_rows, plan.num_examples)
        # the seed is an input, so that all seeds run one compiled program
        inputs = (run.state, there, np.int32(run.config.run.seed), np.int32(run.step))
        shape = tokens_of(batch).shape
        if shape not in self._compiled:
            self._session.metrics.wait()
            self._session.call.on_busy(f"compiling for rows of {shape[1]} tokens")
            with run.clock.compiling():
                self._compiled[shape] = self._experiment.step.lower(*inputs).compile()
            self._session.call.on_busy("")
        state, metrics = self._compiled[shape](*inputs)
        if not run.clock.first_step_seconds:
            jax.block_until_ready(metrics)
            run.clock.first_step_seconds = time.perf_counter() - self._experiment.started
        return state, metrics
