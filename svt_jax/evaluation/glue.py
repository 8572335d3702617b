"""A classifier's predictions and score over one split, each example counted once."""

from __future__ import annotations

from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh, NamedSharding, PartitionSpec

from svt_jax.data.batching import choose_buckets, evaluation_batches
from svt_jax.data.glue import Task
from svt_jax.data.tokenizer import Tokens
from svt_jax.evaluation.metrics import compute_metrics
from svt_jax.spectral.solvers import BATCH_AXES


def make_forward(graphdef: nnx.GraphDef, mesh: Mesh) -> Any:
    """The jitted evaluation step (state, input_ids, mask, types) -> logits, with state (params, constants) where it is."""
    batch = NamedSharding(mesh, PartitionSpec(BATCH_AXES))

    def forward(
        state: tuple[nnx.State, nnx.State], input_ids: jax.Array, mask: jax.Array, types: jax.Array
    ) -> jax.Array:
        return nnx.merge(graphdef, *state)(input_ids, mask, types)

    return jax.jit(
        forward, in_shardings=(None, batch, batch, batch), out_shardings=NamedSharding(mesh, PartitionSpec())
    )


class Evaluator:
    """Evaluates a split with parameters that change; compiles once for each batch length.

    Args:
      graphdef: of the classifier.
      task: gives the metrics.
      tokens: the split.
      batch_size: has no influence on the score; must divide over the mesh's data and fsdp axes.
      longest: the model's positions, which no batch may exceed.
      mesh: devices to run on.
    """

    def __init__(self, graphdef: nnx.GraphDef, task: Task, tokens: Tokens, batch_size: int, longest: int, mesh: Mesh):
        self._task, self._tokens, self._batch_size, self._mesh = task, tokens, batch_size, mesh
        # sorted by length, a batch is about as long as each of its examples
        self._buckets = choose_buckets(tokens.lengths, batch_size=1, longest=longest)
        self._forward = make_forward(graphdef, mesh)

    def logits(self, params: nnx.State, constants: nnx.State) -> np.ndarray:
        """Logits [N, num_labels] in the order of the examples."""
        out = np.zeros((len(self._tokens), self._task.num_labels), np.float32)
        with jax.set_mesh(self._mesh):
            for batch in evaluation_batches(self._tokens, self._batch_size, self._buckets):
                logits = self._forward(
                    (params, constants), *(batch[n] for n in ("input_ids", "attention_mask", "token_type_ids"))
                )
                real = batch["weights"] > 0
                out[batch["index"][real]] = np.asarray(logits)[real]
        return out

    def score(self, params: nnx.State, constants: nnx.State) -> dict[str, float]:
        """The task's metrics."""
        assert self._tokens.labels is not None, "an unlabelled split has no score"
        return compute_metrics(self._task.metrics, self.logits(params, constants), self._tokens.labels)
