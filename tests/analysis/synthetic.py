"""Readings and runs with synthetic values, in the format that training writes, for any depth."""

import base64
import csv
import io
import json
import re

import numpy as np
import yaml

from svt_jax.evaluation.probe import BINS, MEASURES


def reading(layers=12, svt_layers=(), *, seed=0, step=None):
    """A reading as from `Probe.read`; the spectrum grows more skewed with depth."""
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


def write_run(
    folder, *, layers=12, svt_layers=(11,), steps=300, readings=3, task="rte", seed=0, better=0.0, spectra=True
):
    """Writes a folder as a finished run leaves it."""
    folder.mkdir(parents=True)
    made = course(svt_layers, seed=seed, steps=steps, better=better)
    last = made["evaluations"][-1]
    results = {
        "task": task, "steps": steps, "epochs": 3.0, "metrics": {"validation": last["metrics"]}, "best": last,
        "evaluations": made["evaluations"],
        "svt": {
            "function": "soft_decay" if svt_layers else "none", "layers": list(svt_layers),
            "alpha": list(made["lines"][-1]["alpha"].values()),
        },
        "train": {"examples_per_second": 300.0, "wall_time_s": 40.0, "compile_time_s": 3.0, "compiles": 2}, "device": "cpu x 1",
    }  # fmt: skip
    config = {
        "run": {"name": folder.name, "seed": seed}, "model": {"path": "bert", "dtype": "float32"},
        "svt": {"function": results["svt"]["function"], "layers": list(svt_layers), "placement": "before_norm"},
        "data": {"task": task, "source": "glue"}, "optim": {"batch_size": 32, "epochs": 3},
    }  # fmt: skip
    manifest = {
        "versions": {"jax": "0.10.2", "flax": "0.12.8"},
        "git_commit": "abc",
        "weights_sha256": "w",
        "device": "cpu",
    }
    found = [reading(layers, svt_layers, seed=seed, step=round(n * steps / (readings - 1))) for n in range(readings)]
    (folder / "results.json").write_text(json.dumps(results))
    (folder / "manifest.json").write_text(json.dumps(manifest))
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in made["lines"]))
    if spectra:
        (folder / "spectrum.jsonl").write_text("".join(json.dumps(each) + "\n" for each in found))
    return folder


def downloads(page):
    """The tables that the page offers for download, by file name."""
    links = re.findall(r'download="([\w.]+)" href="data:text/csv;charset=utf-8;base64,([\w+/=]+)"', page)
    return {name: list(csv.DictReader(io.StringIO(base64.b64decode(data).decode()))) for name, data in links}


def strict(page):
    """The slider's data, parsed as strictly as a browser does."""
    text = re.search(r'<script type="application/json" id="spectra">(.*?)</script>', page, re.DOTALL)

    def refuse(word):
        raise AssertionError(f"{word} is no JSON")

    return None if text is None else json.loads(text[1], parse_constant=refuse)


def damaged(folder, name, change):
    """A run with one file changed: `change` maps its parsed lines, or its one table, to the new ones."""
    run = write_run(folder / "run", layers=2, svt_layers=(1,), steps=100)
    text = (run / name).read_text()
    if name.endswith(".jsonl"):
        lines = change([json.loads(line) for line in text.splitlines()])
        text = "".join((line if isinstance(line, str) else json.dumps(line)) + "\n" for line in lines)
    else:
        loaded = yaml.safe_load(text)
        change(loaded)
        text = (yaml.safe_dump if name.endswith(".yaml") else json.dumps)(loaded)
    (run / name).write_text(text)
    return run
