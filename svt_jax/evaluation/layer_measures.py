"""What the probe measures of one state, by name; what several measures share is computed once.

A measure is one of three kinds: a number of each example's token matrix; a number of the whole sample, whose tokens are
one set; or a number of each example's attention maps, as the mean over the heads. docs/measures.md lists all.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp

from svt_jax.spectral import measures
from svt_jax.spectral.measures import ranks
from svt_jax.text import did_you_mean

Array = jax.Array

MEASURES = (
    "skewness",
    "median_ratio",
    "token_uniformity",
    "cls_uniformity",
    "explained_variance_1",
    "explained_variance_3",
    "effective_rank",
)
"""Those of a training run's readings, in spectrum.jsonl and the report."""


PAIRED = 1024
"""Measures that rest on pairs of tokens take at most this many of the sample, at even distances: their cost is its square."""


class LayerState:
    """Token matrices of one state, and what else measures may need of it. What is not given has no measure.

    Args:
      x: float[E, L, D].
      mask: bool[E, L], true for real tokens.
      words: int32[E, L], each token's number in the vocabulary, negative for special tokens.
      before: float[E, L, D], the state that this one was made from.
      attention: float[E, N, L, L], the maps of the layer that made it.
      most: the largest number of real tokens; None is E L.
    """

    def __init__(
        self,
        x: Array,
        mask: Array,
        *,
        words: Array | None = None,
        before: Array | None = None,
        attention: Array | None = None,
        most: int | None = None,
    ):
        self.x = x.astype(jnp.promote_types(x.dtype, jnp.float32))
        self.mask = mask.astype(bool)
        self.words, self.before, self.attention = words, before, attention
        self._most = self.mask.size if most is None else min(most, self.mask.size)

    @functools.cached_property
    def sigma(self) -> Array:
        """The singular values [E, R]: the one decomposition of a reading."""
        return measures.singular_values(self.x, self.mask)

    @functools.cached_property
    def count(self) -> Array:
        return ranks.count_of(self.x, self.mask)

    @functools.cached_property
    def summary(self) -> measures.SpectrumSummary:
        return measures.spectrum_summary_of(self.sigma, self.count)

    @functools.cached_property
    def _places(self) -> Array:
        return jnp.nonzero(self.mask.reshape(-1), size=self._most, fill_value=0)[0]

    @functools.cached_property
    def real(self) -> Array:
        """bool[M], which rows of `tokens` are tokens."""
        return jnp.arange(self._most) < jnp.sum(self.mask)

    def gathered(self, values: Array) -> Array:
        """Values [E, L, ...] of the sample's real tokens one after another, [M, ...]."""
        return values.reshape(-1, *values.shape[2:])[self._places]

    @functools.cached_property
    def tokens(self) -> Array:
        return self.gathered(self.x)

    @functools.cached_property
    def few(self) -> Array:
        """int[PAIRED at most], places in `tokens` at even distances."""
        size = min(PAIRED, self._most)
        return jnp.arange(size) * jnp.maximum(jnp.sum(self.mask), size) // size


def _explained(k: int) -> Callable[[LayerState], Array]:
    return lambda s: measures.explained_variance_of(s.sigma, min(k, s.sigma.shape[-1]))


def _self_similarity(s: LayerState) -> Array:
    assert s.words is not None
    words = s.gathered(s.words)[s.few]
    return measures.self_similarity(s.tokens[s.few], words, s.real[s.few] & (words >= 0))


def _cka(s: LayerState) -> Array:
    assert s.before is not None
    before = s.before.reshape(-1, s.before.shape[-1])[s._places[s.few]]
    return measures.linear_cka(s.tokens[s.few], before, s.real[s.few])


def _of_heads(measure: Callable[[Array, Array], Array]) -> Callable[[LayerState], Array]:
    def compute(s: LayerState) -> Array:
        assert s.attention is not None
        return jnp.mean(measure(s.attention, s.mask), axis=-1)

    return compute


