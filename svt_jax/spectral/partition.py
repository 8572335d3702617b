"""A batch of matrices divided over devices: every device works on the matrices that it has, and nothing is exchanged.

How an array is divided is known in one of three ways, and each has its own means:

1. its type says so: a mesh with Explicit axes, the default of `jax.make_mesh`;
2. a mesh with Auto axes of this package's names is in context, as in training;
3. else the partitioner decides when it compiles the program. It keeps a batched LAPACK call local by itself, and makes
   exchanges of a loop over matrices, which jaxlib before 0.11.1 needs on CPUs (solvers.py).
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import Any

import jax
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule, custom_partitioning
from jax.sharding import NamedSharding, PartitionSpec

Array = jax.Array

BATCH_AXES = ("data", "fsdp")
"""Mesh axes over which the leading (batch) dimension of an input may be sharded."""


def on_each_device(function: Callable[[Array], Any], x: Array, *, mapped: int = 0) -> Any:
    """`function(x)` of matrices x [..., m, n], by itself on each device.

    Args:
      function: returns arrays with x's dimensions in front of its last two.
      mapped: how many of the leading dimensions come from `jax.vmap`.
    """
    x, mesh = whole_matrices(x), jax.typeof(x).sharding.mesh
    spec = PartitionSpec(*_spec(x)[:-2])
    explicit = {axis for axes in spec if axes for axis in ((axes,) if isinstance(axes, str) else axes)}
    if explicit:
        local = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, axis_names=explicit, check_vma=False)
        return local(x)
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.auto_axes)
    if not axes or x.ndim == 2:
        return function(x)
    # One's own batch dimension, or, of a function of one matrix, the one that vmap adds.
    batch = mapped if mapped < x.ndim - 2 else 0
    if x.shape[batch] % math.prod(mesh.shape[axis] for axis in axes):
        return function(x)
    spec = PartitionSpec(*[None] * batch, axes)
    # unchecked: the loops of JAX's svd for TPUs fail the check
    return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)(x)


def whole_matrices(x: Array) -> Array:
    """x [..., L, D], gathered over those Explicit axes that divide its last two dimensions."""
    spec = _spec(x)
    if not any(spec[-2:]):
        return x
    return jax.sharding.reshard(x, NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*spec[:-2])))


def divided_like(out: Array, x: Array) -> Array:
    """`out`, divided over Explicit axes as x of the same shape is."""
    return jax.sharding.reshard(out, jax.typeof(x).sharding) if any(_spec(x)[-2:]) else out


def _spec(x: Array) -> tuple:
    sharding = jax.typeof(x).sharding
    return tuple(sharding.spec) if sharding.mesh.explicit_axes else (None,) * x.ndim


def left_to_partitioner(x: Array) -> bool:
    """Whether neither x's type nor the mesh in context says how x is divided."""
    mesh = jax.sharding.get_abstract_mesh()
    known = mesh.manual_axes or jax.typeof(x).sharding.mesh.explicit_axes
    return not known and not any(axis in mesh.auto_axes for axis in BATCH_AXES)


def partitioned(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """`function` of x [..., m, n] as in `on_each_device`, kept local by the partitioner; not differentiable."""

    def batch_only(x: jax.ShapeDtypeStruct, mesh: Any) -> NamedSharding:
        spec = (*x.sharding.spec, *[None] * len(x.shape))[: len(x.shape) - 2]
        return NamedSharding(mesh, PartitionSpec(*spec))

    def partition(mesh: Any, arguments: tuple, results: Any) -> tuple:
        sharding = batch_only(arguments[0], mesh)
        return mesh, function, jax.tree.map(lambda _: sharding, results), (sharding,)

    def rule(mesh: Any, operands: list, results: list) -> SdyShardingRule:
        batch = tuple(f"b{n}" for n in range(operands[0].rank - 2))
        inner = [tuple(f"r{n}_{m}" for m in range(result.rank - len(batch))) for n, result in enumerate(results)]
        return SdyShardingRule(
            operand_mappings=(ArrayMapping(*batch, "m", "n"),),
            result_mappings=tuple(ArrayMapping(*batch, *dims) for dims in inner),
            need_replication_factors=("m", "n", *(dim for dims in inner for dim in dims)),
        )

    wrapped = custom_partitioning(functools.wraps(function, updated=())(lambda x: function(x)))
    wrapped.def_partition(partition=partition, sharding_rule=rule)
    return wrapped
