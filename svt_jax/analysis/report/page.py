"""Turns a run's files into the values that the page shows, and renders the page."""

from __future__ import annotations

import logging
import math
import shlex
from pathlib import Path
from typing import Any

import yaml

from svt_jax.analysis.finished import FinishedRun, read_finished
from svt_jax.analysis.report.render import picture, render, source
from svt_jax.analysis.report.tables import Table, evaluation_table, layer_table, score_table, training_table

log = logging.getLogger(__name__)

_READINGS = 25
"""The slider shows at most this many readings of a long run."""


def render_report(run: Path, baseline: Path | None = None) -> str:
    """The page as HTML text.

    Args:
      run: a folder with config.yaml, manifest.json, metrics.jsonl and results.json, and spectrum.jsonl if there is one.
      baseline: another run's folder to compare with.
    Raises:
      ValueError: if a run is not complete, or the two runs are of different tasks.
    """
    this, other = read_finished(run, whole=True), None if baseline is None else read_finished(baseline, whole=True)
    if other is not None and this.task != other.task:
        raise ValueError(
            f"the run is of task {this.task} and the baseline of {other.task}; allowed is the same task. Name another "
            "--baseline."
        )
    left_out = [*this.left_out, *(other.left_out if other else [])]
    for problem in left_out:
        log.warning("%s", problem)
    return render(
        "page.html",
        of="of the run",
        title=f"{this.results['task']}: {this.name}",
        lead=_lead(this, other),
        script=source("spectrum.js"),
        left_out=left_out,
        scores=score_table(this, other),
        baseline_note="" if other is None else _baseline_note(this, other),
        differences=None if other is None else _differences(this, other),
        facts=_facts(this, other),
        spectra=_spectra(this, other) if this.readings else None,
        pictures=_pictures(this, other),
        tables=[
            *([layer_table(this)] if this.readings else []),
            *([training_table(this)] if this.lines else []),
            evaluation_table(this),
        ],
        commands=_commands(this, other),
        config=yaml.safe_dump(this.config, sort_keys=False),
    )


def _lead(run: FinishedRun, baseline: FinishedRun | None) -> str:
    name, value = next(iter(run.scores().items()))
    text = f"Validation {name} {100 * value:.2f}"
    if baseline is not None:
        text += f", {100 * (value - baseline.scores()[name]):+.2f} from {baseline.name}"
    svt = run.results["svt"]
    return f"{text}; " + (
        f"{svt['function']} in {len(svt['layers'])} layers." if len(svt["layers"]) > 2 else f"{_transformation(run)}."
    )


def _transformation(run: FinishedRun) -> str:
    svt = run.results["svt"]
    if not svt["layers"]:
        return "no transformation"
    parameters = run.parameters()

    def numbers(layer: int) -> str:
        named = {"α" if name == "alpha" else name: value for name, value in parameters.get(layer, {}).items()}
        shown = ", ".join(f"{name} {value:.4f}" for name, value in named.items() if not isinstance(value, list))
        return f" ({shown})" if shown else ""

    where = ", ".join(f"{layer}{numbers(layer)}" for layer in svt["layers"])
    return f"{svt['function']} in layer{'s' if len(svt['layers']) > 1 else ''} {where}"


def _baseline_note(run: FinishedRun, baseline: FinishedRun) -> str:
    seeds = [each.config["run"]["seed"] for each in (run, baseline)]
    return (
        f"Baseline: {baseline.name}, {_transformation(baseline)}; seeds {seeds[0]} and {seeds[1]}. A pair of runs shows no "
        "more than chance may: eval.py compare tests the difference over several seeds."
    )


def _facts(run: FinishedRun, baseline: FinishedRun | None) -> dict[str, str]:
    results, manifest, config = run.results, run.manifest, run.config
    best = ", ".join(f"{name} {100 * value:.2f}" for name, value in results["best"]["metrics"].items())
    facts = {
        "task": results["task"] + ("" if results["task"] == "demo" else f" (data: {config['data']['source']})"),
        "model": f"{config['model']['path']}, {config['model']['dtype']}",
        "transformation": _transformation(run)
        + (f", {config['svt']['placement']}" if results["svt"]["layers"] else ""),
        "best evaluation": f"step {results['best']['step']}: {best} (× 100)",
        "steps": f"{results['steps']} ({results['epochs']:.2f} epochs), batches of {config['optim']['batch_size']}",
        "seed": str(config["run"]["seed"]),
        "speed": f"{results['train']['examples_per_second']:.1f} examples/s, {results['train']['wall_time_s']:.0f} s in all",
        "device": results["device"],
        "versions": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
        "git commit": manifest["git_commit"] or "none",
        "weights (SHA-256)": manifest["weights_sha256"] or "random",
    }
    return facts if baseline is None else {**facts, "baseline": str(baseline.path)}