OF_EXAMPLES: dict[str, Callable[[LayerState], Array]] = {
    "skewness": lambda s: s.summary.skewness,
    "kurtosis": lambda s: s.summary.kurtosis,
    "median_ratio": lambda s: s.summary.median_ratio,
    "token_uniformity": lambda s: measures.token_uniformity(s.x, s.mask),
    "cls_uniformity": lambda s: measures.cls_uniformity(s.x, s.mask),
    "explained_variance_1": _explained(1),
    "explained_variance_3": _explained(3),
    "effective_rank": lambda s: s.summary.effective_rank,
    "rank_me": lambda s: ranks.rank_me_of(s.sigma, s.count),
    "stable_rank": lambda s: ranks.stable_rank_of(s.sigma),
    "participation_ratio": lambda s: ranks.participation_ratio_of(s.sigma),
    "matrix_entropy": lambda s: ranks.matrix_entropy_of(s.sigma),
    "alpha_req": lambda s: ranks.alpha_req_of(s.sigma, s.count),
    "mean_token_share": lambda s: measures.mean_token_share(s.x, s.mask),
    "rank_one_residual": lambda s: measures.rank_one_residual(s.x, s.mask),
    "dirichlet_energy": lambda s: measures.dirichlet_energy(s.x, s.mask),
    "uniformity": lambda s: measures.uniformity(s.x, mask=s.mask),
    "intra_sentence_similarity": lambda s: measures.intra_sentence_similarity(s.x, s.mask),
    "massive_activation": lambda s: measures.massive_activation(s.x, s.mask),
    "outlier_dimensions": lambda s: measures.outlier_dimensions(s.x, s.mask),
}
OF_SAMPLE: dict[str, Callable[[LayerState], Array]] = {
    "random_pair_similarity": lambda s: measures.random_pair_similarity(s.x, s.mask),
    "self_similarity": _self_similarity,
    "iso_score": lambda s: measures.iso_score(s.tokens, s.real),
    "two_nn": lambda s: measures.two_nn(s.tokens[s.few], s.real[s.few]),
    "lidar": lambda s: measures.lidar(s.x, s.mask),
    "linear_cka": _cka,
}
OF_ATTENTION: dict[str, Callable[[LayerState], Array]] = {
    "attention_entropy": _of_heads(measures.attention_entropy),
    "first_token_attention": _of_heads(measures.first_token_attention),
    "attention_rank": _of_heads(measures.attention_rank),
}
ALL = (*OF_EXAMPLES, *OF_SAMPLE, *OF_ATTENTION)


def chosen_measures(names: Iterable[str] | str | None) -> tuple[str, ...]:
    """The names, each once: all of them for None, "all" or ["all"].

    Raises:
      ValueError: if a name is unknown, or there is none.

    Example:
      >>> chosen_measures(["stable_rank", "token_uniformity", "stable_rank"])
      ('stable_rank', 'token_uniformity')
    """
    wanted = tuple(dict.fromkeys(["all"] if names is None else [names] if isinstance(names, str) else names))
    if wanted == ("all",):
        return ALL
    unknown = [name for name in wanted if name not in ALL]
    if unknown or not wanted:
        advice = did_you_mean(unknown, ALL, "Choose some of them.")
        raise ValueError(
            f"measures: {', '.join(map(repr, unknown)) or 'none'}; allowed are {', '.join(ALL)}, or all. {advice}"
        )
    return wanted


def applicable(names: Iterable[str], state: LayerState) -> list[str]:
    """Those measures of `names` that this state has what they need for."""
    absent = set(OF_ATTENTION) if state.attention is None else set()
    absent |= {"linear_cka"} if state.before is None else set()
    absent |= {"self_similarity"} if state.words is None else set()
    return [name for name in names if name not in absent]


def measure(state: LayerState, names: Iterable[str]) -> dict[str, Array]:
    """The measures of a state by name, [E] for those of examples and of attention maps, [] for those of the sample.

    Example:
      >>> import jax.numpy as jnp, numpy as np
      >>> x = jnp.array([[[4.0, 0.0], [0.0, 2.0], [9.0, 9.0]]])  # the last token is masked out: values 4 and 2
      >>> found = measure(LayerState(x, jnp.array([[1, 1, 0]])), ("median_ratio", "stable_rank", "iso_score"))
      >>> {name: np.asarray(values, np.float64).round(3).tolist() for name, values in found.items()}
      {'median_ratio': [0.75], 'stable_rank': [1.25], 'iso_score': 0.0}
    """
    every: dict[str, Any] = {**OF_EXAMPLES, **OF_SAMPLE, **OF_ATTENTION}
    return {name: every[name](state) for name in applicable(names, state)}
