"""Several runs at once: one compiled program steps all of them, each with its own seed, order of batches and rates.

The runs differ only in numbers (`together`), so their states have the same arrays and can be stacked (stacked.py). Around
the steps each run is by itself (session.py): its folder, checkpoints, scores and report are those of a single run.
"""

from __future__ import annotations

import contextlib
import json
import time
from collections.abc import Iterable, Iterator, Sequence
from typing import Any

import jax
import numpy as np

from svt_jax.data.batching import Batch
from svt_jax.errors import NonFiniteError, StoppedBySignalError
from svt_jax.run.config import TrainConfig
from svt_jax.training.optimizer import Rates
from svt_jax.training.session import Run, Session
from svt_jax.training.setup import Experiment
from svt_jax.training.signals import StopSignals
from svt_jax.training.stacked import Program, Stack, compile_step


def together(config: TrainConfig) -> str | None:
    """What runs of one program have in common, as text: all but seed, name, rates and the numbers of a remedy. None: it goes by itself.

    So does a run whose batches vary in shape, that divides its model over devices, has many processes, or traces steps.
    """
    alone = config.data.layout != "packed" or config.log.profile_steps is not None or jax.process_count() > 1
    if alone or (config.mesh.fsdp, config.mesh.tensor) != (1, 1):
        return None
    values = config.to_dict()
    in_state = {path[-1].name for path, _ in _leaves(config)}
    fixed = {name: value for name, value in config.svt.params.items() if name not in in_state or _is_array(value)}
    values["svt"]["params"] = fixed
    for section, *keys in (("run", "seed", "name"), ("svt", "alpha"), ("optim", "learning_rate", "svt_learning_rate")):
        for key in keys:
            del values[section][key]
    return json.dumps(values, sort_keys=True)


def _leaves(config: TrainConfig) -> list[Any]:
    """The parameters of the config's remedy, which lie in the state."""
    svt = config.svt
    return jax.tree_util.tree_leaves_with_path(svt.make_function(-0.2)) if svt.enabled else []


def _is_array(value: Any) -> bool:
    return not isinstance(value, int | float)


def train_side_by_side(
    experiments: Sequence[Experiment], callbacks: Sequence[Sequence[Any]], program: Program | None = None
) -> list[Run | NonFiniteError]:
    """Trains all to their ends, each from its newest checkpoint.

    A run whose numbers are not finite ends alone; its error is in its place of the result.

    Args:
      experiments: experiments of configs with the same `together`, set up with `one_device`.
      callbacks: those of each run.
      program: the step of as many runs, if it is compiled already.
    Raises:
      StoppedBySignalError: after SIGTERM or SIGINT, once every run's state is saved.
      OSError: if a folder can no longer be written; each run's last checkpoint stays.
    """
    first = experiments[0]
    for other in experiments[1:]:  # their programs are the first one's
        other.evaluators, other.probe = first.evaluators, first.probe
    failed: dict[int, NonFiniteError] = {}
    with contextlib.ExitStack() as stack:
        pairs = zip(experiments, callbacks, strict=True)
        sessions = [stack.enter_context(Session(each, calls)) for each, calls in pairs]
        stack.enter_context(jax.set_mesh(first.model.mesh))
        signals = stack.enter_context(StopSignals())
        for step in sorted({session.run.step for session in sessions}):  # a kill may come between two runs' saves
            numbers = [n for n, session in enumerate(sessions) if session.run.step == step]
            same = [sessions[n] for n in numbers]
            if program is None or program.number != len(same):
                program = compile_step(first, same[0].run.state, len(same))
            failed |= {numbers[n]: error for n, error in _train(same, program, signals).items()}
        for n, session in enumerate(sessions):
            if n not in failed:
                session.complete()
        signals.__exit__(None, None, None)  # a signal from here on ends the process at once: nothing is lost
        for n, session in enumerate(sessions):
            session.run.state = None
            if n not in failed:
                session.call.on_end(session.run.results)
        return [failed.get(n, session.run) for n, session in enumerate(sessions)]


def _train(sessions: Sequence[Session], program: Program, signals: StopSignals) -> dict[int, NonFiniteError]:
    """Steps sessions, all after the same step, until they are over; returns the errors of those that failed."""
    states = Stack.of(program, [session.run.state for session in sessions])
    configs = [session.run.config for session in sessions]
    seeds = program.stacked([np.int32(config.run.seed) for config in configs])
    rates = zip(*(Rates.of(config.optim) for config in configs), strict=True)
    peaks = Rates(*(program.stacked([np.float32(rate) for rate in each]) for each in rates))
    for n, session in enumerate(sessions):
        session.run.state = states.part(n, session.experiment.shardings)
        session.run.clock.compiles += 1
        session.run.clock.compile_seconds += program.seconds
        session.paused = lambda: _all(each.run.clock.paused() for each in sessions)
    for session in sessions:
        session.begin()

    failed: dict[int, NonFiniteError] = {}
    batches: list[Batch] = [{} for _ in sessions]
    while active := [n for n, session in enumerate(sessions) if n not in failed and not session.over]:
        for n in active:  # the others go on with their last batch, and nobody reads what becomes of them
            batches[n] = sessions[n].next_batch()
        arrays = {name: program.stacked([batch[name] for batch in batches]) for name in batches[0] if name != "index"}
        step = sessions[active[0]].run.step
        states.state, found = program(states.state, arrays, seeds, peaks, step)
        stopped, stopped_by = None, signals.stops_after(step + 1)
        for n in active:
            if not (clock := sessions[n].run.clock).first_step_seconds:
                jax.block_until_ready(found)
                clock.first_step_seconds = time.perf_counter() - sessions[n].experiment.started
            try:
                sessions[n].after_step(found[n], stopped_by)
            except NonFiniteError as error:
                failed[n] = error
            except StoppedBySignalError as error:
                stopped = error
        if stopped is not None:
            raise stopped
    return failed


@contextlib.contextmanager
def _all(contexts: Iterable[contextlib.AbstractContextManager[None]]) -> Iterator[None]:
    with contextlib.ExitStack() as stack:
        for context in contexts:
            stack.enter_context(context)
        yield
