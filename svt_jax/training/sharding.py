"""The device mesh, and which mesh axis each dimension of a parameter is divided over."""

from __future__ import annotations

import re
from typing import Any

import jax
import optax
from flax import nnx
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

from svt_jax.spectral.solvers import BATCH_AXES
from svt_jax.training.config import MeshConfig

# The first pattern that matches a parameter's path decides; the last one replicates biases, norms, SVT parameters.
_RULES: tuple[tuple[str, PartitionSpec], ...] = (
    (r"embeddings/\w+/embedding$", PartitionSpec(None, ("fsdp", "tensor"))),
    (r"attention/(query|key|value)/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"attention/out/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"up/kernel$", PartitionSpec("fsdp", "tensor")),
    (r"down/kernel$", PartitionSpec("tensor", "fsdp")),
    (r"(dense|projection)/kernel$", PartitionSpec("fsdp", None)),  # of the pooler, the head, the embeddings
    (r"", PartitionSpec()),
)


def make_mesh(config: MeshConfig) -> Mesh:
    """The mesh over all devices.

    Raises:
      ValueError: if the sizes do not multiply to the number of devices.
    """
    sizes = [config.data, config.fsdp, config.tensor]
    devices = jax.device_count()
    known = 1
    for size in sizes:
        known *= 1 if size == -1 else size
    if devices % known or (-1 not in sizes and known != devices):
        raise ValueError(
            f"mesh data={config.data}, fsdp={config.fsdp}, tensor={config.tensor} does not fit {devices} devices; the sizes "
            "must multiply to that number, and one of them may be -1. Correct the mesh section."
        )
    shape = tuple(devices // known if size == -1 else size for size in sizes)
    # Explicit axes, the default of make_mesh, forbid what propagation does for us in Auto.
    return jax.make_mesh(shape, ("data", "fsdp", "tensor"), axis_types=(AxisType.Auto,) * 3)


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
    """The sharding of each parameter, by the table above.

    Raises:
      ValueError: if a dimension does not divide over its mesh axes; every such parameter is named.
    """
    problems = []

    def sharding(path: tuple, variable: nnx.Variable) -> nnx.Variable:
        name = "/".join(map(str, path))
        spec = next(spec for pattern, spec in _RULES if re.search(pattern, name))
        for size, axes in zip(variable.get_value().shape, spec, strict=False):
            parts = 1
            for axis in (axes,) if isinstance(axes, str) else axes or ():
                parts *= mesh.shape[axis]
            if size % parts:
                problems.append(f"{name}: {size} does not divide over {parts} devices ({axes})")
        return variable.replace(NamedSharding(mesh, spec))

    shardings = nnx.map_state(sharding, params)
    if problems:
        raise ValueError(f"the mesh does not fit the model: {'; '.join(problems)}. Choose other mesh sizes.")
    return shardings


def optimizer_shardings(
    optimizer: optax.GradientTransformation, params: nnx.State, shardings: nnx.State, mesh: Mesh
) -> Any:
    """The sharding of the optimizer's state: moments like their parameters, counters replicated."""
    # A moment's path in the optimizer's state ends in its parameter's path. (optax.tree_map_params would tell moments
    # from counters, but it cannot look into optax.partition with labels that depend on the parameters.)
    of_parameter = dict(jax.tree_util.tree_leaves_with_path(shardings))

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        tails = (path[start:] for start in range(len(path)))
        return next((of_parameter[tail] for tail in tails if tail in of_parameter), replicated(mesh))

    return jax.tree_util.tree_map_with_path(sharding, jax.eval_shape(optimizer.init, params))
