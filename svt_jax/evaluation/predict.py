"""A classifier's predictions for texts, by the names of its classes."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import jax
import numpy as np
from flax import nnx

from svt_jax.data.glue import Examples
from svt_jax.data.steady_batches import Progress, Static, fill
from svt_jax.data.tokenizer import Advance, check_vocabulary, load_tokenizer, tokenize
from svt_jax.evaluation.metrics import check_finite
from svt_jax.host import compiler_options
from svt_jax.models.files import local_folder
from svt_jax.models.heads import Classifier
from svt_jax.models.hf import load_classifier
from svt_jax.models.packed import read_batch

MAX_LENGTH = 128


@dataclasses.dataclass(frozen=True)
class Predictions:
    """Predictions for N texts, in their order.

    Attributes:
      classes: names of the classes; None for regression, as `labels` and `probabilities`.
      labels: the most probable class of each text.
      probabilities: float32[N, number of classes], softmax of the logits, in the order of `classes`.
      values: float32[N], the predicted numbers of a regression; None for classes.

    Example:
      >>> found = Predictions.of(np.array([[0.0, 0.0], [9.0, 0.0]], np.float32), ("no", "yes"))
      >>> found.labels, found.probabilities.round(3).tolist()
      (['no', 'no'], [[0.5, 0.5], [1.0, 0.0]])
      >>> next(iter(found))
      {'label': 'no', 'probabilities': {'no': 0.5, 'yes': 0.5}}
    """

    classes: tuple[str, ...] | None
    labels: list[str] | None
    probabilities: np.ndarray | None
    values: np.ndarray | None

    @classmethod
    def of(cls, logits: np.ndarray, class_names: tuple[str, ...] | None = None) -> Predictions:
        """Builds from logits float32[N, C]; C = 1 is a regression. Classes without names are LABEL_0, LABEL_1, ..."""
        number = logits.shape[1]
        if number == 1:
            return cls(None, None, None, logits[:, 0])
        classes = class_names or tuple(f"LABEL_{n}" for n in range(number))
        exact = logits.astype(np.float64)
        odds = np.exp(exact - exact.max(axis=1, keepdims=True))
        labels = [classes[n] for n in logits.argmax(axis=1)]
        return cls(classes, labels, (odds / odds.sum(axis=1, keepdims=True)).astype(np.float32), None)

    def __len__(self) -> int:
        return len(self.values if self.labels is None else self.labels)  # type: ignore[arg-type]

    def __iter__(self) -> Iterator[dict[str, Any]]:
        """One dict for each text: label and probabilities by name, or value."""
        if self.labels is None:
            assert self.values is not None, "a regression has values"
            yield from ({"value": value} for value in _plain(self.values))
            return
        assert self.classes is not None, "labels are names of classes"
        assert self.probabilities is not None, "a class has a probability"
        for label, row in zip(self.labels, self.probabilities, strict=True):
            yield {"label": label, "probabilities": dict(zip(self.classes, _plain(row), strict=True))}


def _plain(numbers: np.ndarray) -> list[float]:
    """Numbers with no more digits than float32 has; as float32 they are the same."""
    return [float(str(number)) for number in numbers]


def predict(
    model: str | Path | Classifier,
    texts: Iterable[str] | Iterable[tuple[str, str]],
    tokenizer: Any = None,
    *,
    max_length: int = MAX_LENGTH,
) -> Predictions:
    """Predicts the classes of texts, or the numbers of a regression.

    Args:
      model: a folder or hub id of a trained classifier with a tokenizer; or a classifier, for which `tokenizer` is needed.
      texts: strings, or pairs of strings for a task on pairs.
      tokenizer: a transformers tokenizer.
      max_length: the most tokens of a text or pair, special ones included; what is longer is cut. At most the model's
        positions.
    Returns:
      The predictions, in the order of the texts.
    Raises:
      ValueError: if the model has no head or no tokenizer, the tokenizer is of another model's vocabulary, or a text is
        neither a string nor a pair of strings.
      NonFiniteError: if a logit is not finite.
    """
    examples = _examples(texts)
    if isinstance(model, Classifier):
        if tokenizer is None:
            raise ValueError(
                "a classifier in memory has no tokenizer; allowed is one with tokenizer=, as "
                "transformers.AutoTokenizer.from_pretrained(FOLDER) loads it. Give it, or call svt_jax.predict(FOLDER, texts)."
            )
        return predict_examples(model, examples, tokenizer, max_length)
    classifier, own = load_predictor(model)
    return predict_examples(classifier, examples, own if tokenizer is None else tokenizer, max_length)


def load_predictor(path_or_id: str | Path) -> tuple[Classifier, Any]:
    """A trained classifier and its tokenizer. Raises ValueError if either is missing."""
    folder = local_folder(path_or_id)
    classifier = load_classifier(folder)
    return classifier, load_tokenizer(folder, classifier.encoder.config.vocab_size)


def predict_examples(
    classifier: Classifier,
    examples: Examples,
    tokenizer: Any,
    max_length: int = MAX_LENGTH,
    *,
    tokenized: Advance | None = None,
    progress: Progress | None = None,
) -> Predictions:
    """As `predict`, for a classifier and texts in columns.

    Args:
      tokenized: is told of each block that was tokenised.
      progress: is told of each batch that was computed.
    """
    config = classifier.encoder.config
    check_vocabulary(tokenizer, config.vocab_size)
    logits = np.zeros((len(examples), classifier.num_labels), np.float32)
    if len(examples):
        length = min(max_length, config.max_tokens)
        tokens = tokenize(examples, tokenizer, length, config.pad_token_id, tokenized)
        graphdef, state = nnx.split(classifier)

        def compute(batch: dict[str, np.ndarray], static: Static) -> tuple[jax.Array]:
            return (_program()(graphdef, static, state, batch),)

        fill([logits], tokens, compute, progress)
    check_finite(logits)
    return Predictions.of(logits, classifier.class_names)


@functools.cache
def _program() -> Any:
    return jax.jit(_logits, static_argnums=(0, 1), compiler_options=compiler_options("inference"))


def _logits(graphdef: nnx.GraphDef, static: Static, state: nnx.State, batch: dict[str, jax.Array]) -> jax.Array:
    classifier: Classifier = nnx.merge(graphdef, state)
    return classifier.classify(*read_batch(batch, **dict(static)))[0]


def _examples(texts: Iterable[str] | Iterable[tuple[str, str]]) -> Examples:
    single = isinstance(texts, str | bytes) or not isinstance(texts, Iterable)
    given: list[Any] = [] if single else list(texts)  # a generator can be read once
    if not single and all(isinstance(text, str) for text in given):
        return Examples(given, None, None)
    pairs = [isinstance(each, list | tuple) and [type(text) for text in each] == [str, str] for each in given]
    if single or not all(pairs):
        what = repr(texts)[:60] if single else f"{repr(given[pairs.index(False)])[:60]} at place {pairs.index(False)}"
        raise ValueError(
            f"texts has {what}; allowed is a list of strings, or a list of pairs of strings. Put a single text into a list."
        )
    return Examples([first for first, _ in given], [second for _, second in given], None)
