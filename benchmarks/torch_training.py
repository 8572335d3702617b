"""The PyTorch side of the GLUE benchmarks: a plain fine-tuning loop for transformers' BERT, and SoftDecay by torch.svd.

It fine-tunes with the numbers of configs/cola.yaml and configs/rte.yaml, the way that a PyTorch user would write it: a
DataLoader that pads each batch to a multiple of 8, AdamW, a linear schedule without warm-up, the model's own dropout, no
clipping. This module imports no JAX, as a user's script would not.
"""

from __future__ import annotations

import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import (
    AutoTokenizer,
    BertForSequenceClassification,
    DataCollatorWithPadding,
    get_linear_schedule_with_warmup,
)
from transformers.trainer_pt_utils import LengthGroupedSampler

from svt_jax.data.glue import TASKS, Examples, Task, load_examples

if TYPE_CHECKING:
    from benchmarks.timing import Candidates

PLAIN, GROUPED, SORTED = "PyTorch", "PyTorch, group_by_length", "PyTorch, sorted"
LEARNING_RATE = 5e-5
MAX_LENGTH = 128
Inputs = dict[str, Tensor]


class SoftDecay(nn.Module):
    """Dropout, then SoftDecay (arXiv 2208.11790) of each example's real tokens, through torch.svd and its derivative.

    The authors' code transforms padded matrices, so that a score depends on how much padding there is. Here, as in
    svt_jax, padding takes no part. It cannot be zeroed: torch.svd's derivative is NaN for repeated singular values.
    LAPACK takes one matrix at a time in either case, so the loop is not what costs.
    """

    def __init__(self, alpha: float = -0.2, dropout: float = 0.1):
        super().__init__()
        self.alpha = nn.Parameter(torch.tensor(alpha))
        self.dropout = nn.Dropout(dropout)

    def forward(self, x: Tensor, lengths: list[int]) -> Tensor:
        x = self.dropout(x)
        padding = x.shape[1]
        return torch.stack(
            [
                nn.functional.pad(self.transform(row[:n]), (0, 0, 0, padding - n))
                for row, n in zip(x, lengths, strict=True)
            ]
        )

    def transform(self, x: Tensor) -> Tensor:
        u, sigma, v = torch.svd(x)
        f = -torch.log(1.0 - self.alpha * (sigma + self.alpha) + 1e-7) / self.alpha
        return (u * (f * (sigma[0] / f[0]))) @ v.mT


