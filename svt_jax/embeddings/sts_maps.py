"""Maps of sentence embeddings for STS, and what each protocol fits them on."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence

import numpy as np

from svt_jax.embeddings.maps import AllButTheTop, CorpusMap, SpectralMap, Whitening
from svt_jax.embeddings.sts_files import PairFile, STSTask
from svt_jax.spectral.functions import SoftDecay
from svt_jax.text import did_you_mean

POST_PROCESSING = ("none", "soft_decay", "centered_soft_decay", "whitening", "all_but_the_top")

SIDES: tuple[Callable[[PairFile], list[str]], ...] = (lambda file: file.first, lambda file: file.second)


@dataclasses.dataclass(frozen=True)
class PostProcessing:
    """A map of embeddings, not fitted yet.

    Attributes:
      name: one of `POST_PROCESSING`.
      alpha: SoftDecay's alpha.
      dim: number of directions that whitening keeps; None keeps all.
    """

    name: str = "none"
    alpha: float = -0.6
    dim: int | None = None

    def __post_init__(self) -> None:
        if self.name not in POST_PROCESSING:
            advice = did_you_mean([self.name], POST_PROCESSING, "Correct it.")
            raise ValueError(f"post is {self.name!r}; allowed are {', '.join(POST_PROCESSING)}. {advice}")
        if self.dim is not None and self.name != "whitening":
            raise ValueError(
                f"dim is {self.dim} and post {self.name}; only whitening keeps chosen directions. Leave it out."
            )
        self.make()  # checks dim
        SoftDecay(alpha=self.alpha)  # checks alpha, whether it is used or not

    @property
    def each_side(self) -> bool:
        """Whether the published evaluation fits the two sides of the pairs separately."""
        return self.name.endswith("soft_decay")

    def make(self) -> CorpusMap | None:
        """Makes a map that has seen nothing; None for "none"."""
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
      sentences: distinct sentences.
      rows: their embeddings, float32[N, D].
    """

    def __init__(self, sentences: Sequence[str], rows: np.ndarray):
        self.rows = rows
        self._number = {sentence: n for n, sentence in enumerate(sentences)}

    def index(self, sentences: Sequence[str]) -> np.ndarray:
        """Returns the row of each sentence, int[n]."""
        return np.asarray([self._number[sentence] for sentence in sentences], np.int64)


Maps = tuple[CorpusMap | None, CorpusMap | None]
"""The maps of the first and of the second sentences; None leaves them as they are."""


def fit_published(tasks: Sequence[STSTask], vectors: Vectors, post: PostProcessing) -> list[Maps]:
    """Fits the maps of each task by protocol "paper".

    The pools of a task's files are the same pairs in another order, and a fit does not depend on the order of rows, so one
    fit serves all of them.

    Raises:
      ValueError: if a task has fewer rows than the map needs.
    """
    fitted: list[Maps] = []
    for task in tasks:
        sides = [vectors.rows[vectors.index([s for file in task.files for s in side(file)])] for side in SIDES]
        if post.each_side:
            first, second = (_fit(post, [rows], task.name) for rows in sides)
            fitted.append((first, second))
        else:
            both = _fit(post, sides, task.name)
            fitted.append((both, both))
    return fitted


def fit_honest(tasks: Sequence[STSTask], vectors: Vectors, post: PostProcessing, corpus: Sequence[str]) -> list[Maps]:
    """Fits one map for all tasks and both sides, on a corpus that `unscored` makes.

    Raises:
      ValueError: if the corpus has fewer rows than the map needs.
    """
    both = None if post.name == "none" else _fit(post, [vectors.rows[vectors.index(corpus)]], "the corpus")
    return [(both, both)] * len(tasks)


def unscored(corpus: Iterable[str], scored: Iterable[str]) -> list[str]:
    """Returns the sentences of a corpus that are not scored.

    Raises:
      ValueError: if there are none.
    """
    corpus, kept_out = list(corpus), set(scored)
    left = [sentence for sentence in corpus if sentence not in kept_out]
    if not left:
        raise ValueError(f"all {len(corpus)} sentences to fit on are scored ones. Choose another corpus.")
    return left


def _fit(post: PostProcessing, matrices: list[np.ndarray], where: str) -> CorpusMap | None:
    corpus_map = post.make()
    if corpus_map is None:
        return None
    try:
        _ = corpus_map.fit(matrices).matrix
    except ValueError as error:
        raise ValueError(f"{post.name} cannot be fitted on {where}: {error}") from error
    return corpus_map
