"""The states of several runs as one, with a leading axis for the runs, and the program that steps all of them.

The mesh axis `seed` divides the runs over the devices. On accelerators the step is vmapped over a device's runs, so that
small models fill it. On a CPU one run fills the cores by itself, and products of stacked matrices take longer than the
same products one after another: there the program loops over the runs.
"""

from __future__ import annotations

import dataclasses
import functools
import logging
import operator
import os
import time
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from svt_jax.host import compiler_options
from svt_jax.run.checkpoint import TrainState
from svt_jax.training.optimizer import Rates, make_optimizer
from svt_jax.training.setup import Experiment
from svt_jax.training.step import make_train_step

Array = jax.Array
log = logging.getLogger(__name__)

_BY_RUN = PartitionSpec("seed")
_SHARE = 0.8
"""Of the free memory, how much the runs may take."""


@dataclasses.dataclass
class Program:
    """The compiled step of several runs.

    Attributes:
      number: how many runs.
      places: how many it computes, a multiple of the devices; the last run fills up the rest.
      mesh: the devices.
      seconds: what compiling took.
      bytes: what it needs of each device's memory, with the states that it is given.
    """

    number: int
    places: int
    mesh: Mesh
    seconds: float
    bytes: int
    _compiled: Any

    def stacked(self, values: Sequence[Any]) -> Array:
        """A value of each run, divided over the devices."""
        filled = [*values, *[values[-1]] * (self.places - len(values))]
        return jax.device_put(np.stack([np.asarray(each) for each in filled]), NamedSharding(self.mesh, _BY_RUN))

    def __call__(
        self, state: TrainState, batch: dict[str, Array], seeds: Array, rates: Rates, step: int
    ) -> tuple[TrainState, list[dict[str, Array]]]:
        """Returns the new states and the metrics of each run; takes over the buffers of `state`."""
        with jax.set_mesh(self.mesh):
            state, found = self._compiled(state, batch, seeds, rates, np.int32(step))
            return state, _each(found, self.number)


def first_state(experiment: Experiment) -> TrainState:
    """The state that the experiment starts from; of the optimizer's part only the shapes."""
    model = experiment.model
    return TrainState(model.params, model.constants, jax.eval_shape(experiment.init_optimizer, model.params))


def compile_step(experiment: Experiment, state: TrainState, number: int) -> Program:
    """Compiles the step of `number` runs that differ from this experiment only in numbers.

    Args:
      state: the state of one run, or its shapes.
    """
    size = min(number, jax.local_device_count())
    places = -(-number // size) * size
    mesh = jax.make_mesh((size,), ("seed",), axis_types=(AxisType.Auto,), devices=jax.local_devices()[:size])
    optim = experiment.config.optim

    def one(state: TrainState, batch: dict[str, Array], seed: Array, rates: Rates, step: Array) -> Any:
        optimizer = make_optimizer(optim, experiment.num_steps, rates)
        step_of_one = make_train_step(
            experiment.model,
            optimizer,
            accumulate=optim.accumulate,
            used=experiment.used,
            static=experiment.plan.static,
        )
        return step_of_one(state, batch, seed, step)

    def of_a_device(state: TrainState, batch: dict[str, Array], seed: Array, rates: Rates, step: Array) -> Any:
        if loops():
            return jax.lax.map(lambda run: one(run[0], run[1], run[2], run[3], step), (state, batch, seed, rates))
        return jax.vmap(one, in_axes=(0, 0, 0, 0, None))(state, batch, seed, rates, step)

    specs = (*[_BY_RUN] * 4, PartitionSpec())
    step = jax.jit(
        jax.shard_map(of_a_device, mesh=mesh, in_specs=specs, out_specs=_BY_RUN, check_vma=False),
        in_shardings=tuple(NamedSharding(mesh, spec) for spec in specs),
        donate_argnums=0,
        compiler_options=compiler_options("training"),
    )
    batch = next(experiment.batches.from_batch(0))
    shapes = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct((places, *leaf.shape), leaf.dtype),
        (state, {name: values for name, values in batch.items() if name != "index"}),
    )
    numbers = jax.ShapeDtypeStruct((places,), np.int32), Rates(*[jax.ShapeDtypeStruct((places,), np.float32)] * 2)
    start = time.perf_counter()
    with jax.set_mesh(mesh):
        compiled = step.lower(*shapes, *numbers, jax.ShapeDtypeStruct((), np.int32)).compile()
    memory = compiled.memory_analysis()
    # a state is copied when it is stacked
    needed = 0 if memory is None else memory.temp_size_in_bytes + 2 * memory.argument_size_in_bytes
    return Program(number, places, mesh, time.perf_counter() - start, needed, compiled)


def loops() -> bool:
    """Whether the program computes a device's runs one after another; see this file's head."""
    return jax.default_backend() == "cpu"


def compile_what_fits(experiment: Experiment, number: int) -> Program:
    """The step of as many runs as the memory has room for, at most `number`; the experiment has not begun."""
    state = first_state(experiment)
    program = compile_step(experiment, state, number)
    free = free_bytes()
    if free is None or program.bytes <= _SHARE * free:
        return program
    fits = max(1, int(number * _SHARE * free / program.bytes))
    log.warning(
        "%d runs side by side need %.1f GiB of a device's memory, %.1f GiB are free: %d at a time",
        number,
        program.bytes / 2**30,
        free / 2**30,
        fits,
    )
    return compile_step(experiment, state, fits)


def free_bytes() -> int | None:
    """Free memory of a device, or of this machine where the device is a CPU; None where the platform does not tell."""
    stats = jax.local_devices()[0].memory_stats()
    if stats and "bytes_limit" in stats:
        return int(stats["bytes_limit"] - stats["bytes_in_use"])
    try:
        return os.sysconf("SC_AVPHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
    except (ValueError, OSError, AttributeError):  # not every system has it
        return None


@dataclasses.dataclass
class Stack:
    """The stacked states of several runs."""

    program: Program
    state: TrainState

    @classmethod
    def of(cls, program: Program, states: Sequence[TrainState]) -> Stack:
        """Stacks a state for each of the program's runs."""
        return cls(program, jax.tree.map(lambda *leaves: program.stacked(leaves), *states))

    def part(self, number: int, shardings: TrainState) -> Part:
        """One run's state, in the shardings of its own mesh."""
        return Part(self, number, shardings)


@dataclasses.dataclass(frozen=True)
class Part:
    """One run's state; each attribute is a `TrainState`'s, taken out of the stack when it is read."""

    stack: Stack
    number: int
    shardings: TrainState

    @property
    def params(self) -> Any:
        return self._taken("params")

    @property
    def constants(self) -> Any:
        return self._taken("constants")

    @property
    def optimizer(self) -> Any:
        return self._taken("optimizer")

    def _taken(self, name: str) -> Any:
        with jax.set_mesh(self.stack.program.mesh):
            part = _take(getattr(self.stack.state, name), np.int32(self.number))
        return jax.device_put(part, getattr(self.shardings, name))


@functools.partial(jax.jit, static_argnums=1)
def _each(stacked: Any, number: int) -> list[Any]:
    """What each run has of stacked values; one call, which does not wait for them."""
    return [jax.tree.map(operator.itemgetter(n), stacked) for n in range(number)]


@jax.jit
def _take(stacked: Any, number: Array) -> Any:
    return jax.tree.map(lambda leaf: jnp.take(leaf, number, axis=0), stacked)