class SVTOutput(nn.Module):
    """The end of a BERT layer with SoftDecay before the norm: norm(svt(h + x) + x), the residual entering twice."""

    def __init__(self, plain: Any):
        super().__init__()
        self.dense, self.dropout, self.LayerNorm = plain.dense, plain.dropout, plain.LayerNorm
        self.svt = SoftDecay()
        self.lengths: list[int] = []

    def forward(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        h = self.dropout(self.dense(hidden_states)) + input_tensor
        return self.LayerNorm(self.svt(h, self.lengths) + input_tensor)


class Classifier(nn.Module):
    """transformers' BERT for a task; with SoftDecay in the last layer where `soft_decay`."""

    def __init__(self, folder: Path, num_labels: int, *, soft_decay: bool):
        super().__init__()
        self.bert = BertForSequenceClassification.from_pretrained(folder, num_labels=num_labels)
        self.output = SVTOutput(self.bert.bert.encoder.layer[-1].output) if soft_decay else None
        if self.output is not None:
            self.bert.bert.encoder.layer[-1].output = self.output

    def forward(self, **inputs: Tensor) -> Any:
        if self.output is not None:
            self.output.lengths = inputs["attention_mask"].sum(1).tolist()
        return self.bert(**inputs)


class Data:
    """A split's tokens, and loaders of batches padded to a multiple of 8."""

    def __init__(self, examples: Examples, folder: Path):
        tokenizer = _tokenizer(folder)
        self._collate = DataCollatorWithPadding(tokenizer, pad_to_multiple_of=8)
        pairs = () if examples.second is None else (examples.second,)
        encoded = tokenizer(examples.first, *pairs, truncation=True, max_length=MAX_LENGTH)
        self._rows = [{name: values[n] for name, values in encoded.items()} for n in range(len(examples))]
        self.lengths = [len(row["input_ids"]) for row in self._rows]
        if examples.labels is not None:
            for row, label in zip(self._rows, examples.labels.tolist(), strict=True):
                row["labels"] = label

    def __len__(self) -> int:
        return len(self._rows)

    def loader(self, batch_size: int, *, seed: int | None = None, group_by_length: bool = False) -> Any:
        """Batches in order, or shuffled again at each pass if there is a seed."""
        sampler = None
        generator = None if seed is None else torch.Generator().manual_seed(seed)
        if group_by_length:
            sampler = LengthGroupedSampler(batch_size, lengths=self.lengths, generator=generator)
        return torch.utils.data.DataLoader(
            self._rows,
            batch_size,
            shuffle=seed is not None and sampler is None,
            sampler=sampler,
            collate_fn=self._collate,
            generator=generator,
        )

    @property
    def by_length(self) -> np.ndarray:
        """Numbers of the examples in order of length."""
        return np.argsort(self.lengths, kind="stable")

    def sorted(self, batch_size: int) -> Any:
        """Batches in the order of `by_length`."""
        rows = [self._rows[n] for n in self.by_length]
        return torch.utils.data.DataLoader(rows, batch_size, collate_fn=self._collate)


_tokenizer = functools.cache(AutoTokenizer.from_pretrained)  # once for both splits


class Training:
    """Model, optimizer and schedule; `step` makes one step.

    Args:
      device: "cuda" or "cpu"; None is the first of them that is there.
    """

    def __init__(
        self, folder: Path, task: Task, num_steps: int, seed: int, *, soft_decay: bool, device: str | None = None
    ):
        torch.manual_seed(seed)
        self._device = device or ("cuda" if torch.cuda.is_available() else "cpu")
        self.model = Classifier(folder, task.num_labels, soft_decay=soft_decay).to(self._device)
        self._optimizer = torch.optim.AdamW(self.model.parameters(), lr=LEARNING_RATE, weight_decay=0.0)
        self._schedule = get_linear_schedule_with_warmup(self._optimizer, 0, num_steps)

    def step(self, inputs: Inputs) -> float:
        """Makes one step, and returns the loss before it."""
        self.model.train()
        loss = self.model(**self._placed(inputs)).loss
        self._optimizer.zero_grad(set_to_none=True)
        loss.backward()
        self._optimizer.step()
        self._schedule.step()
        return loss.item()

    def logits(self, batches: Any) -> np.ndarray:
        """Logits of all batches, with dropout off."""
        self.model.eval()
        with torch.inference_mode():
            return np.concatenate(
                [self.model(**self._placed(without_labels(inputs))).logits.cpu().numpy() for inputs in batches]
            )

    def _placed(self, inputs: Inputs) -> Inputs:
        return {name: values.to(self._device) for name, values in inputs.items()}

    @property
    def alpha(self) -> float | None:
        return None if self.model.output is None else self.model.output.svt.alpha.item()


def training_turns(folder: Path, source: str, name: str, soft_decay: bool, batch_size: int, chunk: int) -> Candidates:
    """Calls that make `chunk` more steps and return their number of examples: with random batches, and grouped ones."""
    from benchmarks.timing import torch_device

    task = TASKS[name]
    data = Data(load_examples(task, source, "train"), folder)

    def turn(training: Training, batches: Iterator[Inputs]) -> int:
        examples = 0
        for inputs in itertools.islice(batches, chunk):
            training.step(inputs)
            examples += len(inputs["labels"])
        return examples

    return {
        kind: functools.partial(
            turn,
            Training(folder, task, 10_000, 0, soft_decay=soft_decay, device=torch_device()),
            endless(data.loader(batch_size, seed=0, group_by_length=kind == GROUPED)),
        )
        for kind in (PLAIN, GROUPED)
    }


def evaluation_calls(folder: Path, source: str, name: str, soft_decay: bool, batch_size: int) -> Candidates:
    """Calls that evaluate the validation set: in its order, and sorted by length."""
    from benchmarks.timing import torch_device

    task = TASKS[name]
    data = Data(load_examples(task, source, "validation"), folder)
    training = Training(folder, task, 1, 0, soft_decay=soft_decay, device=torch_device())
    return {
        PLAIN: lambda: training.logits(data.loader(batch_size)),
        SORTED: lambda: training.logits(data.sorted(batch_size)),
    }


def without_labels(inputs: Inputs) -> Inputs:
    return {name: values for name, values in inputs.items() if name != "labels"}


def endless(loader: Any) -> Iterator[Inputs]:
    """Yields batches epoch after epoch."""
    while True:
        yield from loader
