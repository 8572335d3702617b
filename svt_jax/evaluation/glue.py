"""A classifier's predictions and scores over one split, each example counted once."""

from __future__ import annotations

import collections
import threading
import time
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any, Protocol

import jax
import numpy as np
from flax import nnx

from svt_jax.data.batching import Batch
from svt_jax.data.layouts import for_evaluation
from svt_jax.data.shards import global_batch
from svt_jax.data.tokens import Tokens
from svt_jax.evaluation.metrics import compute_metrics
from svt_jax.host import compiler_options, same_settings
from svt_jax.mesh import batch_sharding, replicated
from svt_jax.models.packed import read_batch
from svt_jax.run.task_model import TaskModel

_WORKERS = 3
"""Batches at a time on a single device. While one runs a small operation on a single core, others fill the other cores.

With 32 x 8 to 36 tokens through 6 layers of 384, two at a time are a tenth faster than one on two cores, three a fifth.
More devices exchange data and need all batches in one order, so there it is one at a time.
"""
_LAG = 2
"""Batches between a batch's dispatch and the reading of its logits, so that the device never waits for Python."""


class State(Protocol):
    """An object that holds a model's parameters: a `TaskModel`, or the state of a training step."""

    @property
    def params(self) -> Any: ...

    @property
    def constants(self) -> Any: ...


def make_forward(model: TaskModel, static: dict[str, int]) -> Any:
    """The jitted evaluation step (state, batch) -> logits [E, num_labels]; state is (params, constants).

    Args:
      static: see `data.layouts.Plan`.
    """
    graphdef = model.graphdef

    def forward(state: tuple[nnx.State, nnx.State], batch: dict[str, jax.Array]) -> jax.Array:
        logits: jax.Array = nnx.merge(graphdef, *state).classify(*read_batch(batch, **static))[0]
        return logits

    return jax.jit(
        forward,
        in_shardings=(None, batch_sharding(model.mesh)),
        out_shardings=replicated(model.mesh),
        compiler_options=compiler_options("inference"),
    )


class Evaluator:
    """Evaluates a split with parameters that change; compiles once for each shape of a batch.

    Args:
      model: a classifier with its task.
      tokens: the split's token arrays.
      batch_size: the largest batch size; must divide over the mesh's data and fsdp axes. It does not affect the score.
      layout: `data.layout`.
    """

    def __init__(self, model: TaskModel, tokens: Tokens, batch_size: int, layout: str = "packed"):
        assert model.task is not None, "a classifier has a task"
        self._task, self._tokens, self._mesh = model.task, tokens, model.mesh
        self._sharding = batch_sharding(model.mesh)
        shards = model.mesh.shape["data"] * model.mesh.shape["fsdp"]
        self._plan, self._batches = for_evaluation(
            tokens, layout, batch_size, shards, self._sharding, model.encoder.max_tokens
        )
        self._compiled: dict[Any, Any] = {}
        self._compiling = threading.Lock()
        self.compile_seconds = 0.0
        self._forward = make_forward(model, self._plan.static)

    @property
    def compiles(self) -> int:
        """Number of programs compiled so far, one with packed rows."""
        return len(self._compiled)

    def logits(self, holder: State) -> np.ndarray:
        """Logits [N, num_labels] in the order of the examples, with the holder's parameters."""
        state = nnx.as_pure((holder.params, holder.constants))  # nnx variables cost Python time in every call
        out = np.zeros((len(self._tokens), self._task.num_labels), np.float32)
        pending: collections.deque[tuple[Batch, Future[jax.Array]]] = collections.deque()

        def read() -> None:
            batch, logits = pending.popleft()
            real = batch["weights"] > 0
            out[batch["index"][real]] = np.asarray(logits.result())[real]

        settings = same_settings()

        def dispatch(batch: Batch) -> jax.Array:
            with settings(), jax.set_mesh(self._mesh):  # each thread has its own settings
                return self._dispatch(state, batch)

        workers = _WORKERS if self._mesh.size == 1 else 1
        with ThreadPoolExecutor(workers) as pool:
            for batch in map(self._plan.collate, self._batches):
                pending.append((batch, pool.submit(dispatch, batch)))
                if len(pending) > workers + _LAG:
                    read()
            while pending:
                read()
        return out

    def _dispatch(self, state: tuple[nnx.State, nnx.State], batch: Batch) -> jax.Array:
        inputs = {name: values for name, values in batch.items() if name not in ("labels", "weights", "index")}
        sizes = self._plan.num_rows, self._plan.num_examples
        arguments = (state, global_batch(inputs, self._sharding, *sizes))
        logits: jax.Array = self._executable(arguments)(*arguments)
        return logits

    def _executable(self, arguments: tuple) -> Any:
        shapes = tuple(values.shape for values in arguments[1].values())
        with self._compiling:
            if shapes not in self._compiled:
                start = time.perf_counter()
                self._compiled[shapes] = self._forward.lower(*arguments).compile()
                self.compile_seconds += time.perf_counter() - start
            return self._compiled[shapes]

    def score(self, holder: State) -> dict[str, float]:
        """The task's metrics, with the holder's parameters."""
        assert self._tokens.labels is not None, "an unlabelled split has no score"
        return compute_metrics(self._task.metrics, self.logits(holder), self._tokens.labels)
