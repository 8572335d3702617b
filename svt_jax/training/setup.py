"""Builds all that a run needs from its config, in order. A faulty config raises here and leaves no folder behind."""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import time
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
import optax
from jax.sharding import Mesh

from svt_jax.data import layouts
from svt_jax.data.batching import TrainingBatches, epoch_batches, training_buckets
from svt_jax.data.glue import Split
from svt_jax.data.layouts import Plan
from svt_jax.data.packing import Shape, choose_shape, random_batches
from svt_jax.data.token_cache import token_folder
from svt_jax.data.tokenizer import Advance
from svt_jax.data.tokens import Tokens
from svt_jax.evaluation.glue import Evaluator
from svt_jax.evaluation.probe import Probe
from svt_jax.mesh import batch_sharding, check_batch, make_mesh
from svt_jax.run import distributed
from svt_jax.run import folder as run_folder
from svt_jax.run.checkpoint import Checkpoints, TrainState
from svt_jax.run.config import TrainConfig
from svt_jax.run.folder import RunFolder
from svt_jax.run.manifest import ID_LETTERS, make_manifest
from svt_jax.run.store_checkpoint import open_checkpoints
from svt_jax.run.task_model import TaskModel
from svt_jax.stores import in_store
from svt_jax.training.optimizer import check_sizes, learning_rate_schedule, make_optimizer
from svt_jax.training.step import jit_step, state_shardings
from svt_jax.training.used_embeddings import UsedEmbeddings, trained_part, used_embeddings


@dataclasses.dataclass
class Experiment:
    """All that a run needs; `loop.train` runs it.

    Attributes:
      config: the config as given.
      folder: the run's folder.
      model: the model with the weights that training starts from, or without weights if there is a checkpoint to resume
        from. The first step takes over its buffers.
      batches: the endless stream of training batches.
      plan: how they are laid out.
      lengths: int[N], number of real tokens of each training example.
      num_steps, steps_per_epoch: numbers of steps; the run may stop earlier (`optim.stop_after_worse`).
      schedule: the learning rate by step.
      used: rows of the word embeddings that training can change; None is all rows.
      init_optimizer: params -> the optimizer's state, on the mesh.
      shardings: the state's shardings.
      step: the jitted step (state, batch, seed, number) -> (state, metrics).
      evaluators: evaluators by split.
      probe: the probe of the validation split.
      checkpoints: the checkpoints in the folder.
      lock: the lock on the folder; None in processes that do not write.
      started: when the run was asked for, by time.perf_counter().
    """

    config: TrainConfig
    folder: RunFolder
    model: TaskModel
    batches: TrainingBatches
    plan: Plan
    lengths: np.ndarray
    num_steps: int
    steps_per_epoch: int
    schedule: optax.Schedule
    used: UsedEmbeddings | None
    init_optimizer: Any
    shardings: TrainState
    step: Any
    evaluators: dict[Split, Evaluator]
    probe: Probe
    checkpoints: Checkpoints
    lock: Any
    started: float

    @property
    def batch_size(self) -> int:
        """Number of examples of a step."""
        return self.config.optim.batch_size * self.config.optim.accumulate


