"""Error of svt() in float32 by condition number, solver and function: `python -m benchmarks.accuracy [--write]`.

Matrices are (8, 64, 192), with random singular vectors and singular values spaced evenly in their logarithm between
sigma_1 = 50 and sigma_1/kappa. The reference is svt() itself in float64 with the `svd` solver, which tests hold to
goldens and central differences. Errors of the value, and of the gradient for a random cotangent, are relative Frobenius
norms. `--write` puts the table into docs/accuracy.md.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

import svt_jax
from benchmarks.timing import environment, table
from svt_jax.spectral.base import Solver, SpectralFunction, solver_for
from svt_jax.spectral.solvers import choose_solver

KAPPAS = [10.0**k for k in range(1, 7)]
FUNCTIONS: dict[str, SpectralFunction] = {
    "SoftDecay(-0.2)": svt_jax.SoftDecay(alpha=-0.2),
    "SoftDecay(-0.6)": svt_jax.SoftDecay(alpha=-0.6),
    "SoftDecay(-0.2, centred)": svt_jax.SoftDecay(alpha=-0.2, centered=True),
    "SoftDecay(-0.6, centred)": svt_jax.SoftDecay(alpha=-0.6, centered=True),
    "SoftDecay(-0.9, centred)": svt_jax.SoftDecay(alpha=-0.9, centered=True),
    "LogShift(10)": svt_jax.LogShift(gamma=10.0),
    "Linear(1.1)": svt_jax.Linear(k=1.1),
    "Average": svt_jax.Average(),
    "Identity": svt_jax.Identity(),
}
DOCUMENT = Path(__file__).parents[1] / "docs" / "accuracy.md"


def matrices(kappa: float, seed: int = 0, shape: tuple[int, int, int] = (8, 64, 192)) -> np.ndarray:
    """float64 matrices of condition number kappa, rounded to float32 so that both precisions see the same input."""
    batch, tokens, width = shape
    rng = np.random.default_rng(seed)
    u = np.linalg.qr(rng.normal(size=(batch, tokens, tokens)))[0]
    v = np.linalg.qr(rng.normal(size=(batch, width, tokens)))[0]
    sigma = 50.0 * kappa ** -np.linspace(0.0, 1.0, tokens)
    return ((u * sigma) @ v.swapaxes(1, 2)).astype(np.float32).astype(np.float64)


def errors(x: np.ndarray, function: SpectralFunction, solver: Solver) -> tuple[float, float]:
    """Returns (error of the value, error of the gradient) of float32 against float64."""
    cotangent = np.random.default_rng(1).normal(size=x.shape)

    def run(dtype: type, solver: Solver) -> tuple[np.ndarray, np.ndarray]:
        out, vjp = jax.vjp(lambda x: svt_jax.svt(x, function, solver=solver), jnp.asarray(x, dtype))
        return np.asarray(out), np.asarray(vjp(jnp.asarray(cotangent, dtype))[0])

    with jax.enable_x64(True), jax.default_device(jax.devices("cpu")[0]):
        reference = run(np.float64, "svd")
    ours = run(np.float32, solver)
    return tuple(float(np.linalg.norm(a - b) / np.linalg.norm(b)) for a, b in zip(ours, reference, strict=True))  # type: ignore[return-value]


def solvers_of(function: SpectralFunction) -> list[Solver]:
    """The solvers that can serve a function."""
    solvers: list[Solver] = ["svd", "gram", "gram64"]
    try:
        solver_for(function, "shifted")
    except ValueError:
        return solvers
    return [*solvers, "shifted"]


def report() -> str:
    header = ["function", "solver", "auto", *(f"κ = 1e{round(np.log10(k))}" for k in KAPPAS)]
    rows = []
    for name, function in FUNCTIONS.items():
        for solver in solvers_of(function):
            cells = ["{:.0e} / {:.0e}".format(*errors(matrices(kappa), function, solver)) for kappa in KAPPAS]
            rows.append([name, solver, "x" if choose_solver("auto", function) == solver else "", *cells])
    return table(header, rows)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--write", action="store_true", help="put the table into docs/accuracy.md")
    arguments = parser.parse_args()
    text = report()
    print(text)
    if arguments.write:
        before, _, _ = DOCUMENT.read_text(encoding="utf-8").partition("<!-- table -->")
        versions = environment()
        made = f"Made by `python -m benchmarks.accuracy --write` with jax {versions['jax']} on CPU, {versions['date']}."
        DOCUMENT.write_text(f"{before}<!-- table -->\n\n{text}\n\n{made}\n", encoding="utf-8")


if __name__ == "__main__":
    main()
