"""A model with its task on a mesh: the one object that the training step, evaluation, the probe and export take."""

from __future__ import annotations

import dataclasses
import functools
import logging
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx
from jax.sharding import Mesh

from svt_jax.data import demo
from svt_jax.data.glue import TASKS, Split, Task
from svt_jax.data.tokenizer import Advance, demo_tokenizer, load_tokenizer
from svt_jax.data.tokens import Tokens
from svt_jax.mesh import make_mesh, parameter_shardings
from svt_jax.models.config import EncoderConfig, read_config
from svt_jax.models.encoder import Encoder
from svt_jax.models.files import local_folder, read_json
from svt_jax.models.heads import Classifier
from svt_jax.models.hf import DTYPES, has_head, load_classifier, load_encoder
from svt_jax.models.svt_config import SVTConfig
from svt_jax.run.checkpoint import Checkpoints, TrainState, abstract
from svt_jax.run.config import DataConfig, ModelConfig, TrainConfig
from svt_jax.run.folder import read_classes, read_id, read_run
from svt_jax.run.store_checkpoint import open_checkpoints
from svt_jax.run.task_data import find_task, load_tokens
from svt_jax.text import did_you_mean, listed

log = logging.getLogger(__name__)

DEMO_ENCODER = EncoderConfig(
    model_type="bert",
    vocab_size=len(demo.vocabulary()),
    hidden_size=96,
    num_hidden_layers=2,
    num_attention_heads=4,
    intermediate_size=256,
    hidden_act="gelu",
    max_position_embeddings=64,
    type_vocab_size=2,
    layer_norm_eps=1e-12,
    hidden_dropout_prob=0.0,
    attention_probs_dropout_prob=0.0,
    classifier_dropout=0.0,
    initializer_range=0.08,
    pad_token_id=0,
)


