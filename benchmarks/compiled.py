"""Training and evaluation steps as programs for a mesh, without weights or data, and what their compiled text holds.

Used by `benchmarks.scaling` and by the tests of sharding, memory and other platforms.
"""

from __future__ import annotations

import dataclasses
import math
import re
from typing import Any, Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from svt_jax.data import layouts
from svt_jax.data.packing import Shape
from svt_jax.data.tokens import Tokens
from svt_jax.evaluation.glue import make_forward
from svt_jax.mesh import batch_sharding, replicated
from svt_jax.models.config import EncoderConfig
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.checkpoint import abstract
from svt_jax.run.config import OptimConfig
from svt_jax.run.task_model import TaskModel, random_classifier
from svt_jax.training.optimizer import make_optimizer
from svt_jax.training.step import TrainState, jit_step, state_shardings


@dataclasses.dataclass(frozen=True)
class Program:
    """A jitted function with abstract arguments that carry their shardings."""

    function: Any
    arguments: tuple[Any, ...]
    mesh: Mesh

    def lower(self) -> Any:
        with jax.set_mesh(self.mesh):
            return self.function.lower(*self.arguments)

    def compile(self) -> Any:
        return self.lower().compile()

    def export(self, platform: str) -> Any:
        """The program in StableHLO for a platform ("tpu", "cuda", "cpu") that need not be here."""
        with jax.set_mesh(self.mesh):
            return jax.export.export(self.function, platforms=[platform])(*self.arguments)


def _abstract(values: Any, sharding: Any) -> Any:
    return jax.tree.map(lambda leaf: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding), values)


PER_ROW = 2
"""Examples of a packed row, on average. RTE has 1.9 in a row of 128 tokens, which is also the length of its longest."""
_MOST_IN_A_ROW = 4
"""Times as many examples may share a packed row: RTE's shape and CoLA's allow 3 to 5 times their average."""


def programs(
    encoder: EncoderConfig,
    svt: SVTConfig,
    mesh: Mesh,
    *,
    batch: int,
    tokens: int,
    layout: Literal["packed", "padded"] = "packed",
    per_row: int = PER_ROW,
    dtype: str = "float32",
    remat: bool = False,
    accumulate: int = 1,
    num_labels: int = 2,
) -> tuple[Program, Program]:
    """Returns the training step and the evaluation step that a run with these settings compiles.

    Args:
      batch: number of examples in a micro-batch, on all devices together.
      tokens: tokens of a row, and of the longest example.
      layout: `data.layout`; packed has a group of rows for each device that divides the batch, as a run has.
      per_row: for packed: examples for each row. There are as many rows as that needs.
    """
    classifier = nnx.eval_shape(lambda: random_classifier(encoder, svt, num_labels, dtype=dtype, seed=0))
    classifier.encoder.remat = remat
    model = TaskModel.of(classifier, mesh)
    optimizer = make_optimizer(OptimConfig(), 1000)
    shardings = state_shardings(model, optimizer)
    moments = jax.eval_shape(optimizer.init, model.params)
    state = abstract(TrainState(model.params, model.constants, moments), shardings)

    static, examples = abstract_batch(mesh, batch, tokens, layout, per_row, accumulate)
    del examples["index"]  # as the training loop
    step = jit_step(model, optimizer, shardings, accumulate=accumulate, static=static)
    number = _abstract(jnp.int32(0), replicated(mesh))

    static, inputs = abstract_batch(mesh, batch, tokens, layout, per_row)
    for name in ("labels", "weights", "index"):  # as the Evaluator
        del inputs[name]
    evaluation = make_forward(model, static)
    return (
        Program(step, (state, examples, number, number), mesh),
        Program(evaluation, ((state.params, state.constants), inputs), mesh),
    )


