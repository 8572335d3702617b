"""The training step: a pure function of (state, batch, number of the step), compiled once for each shape of a batch."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from types import MappingProxyType
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jax.sharding import Mesh, NamedSharding

from svt_jax.host import compiler_options
from svt_jax.mesh import batch_sharding, parameter_shardings, replicated
from svt_jax.models.packed import read_batch
from svt_jax.models.slot import SVTState
from svt_jax.run.checkpoint import TrainState
from svt_jax.run.task_model import TaskModel
from svt_jax.training.used_embeddings import UsedEmbeddings, trained_part

Array = jax.Array


def weighted_loss(logits: Array, labels: Array, weights: Array, *, regression: bool) -> Array:
    """Sum over the batch of weight times cross entropy; for regression (logits [B, 1]) times squared error."""
    if regression:
        losses = jnp.square(logits[:, 0] - labels)
    else:
        losses = optax.softmax_cross_entropy_with_integer_labels(logits, labels)
    return jnp.sum(losses * weights)


def make_train_step(
    model: TaskModel,
    optimizer: optax.GradientTransformation,
    *,
    accumulate: int = 1,
    used: UsedEmbeddings | None = None,
    static: Mapping[str, int] = MappingProxyType({}),
) -> Callable[[TrainState, dict[str, Array], Array, Array], tuple[TrainState, dict[str, Array]]]:
    """Builds the step.

    Args:
      model: a classifier; its task decides between cross entropy and, for a regression, squared error.
      optimizer: the optimizer of the trained parameters.
      accumulate: micro-batches in a batch, run one after another; the gradient is that of the whole batch.
      used: rows of the word embeddings that the batches use; None for the whole table. The optimizer's state is for
        `trained_part(params, used)`.
      static: see `data.layouts.Plan`.
    Returns:
      step(state, batch, seed, number) -> (state, metrics), with the arrays of `accumulate` micro-batches; dropout follows
      from the seed and the step's number. Metrics are the mean loss, the global gradient norm, `svt_failures`, how
      often the remedy failed, and `squared_norms`, one entry for each gradient leaf, to name a non-finite one. With
      a remedy of site `loss` also `svt_loss`, its weighted term, which is minimised beside the loss and not part of it:
      the mean of the micro-batches' terms.
    """

    graphdef, regression = model.graphdef, model.task is not None and model.task.regression

    def micro_loss(
        trained: nnx.State, constants: nnx.State, batch: dict[str, Array], total: Array, key: Array
    ) -> tuple[Array, dict[str, Array | None]]:
        """What is minimised, and the sums over micro-batches."""
        classifier = nnx.merge(graphdef, trained, constants)
        ids, types, layout = read_batch(batch, **static)
        ids = ids if used is None else jnp.asarray(used.place)[ids]
        failures, term, term_state = None, None, None
        if classifier.encoder.has_loss_term:
            logits, term, term_state = classifier.classify_with_term(
                ids, types, layout, batch["weights"] > 0, rngs=nnx.Rngs(dropout=key)
            )
            term, term_state = jax.tree.map(lambda x: x / accumulate, (term, term_state))
        else:
            logits, failures = classifier.classify(ids, types, layout, rngs=nnx.Rngs(dropout=key))
        failures = (
            jnp.zeros((), jnp.int32) if failures is None else jnp.sum(jnp.where(batch["weights"] > 0, failures, 0))
        )
        loss = weighted_loss(logits, batch["labels"], batch["weights"], regression=regression) / total
        sums = {"loss": loss, "svt_failures": failures, "svt_loss": term, "state": term_state}
        return loss if term is None else loss + term, sums

    gradients = jax.grad(micro_loss, has_aux=True)

    def step(
        state: TrainState, batch: dict[str, Array], seed: Array, number: Array
    ) -> tuple[TrainState, dict[str, Array]]:
        key = jax.random.fold_in(jax.random.key(seed), number)
        trained = trained_part(state.params, used)
        total = jnp.maximum(jnp.sum(batch["weights"]), 1.0)
        if accumulate == 1:
            grads, sums = gradients(trained, state.constants, batch, total, key)
        else:
            micro = {name: _micro_batches(values, accumulate, static.get("groups")) for name, values in batch.items()}
            run = lambda item: gradients(trained, state.constants, item[0], total, jax.random.fold_in(key, item[1]))
            items = (micro, jnp.arange(accumulate))
            zeros = jax.tree.map(
                lambda like: jnp.zeros(like.shape, like.dtype), jax.eval_shape(run, jax.tree.map(lambda x: x[0], items))
            )
            add = lambda sums, item: (jax.tree.map(jnp.add, sums, run(item)), None)
            (grads, sums), _ = jax.lax.scan(add, zeros, items)
        squared_norms = jnp.stack([squared_norm(leaf, whole=model.mesh.size == 1) for leaf in jax.tree.leaves(grads)])
        with jax.named_scope("optimizer"):
            updates, optimizer_state = optimizer.update(grads, state.optimizer, trained)
            trained = optax.apply_updates(trained, updates)
        params = trained if used is None else used.put(state.params, trained)
        metrics = {
            "loss": sums["loss"],
            "grad_norm": jnp.sqrt(jnp.sum(squared_norms)),
            "squared_norms": squared_norms,
            "svt_failures": sums["svt_failures"],
        }
        if sums["svt_loss"] is not None:
            metrics["svt_loss"] = sums["svt_loss"]
        constants = _with_term_state(state.constants, sums["state"])
        return TrainState(params, constants, optimizer_state), metrics

    return step


def _with_term_state(constants: nnx.State, new: Array | None) -> nnx.State:
    """The constants with a loss term's state after this step; unchanged for a term without state."""
    if new is None:
        return constants
    return nnx.map_state(lambda _, leaf: leaf.replace(new) if isinstance(leaf, SVTState) else leaf, constants)


