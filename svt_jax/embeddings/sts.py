"""Unsupervised STS: Spearman's correlation of cosines with human scores, before and after a map of the embeddings.

Two protocols:

  paper   As published: the map is fitted on the sentences that are scored. A file's pool is its pairs, followed by
          those of the other files of its task. Spectral functions are fitted on each side by itself, whitening and
          all-but-the-top on both together. The mean over tokens divides by n + 0.01.
  honest  One map for both sides is fitted on a corpus that the user names, without the scored sentences.

A task's files are aggregated in two ways: "mean" of the files' correlations (as published), and "all" pairs of the task
as one file. They differ by several points, so do not compare a number of one kind with one of the other.

References: arXiv 2208.11790, section 5.1; the published evaluation, whose numbers `protocol="paper"` equals.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any, Literal

import numpy as np

from svt_jax.data.steady_batches import Progress
from svt_jax.embeddings.cache import encode_cached
from svt_jax.embeddings.embed import MAX_LENGTH
from svt_jax.embeddings.sts_files import STSTask, load_sts, read_corpus
from svt_jax.embeddings.sts_maps import PostProcessing, Vectors, fit_honest, fit_published, unscored
from svt_jax.embeddings.sts_scores import analyse, score_tasks

Protocol = Literal["paper", "honest"]

PUBLISHED_EPSILON = 0.01
"""What the published mean over tokens adds to their number: it matters where the scale does, as in SoftDecay."""


def evaluate_sts(
    model: str | Path,
    data: str | Path,
    *,
    protocol: Protocol = "paper",
    poolings: Iterable[str] = ("mean",),
    post_processing: Iterable[PostProcessing] = (PostProcessing(),),
    fit: str | Path | None = None,
    embeddings: str | Path | None = None,
    max_length: int = MAX_LENGTH,
    progress: Callable[[int], Progress] | None = None,
) -> list[dict[str, Any]]:
    """Evaluates every pooling with every map, from one pass over the sentences.

    Args:
      model: a folder or hub id, with a tokenizer.
      data: a folder as `load_sts` reads it.
      protocol: see this file's head.
      poolings: words as `Pooling.parse` reads them.
      post_processing: maps to try.
      fit: a file as `read_corpus` reads it, for protocol "honest"; its sentences that are scored are left out.
      embeddings: a file that keeps the vectors for another time, see `encode_cached`.
      max_length: the most tokens of a sentence.
      progress: called with the number of sentences to encode; returns a function that is called with the number done.
    Returns:
      One table for each pooling and post-processing: "model", "protocol", "pooling", "post", "alpha", "dim", "files", "tasks",
      "average" (see `score_tasks`), "analysis" (see `analyse`), "sentences", "fit", "wall_time_s" and its parts
      "encoding_time_s" and "scoring_time_s".
    Raises:
      ValueError: for bad data, a missing corpus, a model without tokenizer, or a map that cannot be fitted.
    """
    poolings, post_processing = list(poolings), list(post_processing)
    needs_corpus = protocol == "honest" and any(post.name != "none" for post in post_processing)
    if needs_corpus and fit is None:
        raise ValueError(
            "protocol honest needs sentences to fit on that are not scored; allowed are a .txt file with one sentence a "
            "line and a table (.tsv, .csv, .jsonl). Give --fit FILE, or choose --post none."
        )
    if fit is not None and not needs_corpus:
        raise ValueError(
            f"{fit} would not be used: only protocol honest fits on a corpus, and --post none on nothing. "
            "Leave --fit out, or choose --protocol honest and a --post."
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
        for post in post_processing:
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


def distinct_sentences(tasks: Iterable[STSTask]) -> list[str]:
    """Returns every sentence of the tasks once, in order of appearance."""
    return list(dict.fromkeys(s for task in tasks for file in task.files for s in (*file.first, *file.second)))


def published_mean(rows: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """Turns the mean over tokens into the published one, whose denominator is n + 0.01; lengths: int[N], each n."""
    return (rows * (lengths / (lengths + PUBLISHED_EPSILON))[:, None]).astype(rows.dtype)
