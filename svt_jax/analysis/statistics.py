"""Paired differences over seeds: tests, intervals, Holm's correction, and how many seeds a difference would need.

d_s is the difference of two settings' scores at seed s, over n shared seeds, and std its standard deviation (n - 1).

  t interval    mean(d) ± t_{0.975, n-1} std / sqrt(n), and the paired t-test's two-sided p: d is taken to be normal
  BCa interval  bias-corrected and accelerated bootstrap of mean(d) (Efron 1987): no shape is assumed
  Wilcoxon      signed-rank test: d is taken to be symmetric
  Holm          of m tests in a table, the k-th smallest p times m - k + 1, made ascending (Holm 1979): the chance of any
                false claim in the table stays below the level, whatever depends on what
  seeds needed  the least n for which the t-test at 5 % finds a true mean difference of one point in 80 % of all cases:
                P(|T| > t_{0.975, n-1}) >= 0.8, T noncentral t with n - 1 degrees and noncentrality 0.01 sqrt(n) / std
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

import numpy as np

_WILCOXON_LEAST = 6
"""With fewer seeds, the smallest two-sided p of Wilcoxon's test, 2 / 2^n, is above 0.05 whatever the data."""
_BOOTSTRAP_LEAST = 5
"""Fewer values have too few distinct samples (35 of four, 126 of five) for ends that leave 2.5 % outside."""
_RESAMPLES = 9999
_SAME = 1e-12
"""Scores that differ by less are equal: the rest are rounding errors."""


@dataclasses.dataclass(frozen=True)
class Difference:
    """Paired difference between a setting and the baseline, in one metric.

    Attributes:
      seeds: the seeds that both have, ascending.
      values: setting minus baseline, by seed.
      mean, std: mean and standard deviation of the values; std divides by n - 1.
      interval: 95 % t interval of the mean; None if the values do not vary.
      interval_bca: 95 % BCa bootstrap interval; None with fewer than five seeds, or if the values do not vary.
      p_t: p of the paired t-test; None if the values do not vary.
      p_wilcoxon: p of Wilcoxon's signed-rank test; None with fewer than six differences that are not 0.
      p_holm: p_t corrected for the table that the difference stands in; None outside of a table.
      seeds_for_one_point: see this file's head; its std is only as well known as n seeds know it.
    """

    seeds: list[int]
    values: list[float]
    mean: float
    std: float
    interval: tuple[float, float] | None
    interval_bca: tuple[float, float] | None
    p_t: float | None
    p_wilcoxon: float | None
    p_holm: float | None
    seeds_for_one_point: int | None


def paired_difference(scores: Mapping[int, float], baseline: Mapping[int, float]) -> Difference | None:
    """Difference between two settings' scores by seed; None with fewer than two seeds in common.

    Example:
      >>> found = paired_difference({0: 0.6, 1: 0.8, 2: 0.7}, {0: 0.5, 1: 0.5, 2: 0.5})
      >>> [round(end, 4) for end in found.interval], found.seeds_for_one_point
      ([-0.0484, 0.4484], 787)
    """
    from scipy import stats

    seeds = sorted(scores.keys() & baseline.keys())
    if len(seeds) < 2:
        return None
    values = np.array([scores[seed] - baseline[seed] for seed in seeds])
    mean, std = float(values.mean()), float(values.std(ddof=1))
    interval = bca = p_t = p_wilcoxon = needed = None
    if std > _SAME:  # else the t-test would call a constant and its rounding errors certain
        p_t = float(stats.ttest_rel([scores[seed] for seed in seeds], [baseline[seed] for seed in seeds]).pvalue)
        interval = _t_interval(mean, std, len(seeds))
        needed = seeds_needed(0.01 / std)
        if len(seeds) >= _BOOTSTRAP_LEAST:
            sampled = stats.bootstrap((values,), np.mean, n_resamples=_RESAMPLES, method="BCa", rng=0)
            bca = (float(sampled.confidence_interval.low), float(sampled.confidence_interval.high))
    if np.count_nonzero(np.abs(values) > _SAME) >= _WILCOXON_LEAST:
        p_wilcoxon = float(stats.wilcoxon(values).pvalue)
    return Difference(seeds, values.tolist(), mean, std, interval, bca, p_t, p_wilcoxon, None, needed)


def mean_interval(values: Sequence[float]) -> tuple[float, float] | None:
    """95 % t interval of a setting's mean score over seeds; None for a single seed, or if the values do not vary.

    It holds what the seeds do to one setting. Two settings whose intervals overlap may still differ: see the paired difference.

    Example:
      >>> [round(end, 4) for end in mean_interval([0.5, 0.6, 0.55])]
      [0.4258, 0.6742]
    """
    if len(values) < 2 or (std := float(np.std(values, ddof=1))) <= _SAME:
        return None
    return _t_interval(float(np.mean(values)), std, len(values))


def _t_interval(mean: float, std: float, n: int) -> tuple[float, float]:
    from scipy import stats

    half = float(stats.t.ppf(0.975, n - 1)) * std / math.sqrt(n)
    return mean - half, mean + half


def holm(values: Sequence[float | None]) -> list[float | None]:
    """Corrects the p values of a table; None stays None and counts as no test.

    Example:
      >>> holm([0.01, None, 0.04, 0.03])
      [0.03, None, 0.06, 0.06]
    """
    order = sorted((p, place) for place, p in enumerate(values) if p is not None)
    corrected: list[float | None] = [None] * len(values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, p * (len(order) - rank)))
        corrected[place] = largest
    return corrected


def seeds_needed(effect: float, *, power: float = 0.8, level: float = 0.05) -> int:
    """The least number of seeds with which a paired t-test finds an effect.

    Args:
      effect: the true mean difference over the differences' standard deviation, > 0.
      power: chance of finding it.
      level: the test's level, two-sided.

    Example: G*Power and textbooks give 34 pairs for a medium effect.
      >>> seeds_needed(0.5)
      34
    """
    from scipy import stats

    def found(n: int) -> bool:
        limit, centre = stats.t.ppf(1 - level / 2, n - 1), effect * math.sqrt(n)
        return bool(stats.nct.sf(limit, n - 1, centre) + stats.nct.cdf(-limit, n - 1, centre) >= power)

    high = 2
    while not found(high):
        high *= 2
    low = high // 2  # not enough, or 1
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if found(middle) else (middle, high)
    return high