@dataclasses.dataclass(frozen=True)
class TaskModel:
    """A classifier or encoder in parts, with what it needs to run on its task.

    Attributes:
      graphdef: the model's graph definition.
      params: trained parameters, an nnx state.
      constants: the model's other values: parameters that are not trained, and what a loss term keeps from step to step.
      encoder: the encoder's architecture.
      mesh: the mesh that holds the parameters.
      task: the task that the head decides; None for an encoder.
      data: where the task's examples are; None if there are none.
      tokenizer: the model's tokenizer; None if nothing is tokenised.
      weights: folder of the pretrained weights that it starts from; None for random weights.
      step: the step of the checkpoint that it was read from; None without a checkpoint.
    """

    graphdef: nnx.GraphDef
    params: nnx.State
    constants: nnx.State
    encoder: EncoderConfig
    mesh: Mesh
    task: Task | None = None
    data: DataConfig | None = None
    tokenizer: Any = None
    weights: Path | None = None
    step: int | None = None

    @classmethod
    def of(cls, module: Classifier | Encoder, mesh: Mesh, **fields: Any) -> TaskModel:
        """Builds from a module, which may be abstract; `fields` are the optional attributes."""
        graphdef, params, constants = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
        encoder = module.encoder if isinstance(module, Classifier) else module
        return cls(graphdef, params, constants, encoder.config, mesh, **fields)

    @classmethod
    def from_config(cls, config: TrainConfig, mesh: Mesh | None = None) -> TaskModel:
        """Builds with the weights that training starts from; each device of the mesh holds only its shard.

        Raises:
          ValueError: if the task, the model or its tokenizer cannot be read, or the mesh does not fit the model.
        """
        return cls.outline(config, mesh).with_weights(config)

    @classmethod
    def outline(cls, config: TrainConfig, mesh: Mesh | None = None) -> TaskModel:
        """As `from_config` with shapes in place of weights. This suffices to read data or a checkpoint."""
        mesh = make_mesh(config.mesh.data, config.mesh.fsdp, config.mesh.tensor) if mesh is None else mesh
        task = find_task(config.data)
        if config.model.path == "demo":
            folder, encoder, tokenizer = None, DEMO_ENCODER, demo_tokenizer()
        else:
            folder = local_folder(config.model.path)
            encoder = read_config(folder)
            tokenizer = load_tokenizer(folder, encoder.vocab_size)
        module = nnx.eval_shape(
            lambda: random_classifier(
                encoder, config.svt, task.num_labels, dtype=config.model.dtype, seed=0, **speed(config.model)
            )
        )
        return cls.of(module, mesh, task=task, data=config.data, tokenizer=tokenizer, weights=folder)

    def with_weights(self, config: TrainConfig) -> TaskModel:
        """An `outline` of the same config, filled with the weights that training starts from."""
        assert self.task is not None, "a config names one"
        if self.weights is None:
            module = draw_classifier(self.encoder, config, self.task.num_labels, self.mesh)
        else:
            module = load_classifier(
                self.weights,
                num_labels=self.task.num_labels,
                svt=config.svt,
                dtype=config.model.dtype,
                seed=config.run.seed,
                shardings=functools.partial(parameter_shardings, mesh=self.mesh),
                **speed(config.model),
            )
        graphdef, params, constants = nnx.split(module, nnx.Param, ...)  # type: ignore[misc]
        return dataclasses.replace(self, graphdef=graphdef, params=params, constants=constants)

    @classmethod
    def from_run(
        cls,
        run: str | Path,
        *,
        checkpoint: str = "last",
        source: str | None = None,
        eval_batch_size: int | None = None,
    ) -> TaskModel:
        """Builds with the weights of a run's checkpoint; does not need the pretrained model that it started from.

        Args:
          run: the run's folder.
          checkpoint: "last", "best" or a step's number.
          source: overrides the folder of the run's data.
          eval_batch_size: overrides the run's value.
        Raises:
          ValueError: if the folder holds no run, or no such checkpoint.
        """
        folder, config, encoder = read_run(run)
        data = override(DataConfig(**config["data"]), source=source, eval_batch_size=eval_batch_size)
        task = find_task(data, read_classes(folder) if data.task == "custom" else None)
        if not folder.has_checkpoint:
            raise ValueError(
                f"{run} has no checkpoint; a run has one after its first epoch, and its scores need one. Put it back from a "
                "copy, or train the run (to train a complete one again, choose another --run.name)."
            )
        checkpoints = open_checkpoints(folder.checkpoints, run=read_id(folder), read_only=True)
        step = _choose_step(checkpoints, checkpoint)
        svt, settings = SVTConfig(**config["svt"]), ModelConfig(**config["model"])
        module = nnx.eval_shape(
            lambda: random_classifier(encoder, svt, task.num_labels, dtype=settings.dtype, seed=0, **speed(settings))
        )
        try:  # the run's own mesh reproduces its score to the last bit; another mesh may round differently
            mesh = make_mesh(**config["mesh"])
        except ValueError as error:
            mesh = make_mesh()
            log.warning(
                "the mesh of %s is not used (%s); the scores are those of %d copies of the model, and may differ in the last "
                "digits",
                run,
                str(error).partition(";")[0],
                mesh.size,
            )
        model = cls.of(
            module, mesh, task=task, data=data, tokenizer=load_tokenizer(local_folder(folder.model), encoder.vocab_size)
        )
        shardings = TrainState(
            parameter_shardings(model.params, mesh), parameter_shardings(model.constants, mesh), None
        )
        like = abstract(TrainState(model.params, model.constants, None), shardings)
        step, state, _ = checkpoints.restore(like, step)
        checkpoints.close()
        return dataclasses.replace(model, params=state.params, constants=state.constants, step=step)

    @classmethod
    def from_pretrained(
        cls, path: str | Path, task: str | None, *, head: bool = True, mesh: Mesh | None = None, **overrides: Any
    ) -> TaskModel:
        """Builds from a model folder or a hub id, for one of GLUE's tasks.

        Args:
          path: model folder or hub id.
          task: the task's name.
          head: whether it needs a classification head; false returns an encoder.
          mesh: the mesh to use; None takes all devices.
          **overrides: values for the task's `DataConfig`; None leaves a value as it is.
        Raises:
          ValueError: if the task is not one of GLUE's, or the model has no head of its size.
        """
        if task not in TASKS:
            advice = did_you_mean([str(task)], TASKS, "Name one of these, and where its files are by --data.source.")
            raise ValueError(f"--model needs --task, not {task}; allowed are {', '.join(TASKS)}. {advice}")
        data = override(DataConfig(task=task), **overrides)
        found, folder = TASKS[task], local_folder(path)
        mesh = make_mesh() if mesh is None else mesh
        if head and not has_head(folder, found.num_labels):
            raise ValueError(
                f"{path} has no classification head for {found.num_labels} labels, so it has no score on {task}. "
                "Fine-tune it with train.py, or name another model."
            )
        module: Classifier | Encoder
        if head:
            shardings = functools.partial(parameter_shardings, mesh=mesh)
            fast = speed(ModelConfig())
            module = load_classifier(folder, num_labels=found.num_labels, shardings=shardings, **fast)
            _order_classes(module, folder, found)
        else:
            module = load_encoder(folder, **speed(ModelConfig()))
        tokenizer = load_tokenizer(folder, read_config(folder).vocab_size)
        return cls.of(module, mesh, task=found, data=data, tokenizer=tokenizer, weights=folder)

    def tokens(self, split: Split, begin: Callable[[str, int], Advance] | None = None) -> Tokens:
        """The token arrays of a split of the model's task.

        Args:
          begin: is called with what is tokenised and the number of examples; what it returns is told how many are done.
        """
        assert self.task is not None and self.data is not None, "it has no examples"  # noqa: PT018
        return load_tokens(self.task, self.data, self.tokenizer, self.encoder, split, begin)

    def module(self) -> Classifier | Encoder:
        """Graph definition and state as one module; a classifier has the names of the task's classes."""
        module: Classifier | Encoder = nnx.merge(self.graphdef, self.params, self.constants)
        if isinstance(module, Classifier) and self.task is not None:
            module.class_names = self.task.labels
        return module