def squared_norm(x: Array, *, whole: bool) -> Array:
    """The sum of squares.

    Args:
      whole: whether one device holds all of x. Then it is the trace of a product of two matrices: on CPU that compiles in
        a sixth of the time of a sum of squares, which XLA splits into three loops, and runs in half of it.
    """
    if not whole or x.size % 4:
        return jnp.sum(jnp.square(x))
    rows = x.reshape(4, -1)
    return jnp.trace(jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST))


def _micro_batches(values: Array, accumulate: int, groups: int | None) -> Array:
    """[accumulate * B, ...] -> [accumulate, B, ...], so that each micro-batch stays sharded over the same devices.

    The rows of a group stand together, those of its first micro-batch first; without groups each row is its own.
    """
    inner = values.shape[1:]
    by_group = values.reshape(groups or len(values) // accumulate, accumulate, -1, *inner)
    return by_group.swapaxes(0, 1).reshape(accumulate, -1, *inner)


def optimizer_shardings(
    optimizer: optax.GradientTransformation, params: nnx.State, shardings: nnx.State, mesh: Mesh
) -> Any:
    """The shardings of the optimizer's state: moments like their parameters, counters replicated."""
    # A moment's path in the optimizer's state ends in its parameter's path. (optax.tree_map_params would tell moments
    # from counters, but it cannot look into optax.partition with labels that depend on the parameters.)
    of_parameter = dict(jax.tree_util.tree_leaves_with_path(nnx.as_pure(shardings)))

    def sharding(path: tuple, leaf: Any) -> NamedSharding:
        tails = (path[start:] for start in range(len(path)))
        return next((of_parameter[tail] for tail in tails if tail in of_parameter), replicated(mesh))

    return jax.tree_util.tree_map_with_path(sharding, jax.eval_shape(optimizer.init, params))


def state_shardings(model: TaskModel, optimizer: optax.GradientTransformation) -> TrainState:
    """The shardings of everything that a step changes; raises as `parameter_shardings`."""
    shardings = parameter_shardings(model.params, model.mesh)
    return TrainState(
        params=shardings,
        constants=parameter_shardings(model.constants, model.mesh),
        optimizer=optimizer_shardings(optimizer, model.params, shardings, model.mesh),
    )


def jit_step(
    model: TaskModel,
    optimizer: optax.GradientTransformation,
    shardings: TrainState,
    *,
    accumulate: int = 1,
    used: UsedEmbeddings | None = None,
    static: Mapping[str, int] = MappingProxyType({}),
) -> Any:
    """The step of `make_train_step`, jitted for the model's mesh: state keeps its sharding, its buffers are reused.

    Args:
      shardings: the result of `state_shardings`.
    """
    mesh = model.mesh
    return jax.jit(
        make_train_step(model, optimizer, accumulate=accumulate, used=used, static=static),
        in_shardings=(shardings, batch_sharding(mesh), replicated(mesh), replicated(mesh)),
        out_shardings=(shardings, replicated(mesh)),
        donate_argnums=0,
        compiler_options=compiler_options("training"),
    )
