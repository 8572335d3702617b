"""Float32 against float64 by condition number: the figures of docs/accuracy.md, at their limits."""

import pytest

from benchmarks.accuracy import DOCUMENT, FUNCTIONS, errors, matrices

# (value, gradient); the document has SoftDecay(-0.9, centred) with gram: 4e-4 and 5e-3
LIMITS = {"svd": (2e-5, 1e-3), "gram64": (2e-5, 1e-3), "gram": (1e-4, 1e-3)}
QUICK = [("SoftDecay(-0.2, centred)", "gram")]
THOROUGH = [(name, solver) for name in FUNCTIONS for solver in ("svd", "gram64")] + [
    ("LogShift(10)", "gram"),
    ("Identity", "gram"),
]


@pytest.mark.parametrize(
    ("name", "solver"),
    [*QUICK, *(pytest.param(*case, marks=pytest.mark.slow) for case in THOROUGH if case not in QUICK)],
)
def test_errors_up_to_condition_number_1e3(name, solver):
    for kappa in (1e1, 1e2, 1e3):
        value, gradient = errors(matrices(kappa), FUNCTIONS[name], solver)
        assert value <= LIMITS[solver][0], kappa
        assert gradient <= LIMITS[solver][1], kappa


def test_the_table_has_every_function():
    text = DOCUMENT.read_text(encoding="utf-8")
    assert [name for name in FUNCTIONS if text.count(f"| {name} ") != 3] == []
