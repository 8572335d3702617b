"""The device mesh, and which of its axes divide each dimension of a parameter.

A parameter says what its dimensions are (`logical_axes`, see models/layers.py); one table says which mesh axes divide
each of these. Mesh axes: `data` (copies of the model), `fsdp` (devices that share a copy's parameters; each computes
with whole matrices, gathered when they are needed), `tensor` (devices that share each matrix product).
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from svt_jax.host import compiler_options
from svt_jax.run.config import MeshConfig
from svt_jax.spectral.solvers import BATCH_AXES
from svt_jax.training.step import TrainState

MESH_AXES: dict[str, tuple[str, ...]] = {
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "pooled": ("tensor",),
    "lookup": (
        "tensor",
        "fsdp",
    ),  # whole rows: vocabularies seldom divide. fsdp last: gathered over it, the rest is in order
    "factor": (),
    # Small, and needed whole wherever they are used:
    "rows": (),
    "labels": (),
    "hidden": (),
    "parameter": (),
}
"""Mesh axes that divide a dimension, by its logical axis."""


def make_mesh(config: MeshConfig, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """The mesh over these devices, or all there are.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    count = jax.device_count() if devices is None else len(devices)
    known = math.prod(size for size in sizes if size != -1)
    if count % known or (-1 not in sizes and known != count):
        raise ValueError(
            f"mesh data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} does not fit {count} devices; the sizes "
            "must multiply to that number, and one of them may be -1. Correct the mesh section."
        )
    shape = tuple(count // known if size == -1 else size for size in sizes)
    # Explicit axes, the default of make_mesh, forbid what propagation does for us in Auto.
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3, devices=devices)


def check_batch(mesh: Mesh, name: str, batch_size: int) -> None:
    """Raises ValueError if a batch does not divide over the mesh's data and fsdp axes."""
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    if batch_size % shards:
        raise ValueError(
            f"{name} is {batch_size} and does not divide over {shards} devices (mesh data x fsdp). Choose a multiple of {shards}."
        )


def batch_sharding(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec(BATCH_AXES))


def replicated(mesh: Mesh) -> NamedSharding:
    return NamedSharding(mesh, PartitionSpec())


def parameter_shardings(params: nnx.State, mesh: Mesh) -> nnx.State:
    """The sharding of each parameter, by its logical axes and `MESH_AXES`.

    Args:
      params: parameters or other variables of a model; shapes are enough.
    Raises:
      ValueError: if a dimension, or a number of attention heads, does not divide over its mesh axes, or a variable has
        no logical axes of the table; every such variable is named.
    """
    problems: list[str] = []

    def sharding(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        name = "/".join(map(str, path))
        axes: tuple[str, ...] = variable.get_metadata().get("logical_axes", ())
        shape = variable.get_value().shape
        if len(axes) != len(shape) or not set(axes) <= MESH_AXES.keys():
            problems.append(
                f"{name} {list(shape)} has the logical axes {axes}, one of {', '.join(MESH_AXES)} is needed for each dimension"
            )
            return variable.replace(replicated(mesh))
        for size, axis in zip(shape, axes, strict=True):
            parts = math.prod(mesh.shape[a] for a in MESH_AXES[axis])
            over = f"over {parts} devices (mesh {' x '.join(MESH_AXES[axis])})"
            if axis == "heads" and variable.get_metadata()["num_heads"] % parts:
                problems.append(f"{name}: {variable.get_metadata()['num_heads']} heads do not divide {over}")
            elif size % parts:
                problems.append(f"{name}: {size} does not divide {over}")
        return variable.replace(NamedSharding(mesh, PartitionSpec(*(_spec(MESH_AXES[axis]) for axis in axes))))

    shardings = nnx.map_state(sharding, params)
    if problems:
        raise ValueError(f"the mesh does not fit the model: {'; '.join(problems)}. Choose other mesh sizes.")
    return shardings


def _spec(axes: tuple[str, ...]) -> str | tuple[str, ...] | None:
    return axes if len(axes) > 1 else axes[0] if axes else None


def optimizer_shardings(
    optimizer: optax.GradientTransformation, params: nnx.State, shardings: nnx.State, mesh: Mesh
) -> Any:
    """The sharding of the optimizer's state: moments like their parameters, counters replicated."""
    # A moment's path in the optimizer's state ends in its parameter's path. (optax.tree_map_params would tell moments
    # from counters, but it cannot look into optax.partition with labels that depend on the parameters.)
    of_parameter = dict(jax.tree_util.tree_leaves_with_path(nnx.as_pure(shardings)))

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        tails = (path[start:] for start in range(len(path)))
        return next((of_parameter[tail] for tail in tails if tail in of_parameter), replicated(mesh))

    return jax.tree_util.tree_map_with_path(sharding, jax.eval_shape(optimizer.init, params))


def state_shardings(
    params: nnx.State, constants: nnx.State, optimizer: optax.GradientTransformation, mesh: Mesh
) -> TrainState:
    """The sharding of everything that a step changes; errors are those of `parameter_shardings`."""
    shardings = parameter_shardings(params, mesh)
    return TrainState(
        params=shardings,
        constants=parameter_shardings(constants, mesh),
        optimizer=optimizer_shardings(optimizer, params, shardings, mesh),
    )


def shard_step(step: Callable[..., Any], shardings: TrainState, mesh: Mesh) -> Any:
    """A step of `make_train_step`, jitted for a mesh: the state stays where it is, its buffers are reused."""
    return jax.jit(
        step,
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options("training"),
    )
