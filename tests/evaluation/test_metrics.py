"""Metrics: cases worked by hand; undefined ones are 0 with a warning."""

import math

import numpy as np
import pytest

from svt_jax.errors import NonFiniteError
from svt_jax.evaluation.metrics import METRICS, compute_metrics


def classes(*predictions):
    return np.eye(3)[list(predictions)]


def scores(*predictions):
    return np.array(predictions, np.float32)[:, None]


def test_values_worked_by_hand():
    labels = np.array([1, 1, 1, 0, 0])
    metrics = compute_metrics(["accuracy", "f1", "matthews_correlation"], classes(1, 1, 0, 1, 0), labels)
    # TP 2, FP 1, FN 1, TN 1
    assert metrics["accuracy"] == pytest.approx(3 / 5)
    assert metrics["f1"] == pytest.approx(2 * 2 / (2 * 2 + 1 + 1))
    assert metrics["matthews_correlation"] == pytest.approx((2 * 1 - 1 * 1) / math.sqrt(3 * 3 * 2 * 2))
    metrics = compute_metrics(["pearson", "spearmanr"], scores(1, 2, 3), np.array([1, 2, 6], np.float32))
    assert metrics["pearson"] == pytest.approx(5 / math.sqrt(2 * 14))
    assert metrics["spearmanr"] == pytest.approx(1.0)
    assert compute_metrics(iter(["accuracy"]), [[0.0, 1.0], [1.0, 0.0]], [1, 1]) == {"accuracy": 0.5}


def test_every_metric_is_a_plain_float_in_its_range():
    rng = np.random.default_rng(0)
    metrics = compute_metrics(list(METRICS)[:3], rng.normal(size=(50, 2)), rng.integers(0, 2, 50))
    metrics |= compute_metrics(list(METRICS)[3:], rng.normal(size=(50, 1)), rng.normal(size=50))
    assert all(type(value) is float and -1 <= value <= 1 for value in metrics.values())
    assert set(metrics) == set(METRICS)


@pytest.mark.parametrize(
    ("name", "logits", "labels", "why"),
    [
        ("matthews_correlation", classes(1, 1, 1), [1, 0, 1], "predictions are constant"),
        ("matthews_correlation", classes(1, 0, 1), [1, 1, 1], "labels are constant"),
        ("matthews_correlation", classes(1, 1), [1, 1], "predictions are constant"),
        ("f1", classes(0, 0), [0, 0], "no example is or is predicted to be of class 1"),
        ("pearson", scores(2, 2, 2), [1.0, 2.0, 3.0], "predictions are constant"),
        ("pearson", scores(1), [1.0], "predictions are constant"),
        ("spearmanr", scores(1, 2, 3), [1.0, 1.0, 1.0], "labels are constant"),
        ("spearmanr", scores(2, 2), [1.0, 1.0], "predictions are constant"),
    ],
)
def test_undefined_is_zero_with_a_warning(caplog, name, logits, labels, why):
    assert compute_metrics([name], logits, np.array(labels)) == {name: 0.0}
    assert f"{name} is undefined ({'the ' if 'constant' in why else ''}{why}): reported as 0" in caplog.text


def test_zero_that_is_defined_is_no_warning(caplog):
    assert compute_metrics(["f1"], classes(0, 0), np.array([0, 1])) == {"f1": 0.0}
    assert compute_metrics(["f1"], classes(1, 1), np.array([0, 0])) == {"f1": 0.0}
    assert not caplog.text


def test_correlations_do_not_lose_digits_to_float32():
    rng = np.random.default_rng(0)
    labels = rng.normal(size=2000).astype(np.float32)
    logits = (1e4 + labels + 0.1 * rng.normal(size=2000)).astype(np.float32)
    exact = np.corrcoef(labels.astype(float), logits.astype(float))[0, 1]
    assert compute_metrics(["pearson"], logits[:, None], labels)["pearson"] == pytest.approx(exact, abs=1e-12)


def test_predictions_that_are_not_finite_are_an_error():
    with pytest.raises(NonFiniteError, match="1 of 2 predictions are not finite"):
        compute_metrics(["accuracy"], np.array([[np.nan, 1.0], [0.0, 1.0]]), np.array([0, 1]))
