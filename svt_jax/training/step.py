"""The training step: a pure function of (state, batch, number of the step), compiled once for each batch length."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from svt_jax.models.encoder import Encoder
from svt_jax.models.heads import Classifier
from svt_jax.training.used_embeddings import WordRows, trained_part

Array = jax.Array


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class TrainState:
    """Everything that a step changes. Randomness is no state: it follows from the seed and the step's number.

    Attributes:
      params: trained parameters, an nnx state.
      constants: what the model holds besides (parameters of a spectral function that is not trained).
      optimizer: optax's state.
    """

    params: nnx.State
    constants: nnx.State
    optimizer: Any


def split_model(model: Classifier | Encoder) -> tuple[nnx.GraphDef, nnx.State, nnx.State]:
    """A classifier or encoder as (graph definition, trained parameters, what else it holds); see `TrainState`."""
    graphdef, params, constants = nnx.split(model, nnx.Param, ...)  # type: ignore[misc]
    return graphdef, params, constants


def weighted_loss(logits: Array, labels: Array, weights: Array, *, regression: bool) -> Array:
    """Sum over the batch of weight times cross entropy, or squared error for regression (logits [B, 1])."""
    if regression:
        losses = jnp.square(logits[:, 0] - labels)
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(losses * weights)


def make_train_step(
    graphdef: nnx.GraphDef,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int,
    regression: bool,
    rows: WordRows | None = None,
) -> Callable[[TrainState, dict[str, Array], Array, Array], tuple[TrainState, dict[str, Array]]]:
    """Builds the step.

    Args:
      graphdef: of the classifier.
      optimizer: over its trained parameters.
      accumulate: micro-batches in a batch, run one after another; the gradient is that of the whole batch.
      regression: squared error in place of cross entropy.
      rows: of the word embeddings, those of all tokens in all batches; None for the whole table. The optimizer's state
        is that of `trained_part(params, rows)`.
    Returns:
      step(state, batch, seed, number) -> (state, metrics), with batch arrays [accumulate * B, ...]; dropout follows
      from the seed and the step's number. Metrics are the mean loss, the global gradient norm, `squared_norms`, one
      entry a gradient leaf, to name one that is not finite, and `svt_failures`, how many decompositions failed.
    """

    def micro_loss(
        trained: nnx.State, constants: nnx.State, batch: dict[str, Array], key: Array
    ) -> tuple[Array, Array]:
        model = nnx.merge(graphdef, trained, constants)
        input_ids = batch["input_ids"] if rows is None else jnp.asarray(rows.place)[batch["input_ids"]]
        logits, failures = model.logits_and_failures(
            input_ids, batch["attention_mask"], batch["token_type_ids"], rngs=nnx.Rngs(dropout=key)
        )
        failures = (
            jnp.zeros((), jnp.int32) if failures is None else jnp.sum(jnp.where(batch["weights"] > 0, failures, 0))
        )
        return weighted_loss(logits, batch["labels"], batch["weights"], regression=regression), failures

    gradients = jax.value_and_grad(micro_loss, has_aux=True)

    def step(
        state: TrainState, batch: dict[str, Array], seed: Array, number: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), number)
        trained = trained_part(state.params, rows)
        total = jnp.maximum(jnp.sum(batch["weights"]), 1.0)
        if accumulate == 1:
            (loss, failures), grads = gradients(trained, state.constants, batch, key)
        else:
            # every accumulate-th row, so that each micro-batch stays divided over the same devices
            micro = {n: v.reshape(-1, accumulate, *v.shape[1:]).swapaxes(0, 1) for n, v in batch.items()}
            zeros = ((jnp.zeros(()), jnp.zeros((), jnp.int32)), jax.tree.map(jnp.zeros_like, trained))

            def add(sums: tuple, item: tuple) -> tuple[tuple, None]:
                new = gradients(trained, state.constants, item[0], jax.random.fold_in(key, item[1]))
                return jax.tree.map(jnp.add, sums, new), None

            ((loss, failures), grads), _ = jax.lax.scan(add, zeros, (micro, jnp.arange(accumulate)))
        grads = jax.tree.map(lambda g: g / total, grads)
        squared_norms = jnp.stack(
            [jnp.tensordot(g, g, g.ndim, precision=jax.lax.Precision.HIGHEST) for g in jax.tree.leaves(grads)]
        )
        updates, optimizer_state = optimizer.update(grads, state.optimizer, trained)
        trained = optax.apply_updates(trained, updates)
        params = trained if rows is None else rows.put(state.params, trained)
        metrics = {
            "loss": loss / total,
            "grad_norm": jnp.sqrt(jnp.sum(squared_norms)),
            "squared_norms": squared_norms,
            "svt_failures": failures,
        }
        return TrainState(params, state.constants, optimizer_state), metrics

    return step
