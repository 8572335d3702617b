"""The device mesh: what each axis divides, and how arrays are placed. Sharding is spelled only here.

Mesh axes: `data` (copies of the model), `fsdp` (devices that share a copy's parameters; each gathers a matrix when it
needs it, and computes with the whole), `tensor` (devices that share each matrix product). The batch is divided over
`data` and `fsdp`.

Every parameter carries `logical_axes`, which name each of its dimensions:

  embed      the side of a matrix that reads or writes hidden states
  heads      queries, keys or values of all attention heads (the parameter also carries `num_heads`)
  mlp        the feed-forward's inner size
  pooled     the features that a head classifies
  lookup     the columns of an embedding table
  factor     the embedding side of ALBERT's projection
  rows, labels, hidden, parameter   rows of a table, classes, vectors over hidden states, an SVT's parameters

(Flax's own `out_sharding` metadata acts when a module is built, and raises without a mesh.)
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import jax
from jax.experimental import mesh_utils
from jax.experimental.custom_partitioning import ArrayMapping, SdyShardingRule, custom_partitioning
from jax.sharding import AxisType, Mesh, NamedSharding, PartitionSpec

if TYPE_CHECKING:
    from flax import nnx

Array = jax.Array

BATCH_AXES = ("data", "fsdp")
"""Mesh axes over which the leading (batch) dimension of an array may be divided."""

_AXES = ("data", "fsdp", "tensor")

MESH_AXES: dict[str, tuple[str, ...]] = {
    "embed": ("fsdp",),
    "heads": ("tensor",),
    "mlp": ("tensor",),
    "pooled": ("tensor",),
    "lookup": (
        "tensor",
        "fsdp",
    ),  # whole rows: vocabularies seldom divide. fsdp last: a gather over it leaves the rest in order
    "factor": (),
    # Small, and needed whole wherever they are used:
    "rows": (),
    "labels": (),
    "hidden": (),
    "parameter": (),
}
"""Mesh axes that divide a dimension, by its logical axis."""


def make_mesh(data: int = -1, fsdp: int = 1, tensor: int = 1, *, devices: Sequence[jax.Device] | None = None) -> Mesh:
    """Makes a mesh of these devices.

    Of several TPU slices each holds whole copies of the model: `data` goes over the slow network between slices, `fsdp`
    and `tensor` stay on the fast one inside.

    Args:
      data, fsdp, tensor: sizes of the axes; one of them may be -1 and takes what is left.
      devices: the devices; None means all.
    Raises:
      ValueError: if the sizes do not multiply to the number of devices, or the slices do not divide `data`.
    """
    sizes = [data, fsdp, tensor]
    devices = jax.devices() if devices is None else devices
    count = len(devices)
    known = math.prod(size for size in sizes if size != -1)
    if count % known or (-1 not in sizes and known != count):
        raise ValueError(
            f"mesh data={data}, fsdp={fsdp}, tensor={tensor} does not fit {count} devices; the sizes must multiply to that "
            "number, and one of them may be -1. Correct the mesh section."
        )
    shape = tuple(count // known if size == -1 else size for size in sizes)
    slices = number_of_slices(devices)
    if shape[0] % slices:
        raise ValueError(
            f"mesh data={shape[0]}, fsdp={shape[1]}, tensor={shape[2]} does not fit {slices} slices of {count // slices} "
            f"devices; data must be a multiple of {slices}, since fsdp and tensor stay inside a slice. Correct the mesh section."
        )
    if len({getattr(device, "slice_index", 0) for device in devices}) > 1:  # jax.make_mesh refuses these
        inside = (shape[0] // slices, *shape[1:])
        if slices > 1:
            arranged = mesh_utils.create_hybrid_device_mesh(
                inside, (slices, 1, 1), devices, allow_split_physical_axes=True
            )
        else:
            arranged = mesh_utils.create_device_mesh(shape, devices)
        return Mesh(arranged, _AXES, axis_types=(AxisType.Auto,) * 3)
    # The default of make_mesh, Explicit axes, forbids what propagation does for us with Auto axes.
    return jax.make_mesh(shape, _AXES, axis_types=(AxisType.Auto,) * 3, devices=devices)


def number_of_slices(devices: Sequence[jax.Device]) -> int:
    """Number of TPU slices. Elsewhere it is 1: JAX calls GPU hosts slices too, but any axis may go over those."""
    return len({getattr(device, "slice_index", 0) for device in devices if device.platform == "tpu"} or {0})


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
    """Returns the sharding of each parameter, by its logical axes and `MESH_AXES`.

    Args:
      params: parameters or other variables of a model; shapes are enough.
    Raises:
      ValueError: if a dimension or a number of attention heads does not divide over its mesh axes, or its logical axes
        are missing or not in the table. The message names every such variable.
    """
    from flax import nnx  # imported here: `svt` needs no flax

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


def shard_batch(x: Array) -> Array:
    """Keeps x sharded over its batch dimension and gathered over the others; does nothing without a mesh.

    Without this the partitioner follows the parameters' shardings, gathers the batch, and every device decomposes
    all of it. The numbers would be right, so only the compiled program shows it.
    """
    return _constrain(x, BATCH_AXES)


def shard_columns(x: Array) -> Array:
    """Keeps x [B, L, E] divided like the table that it was looked up in, whose columns `tensor` and `fsdp` divide."""
    return _constrain(x, BATCH_AXES[:1], (), ("tensor", "fsdp"))


def gather_columns(x: Array) -> Array:
    """Does `shard_batch` after `shard_columns`, in steps of a single exchange each.

    In one step the partitioner would gather the whole batch from all devices.
    """
    return shard_batch(_constrain(x, BATCH_AXES, (), ("tensor",)))


def _constrain(x: Array, *spec: tuple[str, ...]) -> Array:
    """Divides each dimension over its mesh axes, as far as the mesh in context has them."""
    names = jax.sharding.get_abstract_mesh().auto_axes
    present = [tuple(axis for axis in axes if axis in names) for axes in spec]
    return jax.lax.with_sharding_constraint(x, PartitionSpec(*present)) if any(present) else x


def on_each_device(function: Callable[[Array], Any], x: Array, *, mapped: int = 0) -> Any:
    """Computes `function(x)` of matrices x [..., m, n] on each device by itself: nothing is exchanged.

    The division of x is known in one of three ways, and each has its own means:

    1. from x's type, on a mesh with Explicit axes, the default of `jax.make_mesh`;
    2. from a mesh in context with Auto axes of this package's names, as in training;
    3. otherwise the partitioner decides when it compiles the program. It keeps a batched LAPACK call local, but
       exchanges data in a loop over matrices, which jaxlib before 0.11.1 needs on CPUs. `partitioned` prevents that.

    Args:
      function: returns arrays that begin with x's dimensions before its last two.
      mapped: number of leading dimensions that come from `jax.vmap`.
    """
    x, mesh = whole_matrices(x), jax.typeof(x).sharding.mesh
    spec = PartitionSpec(*_spec_of(x)[:-2])
    explicit = {axis for axes in spec if axes for axis in ((axes,) if isinstance(axes, str) else axes)}
    if explicit:
        local = jax.shard_map(function, mesh=mesh, in_specs=spec, out_specs=spec, axis_names=explicit, check_vma=False)
        return local(x)
    mesh = jax.sharding.get_abstract_mesh()
    axes = tuple(axis for axis in BATCH_AXES if axis in mesh.auto_axes)
    if not axes or x.ndim == 2:
        return function(x)
    # The caller's own batch dimension; where a function of one matrix is vmapped, the one that vmap adds.
    batch = mapped if mapped < x.ndim - 2 else 0
    if x.shape[batch] % math.prod(mesh.shape[axis] for axis in axes):
        return function(x)
    spec = PartitionSpec(*[None] * batch, axes)
    # unchecked: the loops of JAX's svd for TPUs fail the check
    return jax.shard_map(function, in_specs=spec, out_specs=spec, check_vma=False)(x)


def whole_matrices(x: Array) -> Array:
    """Gathers x [..., L, D] over the Explicit axes that divide its last two dimensions."""
    spec = _spec_of(x)
    if not any(spec[-2:]):
        return x
    return jax.sharding.reshard(x, NamedSharding(jax.typeof(x).sharding.mesh, PartitionSpec(*spec[:-2])))


def divided_like(out: Array, x: Array) -> Array:
    """Divides `out` over Explicit axes like x, which has the same shape."""
    return out if _spec_of(out) == _spec_of(x) else jax.sharding.reshard(out, jax.typeof(x).sharding)


def _spec_of(x: Array) -> tuple:
    sharding = jax.typeof(x).sharding
    return tuple(sharding.spec) if sharding.mesh.explicit_axes else (None,) * x.ndim


def has_explicit_axes(x: Array) -> bool:
    """Whether x lies on a mesh with Explicit axes."""
    return bool(jax.typeof(x).sharding.mesh.explicit_axes)


def with_auto_axes(function: Callable[..., Any], x: Array) -> Callable[..., Any]:
    """`function` with the Explicit axes of x's mesh turned into Auto ones, so that the partitioner decides inside.

    Args:
      function: returns a pair: arrays that are sharded over their first dimension as x is, and replicated ones.
    """
    sharding = jax.typeof(x).sharding
    batch, whole = (NamedSharding(sharding.mesh, PartitionSpec(*axes)) for axes in (sharding.spec[:1], ()))
    divided: Callable[..., Any] = jax.sharding.auto_axes(function, out_sharding=(batch, whole))
    return divided


def left_to_partitioner(x: Array) -> bool:
    """Whether neither x's type nor the mesh in context says how x is divided."""
    mesh = jax.sharding.get_abstract_mesh()
    known = mesh.manual_axes or jax.typeof(x).sharding.mesh.explicit_axes
    return not known and not any(axis in mesh.auto_axes for axis in BATCH_AXES)


def partitioned(function: Callable[[Array], Any]) -> Callable[[Array], Any]:
    """Makes the partitioner keep `function` of x [..., m, n] local, as in `on_each_device`; not differentiable."""

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
