"""The config's section `data`: the task, where its examples are, and how they are laid out in batches."""

from __future__ import annotations

import dataclasses
from typing import Literal

from svt_jax.run.config_values import expand_home, positive
from svt_jax.text import printable

LAYOUTS = {"packed": ("row_length", "rows", "groups"), "padded": ("buckets", "group_by_length")}
"""The layouts of a batch, and the keys of `DataConfig` that only they read."""


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """The task and where its examples are.

    Attributes:
        task: demo, cola, sst2, mrpc, stsb, qqp, mnli, qnli, rte, wnli or custom.
        source: hub, or a folder in the official GLUE download layout (<source>/RTE/train.tsv). For custom, a
            folder with train, validation and optionally test as .tsv, .csv or .jsonl. A folder may lie in a bucket.
        max_length: Longer examples are cut to this many tokens.
        layout: packed puts several examples into a row, so that one program serves all batches and there is next to
            no padding. padded gives each example a row of its own.
        row_length: For packed: tokens of a row, at least those of the longest example; auto chooses from the data.
        rows: For packed: rows of a micro-batch; auto chooses from the data.
        groups: For packed: groups of rows. A group stays on one device, and its rows hold an equal share of the
            batch; auto is the number of devices that the batch is divided over when the run starts.
        buckets: For padded: lengths that training batches are padded to, auto (at most eight, chosen from the data) or
            a list.
        group_by_length: For padded: make training batches of examples of similar length, in random order, to reduce
            padding.
        eval_batch_size: Largest number of examples in an evaluation batch.
        holdout: Share of the training examples that is not trained on and is scored in place of the validation set, as
            for a search of settings; 0 is none.
        text_columns: For custom: the column of the sentence, or the two columns of a pair.
        label_column: For custom: the column of the label.
        labels: For custom: regression, or the names of the classes in order of their numbers; null reads them from
            the training file.
    """

    task: str = "demo"
    source: str = "hub"
    max_length: int = 128
    layout: Literal["packed", "padded"] = "packed"
    row_length: int | Literal["auto"] = "auto"
    rows: int | Literal["auto"] = "auto"
    groups: int | Literal["auto"] = "auto"
    buckets: list[int] | Literal["auto"] = "auto"
    group_by_length: bool = True
    eval_batch_size: int = 64
    holdout: float = 0.0
    text_columns: list[str] | None = None
    label_column: str | None = None
    labels: list[str] | Literal["regression"] | None = None

    def __post_init__(self) -> None:
        expand_home(self, "source")
        if isinstance(self.labels, list):
            names = [str(label) if type(label) is int else label for label in self.labels]
            object.__setattr__(self, "labels", names)
        positive("data", self, "max_length", "eval_batch_size")
        if self.layout not in LAYOUTS:
            raise ValueError(f"data.layout is {self.layout!r}; allowed are {', '.join(LAYOUTS)}. Correct the config.")
        for name in ("row_length", "rows", "groups"):
            value = getattr(self, name)
            if value != "auto" and not (type(value) is int and value > 0):
                raise ValueError(f"data.{name} is {value!r}; allowed is a number from 1, or auto. Correct the config.")
        if not 0 <= self.holdout < 1:
            raise ValueError(
                f"data.holdout is {self.holdout}; allowed is a share from 0 to below 1. Correct the config."
            )
        self._check_custom()
        if isinstance(self.buckets, list) and (
            not self.buckets or min(self.buckets) < 1 or max(self.buckets) < self.max_length
        ):
            raise ValueError(
                f"data.buckets is {self.buckets}; the longest must be at least data.max_length {self.max_length}. "
                "Add a longer one, or use auto."
            )

    def _check_custom(self) -> None:
        named = {name: getattr(self, name) for name in ("text_columns", "label_column", "labels")}
        given = [f"data.{name} {value!r}" for name, value in named.items() if value is not None]
        columns = [*(self.text_columns or []), self.label_column]
        if self.task != "custom" and given:
            raise ValueError(
                f"data.task is {self.task!r} and there is {', '.join(given)}; only the task custom has columns and labels "
                "to name. Set data.task to custom, or leave them out."
            )
        if self.task == "custom" and (None in columns or len(columns) not in (2, 3) or len({*columns}) < len(columns)):
            raise ValueError(
                f"data.text_columns is {self.text_columns} and data.label_column is {self.label_column!r}; the task custom "
                "needs one or two columns of text and another one of labels. Name them."
            )
        if isinstance(self.labels, list) and not (
            all(isinstance(label, str) for label in self.labels) and len({*self.labels}) == len(self.labels) > 1
        ):
            raise ValueError(
                f"data.labels is {printable(str(self.labels))}; allowed are two or more different names, regression, or null. Correct it."
            )