def _differences(run: FinishedRun, baseline: FinishedRun) -> Table | None:
    """Keys that determine the result and differ between the runs."""
    sections = ("model", "svt", "data", "optim")
    keys = [(section, key) for section in sections for key in {**baseline.config[section], **run.config[section]}]
    rows = [
        [f"{section}.{key}", str(run.config[section].get(key)), str(baseline.config[section].get(key))]
        for section, key in [*keys, ("run", "seed")]
        if run.config[section].get(key) != baseline.config[section].get(key)
    ]
    return Table("Differing keys", ["key", "this run", "baseline"], rows) if rows else None


def _spectra(run: FinishedRun, baseline: FinishedRun | None) -> dict[str, Any]:
    """What the slider draws: for each step and place, one state, or the SVT's input and output."""
    every = -(-len(run.readings) // _READINGS)
    chosen = run.readings[::-1][::every][::-1]  # includes the last reading
    last = baseline.readings[-1] if baseline and baseline.readings else None
    return {
        "readings": [_by_place(reading) for reading in chosen],
        "baseline": None if last is None else _by_place(last),
    }


def _by_place(reading: dict[str, Any]) -> dict[str, Any]:
    from svt_jax.analysis.plots import layer_name, states_of

    pairs = zip(states_of(reading, "svt_input"), states_of(reading, "svt_output"), strict=True)
    svt = {before["layer"]: [_for_json(before), _for_json(after)] for before, after in pairs}
    places = []
    for state in states_of(reading, "output"):
        layer = state["layer"]
        if layer in svt:
            places.append({"name": f"{layer_name(layer)}, SVT", "states": svt[layer]})
        places.append({"name": layer_name(layer), "states": [_for_json(state)]})
    return {"step": reading["step"], "examples": reading["examples"], "places": places}


def _for_json(state: dict[str, Any]) -> dict[str, Any]:
    return {name: None if isinstance(value, float) and math.isnan(value) else value for name, value in state.items()}


def _pictures(run: FinishedRun, baseline: FinishedRun | None) -> list[dict[str, Any]]:
    from svt_jax.analysis import plots
    from svt_jax.analysis.training_plots import training_curves

    runs = {"this run": run} if baseline is None else {"this run": run, "baseline": baseline}
    methods = {name: each.method for name, each in runs.items()}
    logged = {name: each for name, each in runs.items() if each.lines}
    found = []
    if logged:
        curves = training_curves(
            {n: [{"lines": each.lines, "evaluations": each.results["evaluations"]}] for n, each in logged.items()},
            methods,
        )
        found.append(
            (
                "Course of the training", curves,
                "Loss, gradient norm, validation scores and α by step. Loss and gradient norm: single batches, faint, and "
                "their running mean.",
            )
        )  # fmt: skip
    if run.readings:
        last = run.readings[-1]
        measured = {name: [each.readings[-1]] for name, each in runs.items() if each.readings}
        if run.readings[0]["step"] != last["step"]:
            first = f"this run, step {run.readings[0]['step']}"
            measured = {**measured, first: [run.readings[0]]}
            methods = {**methods, first: run.method}
        found += [
            ("Measures by depth", plots.measures_by_depth(measured, methods),
             "Each measure by layer; hollow triangles are an SVT's input, filled ones its output."),
            ("Spectrum of each layer", plots.spectrum_histograms(last),
             "Histogram and density of σ/σ₁ behind each layer, with the mean of the examples' medians (dashed)."),
            ("Cumulative spectra", plots.spectrum_cdf(last),
             "Share of singular values up to each σ/σ₁: the steeper at the left, the more directions have vanished."),
        ]  # fmt: skip
        svts = plots.svt_histograms(last)
        if svts is not None:
            found.append(("Spectrum before and after the SVT", svts, "σ/σ₁ of the SVT's input and output."))
    return [picture(name, figure, caption) for name, figure, caption in found]


def _commands(run: FinishedRun, baseline: FinishedRun | None) -> str:
    folder = shlex.quote(str(run.path))
    again = shlex.quote(f"{run.name}-again")
    report = f"python eval.py report --run {folder}"
    lines = [
        f"pip install jax=={run.manifest['versions']['jax']} flax=={run.manifest['versions']['flax']}",
        f"python train.py --config {shlex.quote(str(run.path / 'config.yaml'))} --run.name {again}",
        f"python eval.py glue --run {folder}",
        f"python eval.py spectrum --run {folder} --output spectra",
        report if baseline is None else f"{report} --baseline {shlex.quote(str(baseline.path))}",
    ]
    if run.manifest["git_commit"]:
        lines.insert(0, f"git checkout {run.manifest['git_commit']}")
    return "\n".join(lines)
