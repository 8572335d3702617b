"""The task that a config names, its examples, and their tokens."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from svt_jax.data import demo
from svt_jax.data.custom import custom_task, find_classes, load_custom
from svt_jax.data.glue import TASKS, Examples, Split, Task, load_examples
from svt_jax.data.token_cache import cached_tokens
from svt_jax.data.tokenizer import Advance
from svt_jax.data.tokens import Tokens
from svt_jax.models.config import EncoderConfig
from svt_jax.run.config import DataConfig
from svt_jax.text import did_you_mean


def find_task(config: DataConfig, classes: Sequence[str] | None = None) -> Task:
    """The config's task.

    Args:
      config: names the task.
      classes: a custom task's classes as a run has saved them; None takes the config's or the training file's.
    Raises:
      ValueError: if there is no such task, or the classes cannot be read from a custom task's training file.
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
        known = (*tasks, "custom")
        advice = did_you_mean([config.task], known, "Correct the name.")
        raise ValueError(f"data.task is {config.task!r}; allowed are {', '.join(known)}. {advice}")
    return tasks[config.task]


def load_split(task: Task, config: DataConfig, split: Split) -> Examples:
    """The examples of a split of the config's task."""
    if config.task == "demo":
        return demo.load_demo(split)
    if config.task == "custom":
        return load_custom(task, config.source, split)
    return load_examples(task, config.source, split)


def load_tokens(
    task: Task,
    config: DataConfig,
    tokenizer: Any,
    encoder: EncoderConfig,
    split: Split,
    begin: Callable[[str, int], Advance] | None = None,
) -> Tokens:
    """The token arrays of a split, cut to the model's number of positions; `begin` as in `TaskModel.tokens`.

    With `data.holdout` that share of the training examples stands in for the validation set.
    """
    if config.max_length > encoder.max_tokens and config.task != "demo":
        raise ValueError(
            f"data.max_length is {config.max_length} and the model has {encoder.max_tokens} positions. "
            "Choose a smaller data.max_length."
        )
    length = min(config.max_length, encoder.max_tokens)
    source: Split = "train" if config.holdout and split != "test" else split
    examples = load_split(task, config, source)
    advance = None if begin is None else begin(source, len(examples))
    tokens = cached_tokens(examples, tokenizer, length, encoder.pad_token_id, advance)
    if source == "test" or not config.holdout:
        return tokens
    held = held_out(len(tokens), config.holdout)
    return tokens.take(held if split != "train" else np.setdiff1d(np.arange(len(tokens)), held))


def held_out(number: int, share: float) -> np.ndarray:
    """Which of so many training examples are held out: a random part of this share, the same in every run.

    Example:
      >>> held_out(10, 0.2).tolist()
      [4, 6]

    Raises:
      ValueError: if no example would be left on one side.
    """
    held = round(share * number)
    if not 0 < held < number:
        raise ValueError(
            f"data.holdout {share:g} of {number} training examples are {held}; both parts need one. Choose another share."
        )
    return np.sort(np.random.default_rng(0).permutation(number)[:held])
