"""From a config to the things it names: task, examples, tokenizer, classifier."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx
from jax.sharding import Mesh

from svt_jax.data import demo
from svt_jax.data.custom import custom_task, find_classes, load_custom
from svt_jax.data.glue import TASKS, Examples, Split, Task, load_examples
from svt_jax.data.token_cache import cached_tokens
from svt_jax.data.tokenizer import Tokens, demo_tokenizer, load_tokenizer
from svt_jax.models.config import EncoderConfig, SVTConfig, read_config
from svt_jax.models.encoder import Encoder
from svt_jax.models.files import local_folder
from svt_jax.models.heads import Classifier
from svt_jax.models.hf import DTYPES, load_classifier
from svt_jax.training.config import DataConfig, ModelConfig, TrainConfig
from svt_jax.training.sharding import parameter_shardings

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


def find_task(config: DataConfig, classes: Sequence[str] | None = None) -> Task:
    """The config's task.

    Args:
      config: names it.
      classes: of a custom task, as a run has saved them; None takes the config's, or those of the training file.
    Raises:
      ValueError: if there is no such task, or a custom task's training file does not give its classes.
    """
    if config.task == "custom":
        assert config.text_columns is not None, "DataConfig has checked it"
        assert config.label_column is not None, "DataConfig has checked it"
        if config.labels == "regression":
            return custom_task(config.text_columns, config.label_column, None)
        labels = config.labels or classes or find_classes(config.source, config.label_column)
        return custom_task(config.text_columns, config.label_column, [str(name) for name in labels])
    tasks = {"demo": demo.TASK, **TASKS}
    if config.task not in tasks:
        raise ValueError(f"data.task is {config.task!r}; allowed are {', '.join(tasks)}, custom. Correct the name.")
    return tasks[config.task]


def load_split(task: Task, config: DataConfig, split: Split) -> Examples:
    """The examples of a split of the config's task."""
    if config.task == "demo":
        return demo.load_demo(split)
    if config.task == "custom":
        return load_custom(task, config.source, split)
    return load_examples(task, config.source, split)


def load_tokens(task: Task, config: DataConfig, tokenizer: Any, encoder: EncoderConfig, split: Split) -> Tokens:
    """The token arrays of a split, no longer than the model allows."""
    if config.max_length > encoder.max_tokens and config.task != "demo":
        raise ValueError(
            f"data.max_length is {config.max_length} and the model has {encoder.max_tokens} positions. "
            "Choose a smaller data.max_length."
        )
    length = min(config.max_length, encoder.max_tokens)
    return cached_tokens(load_split(task, config, split), tokenizer, length, encoder.pad_token_id)


@dataclasses.dataclass(frozen=True)
class Pretrained:
    """Where a run starts from: tokenizer, architecture, and the folder of the weights; None for the demo's random ones."""

    tokenizer: Any
    encoder: EncoderConfig
    folder: Path | None


def open_model(path: str) -> Pretrained:
    """Tokenizer and architecture of `model.path`; no weight is read yet."""
    if path == "demo":
        return Pretrained(demo_tokenizer(), DEMO_ENCODER, None)
    folder = local_folder(path)
    encoder = read_config(folder)
    return Pretrained(load_tokenizer(folder, encoder.vocab_size), encoder, folder)


def make_classifier(config: TrainConfig, model: Pretrained, num_labels: int, mesh: Mesh) -> Classifier:
    """The classifier with the weights that training starts from; each device of the mesh gets its part alone.

    Raises:
      ValueError: if the mesh does not fit the model.
    """
    dtype, seed = config.model.dtype, config.run.seed
    if model.folder is None:
        make = functools.partial(random_classifier, model.encoder, config.svt, num_labels, dtype=dtype, seed=seed)
        classifier = nnx.eval_shape(make)
        shardings = parameter_shardings(nnx.state(classifier), mesh)
        nnx.update(classifier, jax.jit(lambda: nnx.state(make()), out_shardings=shardings)())
    else:
        classifier = load_classifier(
            model.folder,
            num_labels=num_labels,
            svt=config.svt,
            dtype=dtype,
            seed=seed,
            shardings=functools.partial(parameter_shardings, mesh=mesh),
        )
    set_speed(classifier.encoder, config.model)
    return classifier


def set_speed(encoder: Encoder, config: ModelConfig) -> None:
    """What of the config changes the compiled program and not what it computes; the same program gives the same bits."""
    encoder.remat = config.remat
    encoder.scan_layers = jax.default_backend() != "cpu" if config.scan_layers is None else config.scan_layers


def random_classifier(encoder: EncoderConfig, svt: SVTConfig, num_labels: int, *, dtype: str, seed: int) -> Classifier:
    """A randomly initialised classifier; under nnx.eval_shape, its shapes."""
    rngs = nnx.Rngs(seed)
    compute_dtype: jnp.dtype = DTYPES[dtype]
    return Classifier(Encoder(encoder, svt, dtype=compute_dtype, rngs=rngs), num_labels, rngs=rngs)
