"""Readings and runs with made-up values of the kinds that training leaves, for any depth."""

import numpy as np

from svt_jax.analysis.probe import BINS, MEASURES


def reading(layers=12, svt_layers=(), *, seed=0, step=None):
    """As `Probe.read`: the spectrum grows more skewed with depth."""
    rng = np.random.default_rng(seed)

    def state(layer, kind, spread):
        ratios = np.clip(rng.beta(2.0, spread, 4000), 0, 1)
        ratios[:60] = 1.0
        histogram = np.histogram(ratios, BINS, (0, 1))[0] / len(ratios)
        uniformity = 1 - 2 / spread
        values = [spread / 3, np.median(ratios), uniformity, uniformity + 0.1, 0.5 * uniformity, 0.8 * uniformity]
        measured = dict(zip(MEASURES, [float(v) for v in [*values, 200 / spread]], strict=True))
        return {"layer": layer, "state": kind, **measured, "histogram": histogram.tolist()}

    states = [state(None if n < 0 else n, "output", 4 + 0.8 * (n + 1)) for n in range(-1, layers)]
    for n in svt_layers:
        states += [state(n, "svt_input", 5 + 0.8 * n), state(n, "svt_output", 3.0)]
    found = {"examples": 64, "alpha": {str(n): -0.2 - 0.01 * n for n in svt_layers}, "states": states}
    return found if step is None else {"step": step, **found}


def course(svt_layers=(), *, seed=0, steps=300, better=0.0):
    """Lines of metrics.jsonl and evaluations."""
    rng = np.random.default_rng(seed)
    lines = [
        {
            "step": step, "epoch": step / 100, "loss": float(0.7 * np.exp(-step / 150) + 0.08 * rng.random()),
            "learning_rate": 1e-3, "alpha": {str(n): -0.2 - 1e-4 * step * (n + 1) / 12 for n in svt_layers},
            "grad_norm": float(1 + rng.random()), "examples_per_second": 300.0, "tokens_per_second": 9e3, "compiles": 2,
        }
        for step in range(5, steps + 1, 5)
    ]  # fmt: skip
    evaluations = [
        {"step": step, "metrics": {"accuracy": float(0.6 + better + 0.001 * step - 0.02 * rng.random()), "f1": 0.7}}
        for step in range(50, steps + 1, 50)
    ]
    return {"lines": lines, "evaluations": evaluations}
