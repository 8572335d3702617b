"""Unsupervised STS: Spearman's correlation of cosines with human scores, before and after a map of the embeddings.

Two protocols:

  paper   As published: the map is fitted on the sentences that are scored. A file's pool is its pairs followed by those of
          the other files of its task, each side on its own (spectral functions) or both together (whitening,
          all-but-the-top), and the mean over tokens has n + 0.01 in its denominator.
  honest  The map is fitted on a corpus that the user names, without the sentences that are scored, for both sides.

Both aggregations of a task's files are given: "mean" of the files' correlations (as published), and "all" pairs of the
task as one file. They differ by several points, so numbers of one kind cannot be set beside the other.

References: arXiv 2208.11790, section 5.1; the published evaluation, whose numbers `protocol="paper"` equals.
"""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np

from svt_jax.data.sts import PairFile, STSTask, load_sts, read_corpus
from svt_jax.evaluation.embed import MAX_LENGTH, Progress
from svt_jax.evaluation.embeddings_file import encode_cached
from svt_jax.evaluation.metrics import compute_metrics
from svt_jax.spectral import measures
from svt_jax.spectral.corpus import AllButTheTop, CorpusMap, SpectralMap, Whitening
from svt_jax.spectral.functions import SoftDecay

Protocol = Literal["paper", "honest"]

POSTS = ("none", "soft_decay", "centered_soft_decay", "whitening", "all_but_the_top")
PUBLISHED_EPSILON = 0.01
"""What the published mean over tokens adds to their number: it matters where the scale does, as in SoftDecay."""
ANALYSED = 1000
"""Sentences of a task that are measured: all pairs of them are compared."""


@dataclasses.dataclass(frozen=True)
class Post:
    """A map of embeddings, not fitted yet.

    Attributes:
      name: one of `POSTS`.
      alpha: of SoftDecay.
      dim: directions that whitening keeps; all if None.
    """

    name: str = "none"
    alpha: float = -0.6
    dim: int | None = None

    def __post_init__(self) -> None:
        if self.name not in POSTS:
            raise ValueError(f"post is {self.name!r}; allowed are {', '.join(POSTS)}. Correct it.")
        if self.dim is not None and self.name != "whitening":
            raise ValueError(
                f"dim is {self.dim} and post {self.name}; only whitening keeps chosen directions. Leave it out."
            )
        self.make()  # alpha and dim in their ranges

    @property
    def each_side(self) -> bool:
        """Whether the published evaluation fits the two sides of the pairs apart."""
        return self.name.endswith("soft_decay")

    def make(self) -> CorpusMap | None:
        """A map that has seen nothing; None for "none"."""
        match self.name:
            case "soft_decay" | "centered_soft_decay":
                return SpectralMap(SoftDecay(alpha=self.alpha, centered=self.name.startswith("centered")))
            case "whitening":
                return Whitening(self.dim)
            case "all_but_the_top":
                return AllButTheTop()
        return None


class Vectors:
    """The embeddings of distinct sentences, found by their text.

    Args:
      sentences: distinct.
      rows: float32[N, D].
    """

    def __init__(self, sentences: Sequence[str], rows: np.ndarray):
        self.rows = rows
        self._number = {sentence: n for n, sentence in enumerate(sentences)}

    def index(self, sentences: Sequence[str]) -> np.ndarray:
        """int[n], the row of each sentence."""
        return np.asarray([self._number[sentence] for sentence in sentences], np.int64)


def distinct_sentences(tasks: Sequence[STSTask]) -> list[str]:
    """Every sentence of the tasks once, in order of appearance."""
    return list(dict.fromkeys(s for task in tasks for file in task.files for s in (*file.first, *file.second)))