def setup(
    config: TrainConfig,
    started: float | None = None,
    tokenizing: Callable[[str, int], Advance] | None = None,
    *,
    one_device: bool = False,
) -> Experiment:
    """Reads the model and the data, plans the run, and takes its folder.

    Args:
      config: the run's config.
      started: when the run was asked for, by time.perf_counter(); None is now.
      tokenizing: is called with a split and its number of examples; what it returns is told how many are done.
      one_device: whether the run stays on one device, as several runs side by side do. Its groups, and so its numbers,
        are those of the config's own mesh.

    Raises:
      ValueError: if the config cannot be satisfied, or the folder holds another run or is in use.
    """
    started = time.perf_counter() if started is None else started
    folder = run_folder.run_path(config)
    distributed.on_first(run_folder.find_run, config)

    own = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor)
    mesh = make_mesh(devices=jax.local_devices()[:1]) if one_device else own
    batch_size = config.optim.batch_size * config.optim.accumulate
    check_batch(mesh, "optim.batch_size", config.optim.batch_size)
    check_batch(mesh, "data.eval_batch_size", config.data.eval_batch_size)

    model = TaskModel.outline(config, mesh)
    task = model.task
    assert task is not None, "a config names one"
    splits: list[Split] = ["train", *task.parts("validation")]
    tokens = {split: _tokens(model, split, tokenizing) for split in splits}
    train_tokens = tokens["train"]
    if not distributed.agree(folder.has_checkpoint):  # a checkpoint has its own weights
        model = model.with_weights(config)

    steps_per_epoch = -(-len(train_tokens) // batch_size)
    num_steps = min(config.optim.epochs * steps_per_epoch, config.optim.max_steps or 2**62)
    check_sizes(config.optim, len(train_tokens), num_steps)
    shape = _packed_shape(config, model, train_tokens, folder, own)
    batches, plan = _batches(config, model, train_tokens, num_steps, shape)

    optimizer = make_optimizer(config.optim, num_steps)
    used = used_embeddings(train_tokens, model.encoder, config.optim)
    shardings = state_shardings(model, optimizer)
    step = jit_step(model, optimizer, shardings, accumulate=config.optim.accumulate, used=used, static=plan.static)
    init_optimizer = jax.jit(
        lambda params: optimizer.init(trained_part(params, used)), out_shardings=shardings.optimizer
    )

    held_out = {split: each for split, each in tokens.items() if split != "train"}
    evaluators: dict[Split, Evaluator] = {
        split: Evaluator(model, each, config.data.eval_batch_size, config.data.layout)
        for split, each in held_out.items()
    }
    probe = Probe(model, tokens["validation"])

    manifest = make_manifest(config, mesh, model.weights, task, tokens, shape)
    lock = distributed.on_first(run_folder.create, folder, config, manifest, model.encoder, model.tokenizer)
    with contextlib.ExitStack() as failing:
        if lock is not None:
            failing.callback(lock.release)
        run_id = distributed.from_first(distributed.on_first(run_folder.read_id, folder), ID_LETTERS)
        fence = getattr(lock, "check", None)  # the system holds a lock on a disk; one in a store may be lost
        checkpoints = open_checkpoints(folder.checkpoints, config.checkpoint.keep, run=run_id, fence=fence)
        failing.pop_all()
    return Experiment(
        config=config,
        folder=folder,
        model=model,
        batches=batches,
        plan=plan,
        lengths=train_tokens.lengths,
        num_steps=num_steps,
        steps_per_epoch=steps_per_epoch,
        schedule=learning_rate_schedule(config.optim, num_steps),
        used=used,
        init_optimizer=init_optimizer,
        shardings=shardings,
        step=step,
        evaluators=evaluators,
        probe=probe,
        checkpoints=checkpoints,
        lock=lock,
        started=started,
    )


def _tokens(model: TaskModel, split: Split, tokenizing: Callable[[str, int], Advance] | None) -> Tokens:
    """The tokens of a split; where all processes share a cache, only the first one tokenises."""
    if jax.process_count() > 1 and in_store(token_folder()):
        found = distributed.on_first(model.tokens, split, tokenizing)
        return model.tokens(split) if found is None else found
    return model.tokens(split, tokenizing)


def _packed_shape(config: TrainConfig, model: TaskModel, tokens: Tokens, folder: RunFolder, own: Mesh) -> Shape | None:
    """The shape of packed batches, which a resumed run keeps; None for padded ones.

    Args:
      own: the mesh of the config; the model's may be smaller.
    """
    data = config.data
    if data.layout == "padded":
        return None
    shards = model.mesh.shape["data"] * model.mesh.shape["fsdp"]
    kept = distributed.numbers_from_first(run_folder.read_shape(folder), len(dataclasses.fields(Shape)))
    if kept is not None:
        shape = Shape(*kept)
    else:
        groups = own.shape["data"] * own.shape["fsdp"] if data.groups == "auto" else data.groups
        row_length = None if data.row_length == "auto" else data.row_length
        rows = None if data.rows == "auto" else data.rows
        shape = choose_shape(
            tokens.lengths,
            config.optim.batch_size,
            groups=groups,
            accumulate=config.optim.accumulate,
            row_length=row_length,
            rows=rows,
        )
    if shape.groups % shards:
        raise ValueError(
            f"data.groups is {shape.groups} and the mesh divides the batch over {shards} devices (data x fsdp); allowed "
            f"are multiples of {shards}. A run keeps the groups that it started with: start it with data.groups "
            f"{shards}, or use a smaller mesh."
        )
    return shape


def _batches(
    config: TrainConfig, model: TaskModel, tokens: Tokens, num_steps: int, shape: Shape | None
) -> tuple[TrainingBatches, Plan]:
    seed, sharding, lengths = config.run.seed, batch_sharding(model.mesh), tokens.lengths
    batch_size = config.optim.batch_size * config.optim.accumulate
    steps_per_epoch = -(-len(tokens) // batch_size)
    if shape is not None:
        plan = layouts.packed(tokens, shape, sharding)
        return TrainingBatches(steps_per_epoch, lambda n: random_batches(lengths, shape, seed, n), plan.collate), plan
    positions, grouped = model.encoder.max_tokens, config.data.group_by_length
    buckets = config.data.buckets
    if buckets == "auto":
        buckets = training_buckets(
            lengths, batch_size, num_steps, model.encoder.hidden_size, group_by_length=grouped, longest=positions
        )
    elif max(buckets) > positions:
        raise ValueError(
            f"data.buckets is {buckets} and the model has {positions} positions. Leave the longer ones out."
        )
    plan = layouts.padded(tokens, buckets, batch_size, sharding)
    order = functools.partial(epoch_batches, lengths, batch_size, seed, group_by_length=grouped)
    return TrainingBatches(steps_per_epoch, order, plan.collate), plan
