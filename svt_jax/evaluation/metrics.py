"""GLUE's metrics over a whole split, by scikit-learn and SciPy."""

from __future__ import annotations

import logging
import math
import warnings
from collections.abc import Callable, Sequence

import numpy as np
from scipy import stats
from sklearn import metrics as sk

log = logging.getLogger(__name__)

METRICS: dict[str, Callable[[np.ndarray, np.ndarray], float]] = {
    "accuracy": lambda labels, predictions: sk.accuracy_score(labels, predictions),
    "f1": lambda labels, predictions: sk.f1_score(labels, predictions, zero_division=0.0),
    "matthews_correlation": lambda labels, predictions: sk.matthews_corrcoef(labels, predictions),
    "pearson": lambda labels, predictions: stats.pearsonr(labels, predictions).statistic,
    "spearmanr": lambda labels, predictions: stats.spearmanr(labels, predictions).statistic,
}
"""By name, of (labels, predictions); each lies in [-1, 1]."""


class NonFiniteError(ArithmeticError):
    """A number that must be finite is not: a loss, a gradient, a parameter or a prediction."""


def compute_metrics(names: Sequence[str], logits: np.ndarray, labels: np.ndarray) -> dict[str, float]:
    """Metrics of a split's logits.

    Args:
      names: keys of `METRICS`.
      logits: float[N, num_labels]; the prediction is the largest, or the number itself when num_labels is 1.
      labels: int[N], or float[N] for regression.
    Returns:
      A plain float for each name. A correlation that is undefined, as for constant predictions, is 0 with a warning.
    Raises:
      NonFiniteError: if a prediction is not finite.

    Example:
      >>> import numpy as np
      >>> compute_metrics(["accuracy", "f1"], np.array([[0.0, 1.0], [0.0, 1.0], [1.0, 0.0]]), np.array([1, 0, 0]))
      {'accuracy': 0.6666666666666666, 'f1': 0.6666666666666666}
    """
    if not np.isfinite(logits).all():
        raise NonFiniteError(
            f"{np.sum(~np.isfinite(logits).all(axis=1))} of {len(logits)} predictions are not finite, so there is no score. "
            "Lower optim.learning_rate or set optim.grad_clip."
        )
    predictions = logits[:, 0] if logits.shape[1] == 1 else logits.argmax(axis=1)
    result = {}
    for name in names:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", stats.ConstantInputWarning)
            warnings.simplefilter("ignore", stats.NearConstantInputWarning)
            value = float(METRICS[name](labels, predictions))
        if math.isnan(value):
            log.warning("%s is undefined for these predictions (they are constant): reported as 0", name)
            value = 0.0
        result[name] = value
    return result
