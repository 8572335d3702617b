"""GLUE's metrics over a whole split, computed by scikit-learn and SciPy."""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Sequence

import numpy as np

from svt_jax.errors import NonFiniteError

log = logging.getLogger(__name__)


def _of_scikit_learn(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    def metric(labels: np.ndarray, predictions: np.ndarray) -> float:
        from sklearn import metrics  # here, for it takes a second to import

        return float(getattr(metrics, name)(labels, predictions))

    return metric


def _of_scipy(name: str) -> Callable[[np.ndarray, np.ndarray], float]:
    def correlation(labels: np.ndarray, predictions: np.ndarray) -> float:
        from scipy import stats

        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)
            return float(getattr(stats, name)(labels, predictions).statistic)

    return correlation


METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": _of_scikit_learn("accuracy_score"),
    "f1": _of_scikit_learn("f1_score"),
    "matthews_correlation": _of_scikit_learn("matthews_corrcoef"),
    "pearson": _of_scipy("pearsonr"),
    "spearmanr": _of_scipy("spearmanr"),
}
"""name -> function of (labels, predictions); each result lies in [-1, 1]."""


def check_finite(logits: np.ndarray) -> None:
    """Raises NonFiniteError unless every prediction in [N, num_labels] is finite."""
    if bad := np.sum(~np.isfinite(logits).all(axis=1)):
        raise NonFiniteError(f"{bad} of {len(logits)} predictions are not finite, so there is no score")


def compute_metrics(names: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Computes metrics from a split's logits.

    Args:
      names: keys of `METRICS`.
      logits: float[N, num_labels]; the prediction is the largest logit's class; with one label, the number itself.
      labels: int[N], or float[N] for regression.
    Returns:
      A float for each name. An undefined metric, as a correlation of constant predictions, is 0 with a warning.
    Raises:
      NonFiniteError: if a prediction is not finite.

    Example:
      >>> import numpy as np
      >>> compute_metrics(["accuracy", "f1"], np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), np.array([1, 0, 0]))
      {'accuracy': 0.6666666666666666, 'f1': 0.6666666666666666}
    """
    logits, labels = np.asarray(logits), np.asarray(labels)
    check_finite(logits)
    if logits.shape[1] == 1:  # float64: in float32 the sums of a correlation lose digits
        predictions, labels = logits[:, 0].astype(np.float64), labels.astype(np.float64)
    else:
        predictions = logits.argmax(axis=1)
    result = {}
    for name in names:
        if why := _undefined(name, labels, predictions):
            log.warning("%s is undefined (%s): reported as 0", name, why)
            result[name] = 0.0
            continue
        result[name] = METRICS[name](labels, predictions)
    return result


def _undefined(name: str, labels: np.ndarray, predictions: np.ndarray) -> str:
    """Why the metric is undefined; empty if it is defined. The libraries return NaN, an error or a silent 0."""
    if name in ("matthews_correlation", "pearson", "spearmanr"):
        for what, values in (("predictions", predictions), ("labels", labels)):
            if np.all(values == values[0]):
                return f"the {what} are constant"
    if name == "f1" and not np.any(labels == 1) and not np.any(predictions == 1):
        return "no example is or is predicted to be of class 1"
    return ""
