"""Scores and measures of sentence embeddings on STS tasks."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from svt_jax.embeddings.maps import CorpusMap
from svt_jax.embeddings.sts_files import STSTask
from svt_jax.embeddings.sts_maps import SIDES, Maps, Vectors
from svt_jax.evaluation.metrics import compute_metrics
from svt_jax.spectral import measures

ANALYSED = 1000
"""The most sentences of a task that are measured: all pairs of them are compared."""


def score_tasks(tasks: Sequence[STSTask], vectors: Vectors, maps: Sequence[Maps]) -> dict[str, Any]:
    """Computes Spearman x 100 of every file and task.

    Args:
      tasks: the tasks to score.
      vectors: the embeddings of their sentences.
      maps: the maps of each task.
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
    """Measures uniformity, spectrum and neighbourhoods before and after the map: means over the tasks.

    Up to 1000 distinct first sentences of each task are measured, evenly spaced over the task.

    Returns:
      {"before": {...}, "after": {...}, "sentences": number}: `token_uniformity`, `explained_variance_1` and `_3`,
      `rbf_distance`, and `local_structure`, the error per sentence of rebuilding it from its neighbours before the map
      (root of the mean of squares, unit vectors; for `before` its own error).
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

    def mean(part: int) -> dict[str, float]:  # a task of very few sentences lacks some
        names = dict.fromkeys(name for m in measured for name in m[part])
        return {name: float(np.mean([m[part][name] for m in measured if name in m[part]])) for name in names}

    return {"before": mean(0), "after": mean(1), "sentences": sentences}


def _task_cosines(vectors: Vectors, task: STSTask, maps: Maps) -> np.ndarray:
    first, second = (vectors.index([s for file in task.files for s in side(file)]) for side in SIDES)
    if maps[0] is maps[1]:
        u, v = np.split(_mapped(vectors, np.concatenate([first, second]), maps[0]), 2)
    else:
        u, v = _mapped(vectors, first, maps[0]), _mapped(vectors, second, maps[1])
    return 1.0 - 0.5 * np.sum(np.square(u - v), axis=1)  # not u.v: exactly 1 for equal vectors


def _mapped(vectors: Vectors, index: np.ndarray, corpus_map: CorpusMap | None) -> np.ndarray:
    """Returns the mapped rows, scaled to length 1."""
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