def override(data: DataConfig, **values: Any) -> DataConfig:
    """`data` with those values that are not None."""
    return dataclasses.replace(data, **{name: value for name, value in values.items() if value is not None})


def speed(config: ModelConfig) -> dict[str, Any]:
    """Settings that change the compiled program but not its result; only the same program returns the same bits."""
    scans = jax.default_backend() != "cpu" if config.scan_layers is None else config.scan_layers
    return {"remat": config.remat, "scan_layers": scans}


def random_classifier(
    encoder: EncoderConfig, svt: SVTConfig, num_labels: int, *, dtype: str, seed: int, **speed: bool
) -> Classifier:
    """A randomly initialised classifier; under nnx.eval_shape, its shapes. `speed` is `Encoder`'s remat and scan_layers."""
    rngs = nnx.Rngs(seed)
    return Classifier(Encoder(encoder, svt, dtype=DTYPES[dtype], rngs=rngs, **speed), num_labels, rngs=rngs)


def draw_classifier(encoder: EncoderConfig, config: TrainConfig, num_labels: int, mesh: Mesh) -> Classifier:
    """As `random_classifier`, drawn on the mesh: each device holds only its shard."""

    fast = speed(config.model)

    def make() -> Classifier:
        return random_classifier(
            encoder, config.svt, num_labels, dtype=config.model.dtype, seed=config.run.seed, **fast
        )

    classifier: Classifier = nnx.eval_shape(make)
    shardings = parameter_shardings(nnx.state(classifier), mesh)
    nnx.update(classifier, jax.jit(lambda: nnx.state(make()), out_shardings=shardings)())
    return classifier


def _order_classes(classifier: Classifier, folder: Path, task: Task) -> None:
    """Orders the head's classes as the task does, if config.json names them: public MNLI models may differ."""
    if task.labels is None:
        return
    named = read_json(folder / "config.json").get("id2label")
    named = named if isinstance(named, dict) else {}
    theirs = [str(named.get(str(n), f"LABEL_{n}")) for n in range(task.num_labels)]
    plain = [[re.sub(r"[\s_-]+", "_", name.casefold()) for name in names] for names in (theirs, task.labels)]
    if sorted(plain[0]) != sorted(plain[1]):
        log.warning(
            "%s calls its classes %s; they are taken to be, in this order, %s",
            folder,
            listed(theirs),
            ", ".join(task.labels),
        )
        return
    order = np.array([plain[0].index(name) for name in plain[1]])
    head = nnx.state(classifier.classifier)
    nnx.update(classifier.classifier, jax.tree.map(lambda array: array[..., order], head))


def _choose_step(checkpoints: Checkpoints, wanted: str) -> int | None:
    if wanted == "last":
        return None
    step = checkpoints.best if wanted == "best" else int(wanted) if wanted.isdigit() else None
    if step is None or step not in checkpoints.steps:
        raise ValueError(
            f"--checkpoint {wanted!r}: the run has the steps {checkpoints.steps}; allowed are last, best or one of these."
        )
    return step