def abstract_batch(
    mesh: Mesh, batch: int, tokens: int, layout: str, per_row: int = PER_ROW, accumulate: int = 1
) -> tuple[dict[str, int], dict[str, Any]]:
    """Returns `Plan.static` and the abstract arrays of a batch; the arguments are those of `programs`."""
    sharding, number = batch_sharding(mesh), batch * accumulate
    if layout == "padded":
        plan = layouts.padded(_uniform(number, tokens), [tokens], number, sharding)
    else:
        groups = mesh.shape["data"] * mesh.shape["fsdp"]
        share = batch // groups
        shape = Shape(
            rows=math.ceil(share / per_row),
            row_length=tokens,
            examples=share,
            longest=tokens,
            shortest=max(1, tokens // (_MOST_IN_A_ROW * per_row)),
            groups=groups,
            accumulate=accumulate,
        )
        plan = layouts.packed(_uniform(number, tokens // per_row), shape, sharding)
    return plan.static, _abstract(plan.collate(np.arange(number)), sharding)


def _uniform(number: int, length: int) -> Tokens:
    """Examples of this many tokens each."""
    ids = np.zeros((number, length), np.int32)
    return Tokens.of_padded(ids, ids, np.full(number, length, np.int32), np.zeros(number, np.int32), pad_id=0)


@dataclasses.dataclass(frozen=True)
class Collective:
    """A collective of a compiled program.

    Attributes:
      kind: all-reduce, all-gather, reduce-scatter, all-to-all or collective-permute.
      shapes: shapes of its results on one device, as in ("f32[16,128]", ...).
      size: bytes of these results.
      axes: mesh axes over which its devices exchange.
      sent: bytes that each device sends where the devices form a ring.
      source: the operation of the model that it belongs to, as in "transpose(jvp())/dot_general".
    """

    kind: str
    shapes: tuple[str, ...]
    size: int
    axes: tuple[str, ...]
    sent: float
    source: str


_COLLECTIVE = re.compile(
    r"= (?P<result>.*?) (?P<kind>all-reduce|all-gather|reduce-scatter|all-to-all|collective-permute)(-start)?\("
)
_SHAPE = re.compile(r"(pred|[a-z]+\d+)\[([\d,]*)\]")


def collectives(text: str, mesh: Mesh) -> list[Collective]:
    """Finds the collectives in the text of a compiled program; one inside a loop is counted once."""
    found = []
    for line in text.splitlines():
        match = _COLLECTIVE.search(line)
        if not match:
            continue
        shapes = _SHAPE.findall(match["result"])
        size = sum(_bytes(dtype) * math.prod(int(n) for n in sizes.split(",") if n) for dtype, sizes in shapes)
        group = _group(line, mesh.size)
        # ids run over the mesh in row-major order: data, fsdp, tensor
        places = np.array(np.unravel_index(group, tuple(mesh.shape.values())))
        axes = tuple(name for name, place in zip(mesh.axis_names, places, strict=True) if len(set(place)) > 1)
        others = (len(group) - 1) / len(group)
        sent = {"all-reduce": 2 * others, "reduce-scatter": len(group) - 1, "collective-permute": 1.0}
        source = re.search(r'op_name="([^"]*)"', line)
        found.append(
            Collective(
                kind=match["kind"],
                shapes=tuple(f"{dtype}[{sizes}]" for dtype, sizes in shapes),
                size=size,
                axes=axes,
                sent=size * sent.get(match["kind"], others),
                source=source[1] if source else "",
            )
        )
    return found


def _bytes(dtype: str) -> int:
    return 1 if dtype == "pred" else int(re.sub(r"\D", "", dtype)) // 8


def _group(line: str, devices: int) -> list[int]:
    """Finds the first group of devices that exchange, in any of the forms in which XLA writes groups.

    Example:
      >>> _group("replica_groups={{0,2},{1,3}}", 4), _group("replica_groups=[2,2]<=[2,2]T(1,0)", 4)
      ([0, 2], [0, 2])
      >>> _group("replica_groups=mesh['a'=2,'b'=4], device_ids=([4,2]T(1,0)) {'b':(1)2}", 8)
      [0, 4]
    """
    if listed := re.search(r"(?:replica_groups|source_target_pairs)=\{\{([\d,]+)\}", line):
        return _numbers(listed[1])
    if iota := re.search(r"replica_groups=\[([\d,]+)\]<=\[([\d,]+)\](?:T\(([\d,]+)\))?", line):
        return _iota(iota[2], iota[3]).reshape(_numbers(iota[1]))[0].tolist()
    named = re.search(
        r"replica_groups=mesh\[(.*?)\](?:, device_ids=\(\[([\d,]+)\](?:T\(([\d,]+)\))?\))? \{(.*?)\}", line
    )
    if named is None:
        return list(range(devices))  # no groups: all of them
    sizes = {name: int(size) for name, size in re.findall(r"'(\w+)'=(\d+)", named[1])}
    ids = _iota(named[2] or str(devices), named[3]).reshape(tuple(sizes.values()))
    chosen = {
        name: (int(size or sizes[name]), int(before or 1))
        for name, before, size in re.findall(r"'(\w+)'(?::\((\d+)\)(\d+))?", named[4])
    }
    picks = []
    for name, whole in sizes.items():  # 'name':(before)size is a part of an axis
        size, before = chosen.get(name, (1, 1))
        picks.append(np.arange(size) * (whole // (before * size)))
    return ids[np.ix_(*picks)].flatten().tolist()


def _numbers(text: str) -> list[int]:
    return [int(number) for number in text.split(",")]


def _iota(shape: str, order: str | None) -> np.ndarray:
    ids = np.arange(math.prod(_numbers(shape))).reshape(_numbers(shape))
    return ids.transpose(_numbers(order)) if order else ids