def evaluate_sts(
    model: str | Path,
    data: str | Path,
    *,
    protocol: Protocol = "paper",
    poolings: Sequence[str] = ("mean",),
    posts: Sequence[Post] = (Post(),),
    fit: str | Path | None = None,
    embeddings: str | Path | None = None,
    max_length: int = MAX_LENGTH,
    progress: Callable[[int], Progress] | None = None,
) -> list[dict[str, Any]]:
    """Every pooling with every post, from one pass over the sentences.

    Args:
      model: a folder or hub id, with a tokenizer.
      data: a folder as `load_sts` reads it.
      protocol: see this file's head.
      poolings: words as `Pooling.parse` reads them.
      posts: maps to try.
      fit: a file as `read_corpus` reads it, for protocol "honest"; its sentences that are scored are left out.
      embeddings: a file that keeps the vectors for another time, see `encode_cached`.
      max_length: tokens of a sentence.
      progress: called with the number of sentences to encode, gives what is called with those done.
    Returns:
      One table for each pooling and post: "model", "protocol", "pooling", "post", "alpha", "dim", "files", "tasks",
      "average" (see `score_tasks`), "analysis" (see `analyse`), "sentences", "fit", "wall_time_s".
    Raises:
      ValueError: for bad data, a missing corpus, a model without tokenizer, or a map that cannot be fitted.
    """
    needs_corpus = protocol == "honest" and any(post.name != "none" for post in posts)
    if needs_corpus and fit is None:
        raise ValueError(
            "protocol honest needs sentences to fit on that are not scored; allowed are a text file with one sentence a "
            "line and a .tsv file. Give --fit FILE, or choose --post none."
        )
    if fit is not None and not needs_corpus:
        raise ValueError(
            f"{fit} would not be used: only protocol honest fits on a corpus, and post none on nothing. "
            "Leave --fit out, or choose --protocol honest and a post."
        )
    tasks = load_sts(data)
    scored = distinct_sentences(tasks)
    found = [] if fit is None else read_corpus(fit)
    corpus = unscored(found, scored) if found else []
    sentences = scored + corpus
    start = time.perf_counter()
    by_pooling, lengths = encode_cached(model, sentences, poolings, max_length, embeddings, progress)
    encoded = time.perf_counter() - start
    tables = []
    for pooling, rows in zip(poolings, by_pooling, strict=True):
        if protocol == "paper" and not pooling.startswith("cls"):
            rows = published_mean(rows, lengths)
        vectors = Vectors(sentences, rows)
        for post in posts:
            start = time.perf_counter()
            fitted = (
                fit_published(tasks, vectors, post) if protocol == "paper" else fit_honest(tasks, vectors, post, corpus)
            )
            scores = score_tasks(tasks, vectors, fitted)
            scoring = time.perf_counter() - start
            tables.append(
                {
                    "model": str(model),
                    "protocol": protocol,
                    "pooling": pooling,
                    "post": post.name,
                    "alpha": post.alpha if post.each_side else None,
                    "dim": post.dim,
                    **scores,
                    "analysis": analyse(tasks, vectors, fitted),
                    "sentences": len(sentences),
                    "fit": None
                    if fit is None or post.name == "none"
                    else {"file": str(fit), "sentences": len(corpus), "left_out": len(found) - len(corpus)},
                    "encoding_time_s": encoded,
                    "scoring_time_s": scoring,
                    "wall_time_s": encoded + scoring,
                }
            )
    return tables


Maps = tuple[CorpusMap | None, CorpusMap | None]
"""Of the first and of the second sentences; None leaves them as they are."""


def fit_published(tasks: Sequence[STSTask], vectors: Vectors, post: Post) -> list[Maps]:
    """The maps of each task by protocol "paper".

    The pools of a task's files are the same pairs in another order, and a fit does not depend on the order of rows, so one
    fit serves all of them.

    Raises:
      ValueError: if a task has fewer rows than the map needs.
    """
    fitted: list[Maps] = []
    for task in tasks:
        sides = [vectors.rows[vectors.index([s for file in task.files for s in side(file)])] for side in _SIDES]
        if post.each_side:
            first, second = (_fit(post, [rows], task.name) for rows in sides)
            fitted.append((first, second))
        else:
            both = _fit(post, sides, task.name)
            fitted.append((both, both))
    return fitted


def fit_honest(tasks: Sequence[STSTask], vectors: Vectors, post: Post, corpus: Sequence[str]) -> list[Maps]:
    """One map for all tasks and both sides, fitted on a corpus; `unscored` makes one.

    Raises:
      ValueError: if the corpus has fewer rows than the map needs.
    """
    both = None if post.name == "none" else _fit(post, [vectors.rows[vectors.index(corpus)]], "the corpus")
    return [(both, both)] * len(tasks)


def unscored(corpus: Sequence[str], scored: Sequence[str]) -> list[str]:
    """The sentences of a corpus that are not scored.

    Raises:
      ValueError: if there are none.
    """
    kept_out = set(scored)
    left = [sentence for sentence in corpus if sentence not in kept_out]
    if not left:
        raise ValueError(f"all {len(corpus)} sentences to fit on are scored ones. Choose another corpus.")
    return left


