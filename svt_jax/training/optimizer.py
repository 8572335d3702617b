"""AdamW with a schedule, weight decay on matrices only, and a separate learning rate for SVT parameters."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import optax
from flax import nnx

from svt_jax.models.slot import SVTParam
from svt_jax.run.config import OptimConfig

_ROWS_OF_A_STEP = 1024
"""The largest step for any training set, however small; rows that the set does not fill weigh nothing."""


def check_sizes(config: OptimConfig, num_examples: int, num_steps: int) -> None:
    """Raises ValueError if a step is larger than the training set, or there are more steps than can be counted."""
    rows = config.batch_size * config.accumulate
    if rows > max(num_examples, _ROWS_OF_A_STEP):
        raise ValueError(
            f"optim.batch_size {config.batch_size} times optim.accumulate {config.accumulate} is {rows} examples a step and "
            f"the training set has {num_examples}; allowed are as many as it has, or {_ROWS_OF_A_STEP}. Lower them."
        )
    if num_steps >= 2**31:
        raise ValueError(
            f"optim.epochs {config.epochs} and optim.max_steps {config.max_steps} are {num_steps} steps; allowed are fewer than "
            "2^31. Lower one of them."
        )


def learning_rate_schedule(config: OptimConfig, num_steps: int, peak: Any = None) -> optax.Schedule:
    """Rate by step: from 0 to the peak over warmup_ratio of the steps, then to 0 at step num_steps (or constant).

    Example:
      >>> schedule = learning_rate_schedule(OptimConfig(learning_rate=1.0), num_steps=4)
      >>> [float(schedule(step)) for step in range(5)]
      [1.0, 0.75, 0.5, 0.25, 0.0]
    """
    peak = config.learning_rate if peak is None else peak
    warmup = round(config.warmup_ratio * num_steps)
    rest = max(num_steps - warmup, 1)
    after: optax.Schedule
    match config.schedule:
        case "linear":
            after = optax.linear_schedule(peak, 0.0, rest)
        case "cosine":
            after = optax.cosine_decay_schedule(peak, rest)
        case "constant":
            after = optax.constant_schedule(peak)
    if warmup == 0:
        return after
    return optax.join_schedules([optax.linear_schedule(0.0, peak, warmup), after], [warmup])


class Rates(NamedTuple):
    """Peak learning rates: of the weights, and of the parameters of a spectral function or remedy."""

    weights: Any
    svt: Any

    @classmethod
    def of(cls, config: OptimConfig) -> Rates:
        svt = config.svt_learning_rate
        return cls(config.learning_rate, config.learning_rate if svt is None else svt)


def make_optimizer(config: OptimConfig, num_steps: int, rates: Rates | None = None) -> optax.GradientTransformation:
    """AdamW (beta 0.9, 0.999, eps 1e-8; Loshchilov and Hutter, arXiv 1711.05101) over an nnx parameter state.

    Args:
      config: decay, clipping and the rates' schedule.
      num_steps: the schedule's length.
      rates: peak rates in place of the config's; they may be traced.

    Its state holds plain arrays: an nnx variable costs Python time in every call of a compiled step. `optax.partition`
    would hold two for each parameter and group, most of them empty.
    """

    peaks = Rates.of(config) if rates is None else rates

    def adamw(peak: Any, weight_decay: float) -> optax.GradientTransformation:
        return optax.adamw(learning_rate_schedule(config, num_steps, peak), weight_decay=weight_decay)

    groups = {
        "decayed": adamw(peaks.weights, config.weight_decay),
        "plain": adamw(peaks.weights, 0.0),
        "svt": adamw(peaks.svt, 0.0),
    }

    def of_arrays(params: nnx.State) -> optax.GradientTransformation:
        grouped = optax.partition(groups, nnx.as_pure(parameter_groups(params)))
        if config.grad_clip is None:
            return grouped
        return optax.chain(optax.clip_by_global_norm(config.grad_clip), grouped)

    def init(params: nnx.State) -> optax.OptState:
        return of_arrays(params).init(nnx.as_pure(params))

    def update(grads: nnx.State, state: optax.OptState, params: nnx.State) -> tuple[nnx.State, optax.OptState]:
        with jax.numpy_dtype_promotion("standard"):  # optax raises a decay to a whole number
            updates, state = of_arrays(params).update(nnx.as_pure(grads), state, nnx.as_pure(params))
        return jax.tree.unflatten(jax.tree.structure(grads), jax.tree.leaves(updates)), state

    return optax.GradientTransformation(init, update)


def parameter_groups(params: nnx.State) -> nnx.State:
    """The group of each parameter: "svt", "plain" (biases and norms) or "decayed" (the others)."""

    def group(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        if isinstance(variable, SVTParam):
            name = "svt"
        else:
            name = "plain" if path[-1] in ("bias", "scale") else "decayed"
        return variable.replace(name)

    return nnx.map_state(group, params)


def named_paths(params: nnx.State) -> list[str]:
    """The path of every parameter, in the order of the state's leaves."""
    return ["/".join(map(str, path)) for path, _ in nnx.to_flat_state(params)]