def published_mean(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The published mean over tokens, whose denominator is n + 0.01, from the mean; lengths: int[N], the n."""
    return (rows * (lengths / (lengths + PUBLISHED_EPSILON))[:, None]).astype(rows.dtype)


def score_tasks(tasks: Sequence[STSTask], vectors: Vectors, maps: Sequence[Maps]) -> dict[str, Any]:
    """Spearman x 100 of every file and task.

    Args:
      tasks: what to score.
      vectors: of their sentences.
      maps: of each task.
    Returns:
      {"files": {name: score}, "tasks": {name: {"mean", "all"}}, "average": {"mean", "all"}}.
    Raises:
      NonFiniteError: if a cosine is not finite.
    """
    files: dict[str, float] = {}
    scores: dict[str, dict[str, float]] = {}
    for task, sides in zip(tasks, maps, strict=True):
        cosines = np.split(_task_cosines(vectors, task, sides), np.cumsum([len(file) for file in task.files])[:-1])
        by_file = [_spearman(values, file.scores) for values, file in zip(cosines, task.files, strict=True)]
        files |= {file.name: score for file, score in zip(task.files, by_file, strict=True)}
        everything = np.concatenate([file.scores for file in task.files])
        scores[task.name] = {"mean": float(np.mean(by_file)), "all": _spearman(np.concatenate(cosines), everything)}
    average = {kind: float(np.mean([score[kind] for score in scores.values()])) for kind in ("mean", "all")}
    return {"files": files, "tasks": scores, "average": average}


def analyse(tasks: Sequence[STSTask], vectors: Vectors, maps: Sequence[Maps]) -> dict[str, Any]:
    """Uniformity, spectrum and neighbourhoods of the embeddings before and after the map: means over the tasks.

    Of each task up to 1000 distinct first sentences are measured, evenly spaced over the task.

    Returns:
      {"before": {...}, "after": {...}, "sentences": number}: `token_uniformity`, `explained_variance_1` and `_3`,
      `rbf_distance`, and `local_structure`, the error per sentence of rebuilding it from its neighbours before the map
      (root of the mean of squares, unit vectors; of `before` its own error).
    """
    measured: list[tuple[dict[str, float], dict[str, float]]] = []
    sentences = 0
    for task, (first, _) in zip(tasks, maps, strict=True):
        rows = np.unique(vectors.index([s for file in task.files for s in file.first]))
        rows = rows[np.linspace(0, len(rows) - 1, min(ANALYSED, len(rows))).astype(int)]
        before = vectors.rows[rows]
        after = before if first is None else np.asarray(first.transform(before))
        sentences += len(rows)
        measured.append((_measures(before, before), _measures(before, after)))

    def mean(part: int) -> dict[str, float]:
        return {name: float(np.mean([m[part][name] for m in measured])) for name in measured[0][part]}

    return {"before": mean(0), "after": mean(1), "sentences": sentences}


_SIDES: tuple[Callable[[PairFile], list[str]], ...] = (lambda file: file.first, lambda file: file.second)


def _fit(post: Post, matrices: list[np.ndarray], where: str) -> CorpusMap | None:
    corpus_map = post.make()
    if corpus_map is None:
        return None
    try:
        _ = corpus_map.fit(matrices).matrix
    except ValueError as error:
        raise ValueError(f"{post.name} cannot be fitted on {where}: {error}") from error
    return corpus_map


def _task_cosines(vectors: Vectors, task: STSTask, maps: Maps) -> np.ndarray:
    first, second = (vectors.index([s for file in task.files for s in side(file)]) for side in _SIDES)
    if maps[0] is maps[1]:
        u, v = np.split(_mapped(vectors, np.concatenate([first, second]), maps[0]), 2)
    else:
        u, v = _mapped(vectors, first, maps[0]), _mapped(vectors, second, maps[1])
    return 1.0 - 0.5 * np.sum(np.square(u - v), axis=1)  # not u.v: exactly 1 for equal vectors


def _mapped(vectors: Vectors, index: np.ndarray, corpus_map: CorpusMap | None) -> np.ndarray:
    """The mapped rows, of length 1."""
    # each sentence once: equal ones keep vectors that are equal to the bit, and their pairs stay tied in the ranking
    rows, place = np.unique(index, return_inverse=True)
    x = vectors.rows[rows]
    x = x if corpus_map is None else np.asarray(corpus_map.transform(x))
    norm = np.linalg.norm(x, axis=1, keepdims=True)
    return (x / np.where(norm > 0, norm, 1.0))[place]


def _spearman(cosines: np.ndarray, scores: np.ndarray) -> float:
    return 100.0 * compute_metrics(["spearmanr"], cosines[:, None], scores)["spearmanr"]


def _measures(before: np.ndarray, x: np.ndarray) -> dict[str, float]:
    neighbours = min(12, len(before) - 1)
    values: dict[str, Any] = {"token_uniformity": measures.token_uniformity(x)}
    values |= {f"explained_variance_{k}": measures.explained_variance(x, k) for k in (1, 3) if k <= min(x.shape)}
    values["rbf_distance"] = measures.rbf_distance(x)
    if neighbours > 0:
        values["local_structure"] = measures.local_structure(before, x, neighbours) / len(before) ** 0.5
    return {name: float(value) for name, value in values.items()}
