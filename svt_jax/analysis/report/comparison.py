"""The page about several runs: settings and seeds side by side, from a comparison's statistics and pictures."""

from __future__ import annotations

import base64
import shlex
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svt_jax.analysis.compare import Comparison, Search, differing_keys
from svt_jax.analysis.comparison_files import READING, as_csv, interval_text, search_table, table
from svt_jax.analysis.finished import FinishedRun
from svt_jax.analysis.report.render import picture, render
from svt_jax.analysis.report.tables import Table, other_splits, place_name, with_csv
from svt_jax.evaluation.probe import MEASURES
from svt_jax.run.config import identity

if TYPE_CHECKING:
    from matplotlib.figure import Figure

_PICTURES = {
    "compare": (
        "Scores by setting",
        "Left: mean validation score of each setting and its 95 % t interval. Right: difference from the first setting, paired by "
        "seed. Small circles: seeds. An arrow ends an interval that goes on.",
    ),
    "curves": (
        "Course of the training",
        "Loss, gradient norm, validation scores and parameters by step: the mean over seeds. Up to six settings have a band from "
        "the smallest seed to the largest. Loss and gradient norm are running means over a tenth of the steps.",
    ),
    "depth": (
        "Measures by depth",
        "Each measure by layer after the last step: the mean over seeds. Up to six settings have bands, and triangles for an SVT's "
        "input (hollow) and output (filled).",
    ),
    "spectra": (
        "Spectra by depth",
        "The distribution of σ/σ₁ behind each layer, a panel for each setting: median, and the ranges that hold 50 and 80 % of the "
        "singular values. Dashed: the median of the first setting.",
    ),
}  # fmt: skip
Runs = Mapping[str, Sequence[FinishedRun]]


def render_comparison(
    comparison: Comparison,
    runs: Runs,
    figures: Mapping[str, Figure],
    searches: Mapping[str, Search] | None = None,
    folder: Path = Path("report"),
) -> str:
    """The page as HTML text.

    Args:
      comparison: scores and statistics.
      runs: the comparison's runs by setting (`comparison_files.runs_of`).
      figures: pictures of them (`comparison_files.figures`).
      searches: what each setting's search found.
      folder: where the page is written; its command names it.
    """
    searched = search_table(searches) if searches else None
    several = [run for by_seed in runs.values() for run in by_seed]
    return render(
        "comparison.html",
        of="of the runs",
        title=f"{comparison.task}: {len(runs)} settings" if len(runs) > 1 else f"{comparison.task}: {next(iter(runs))}",
        lead=_lead(comparison),
        left_out=[problem for run in several for problem in run.left_out],
        warnings=[each for each in comparison.warnings if not any(each in run.left_out for run in several)],
        summaries=_summaries(comparison),
        reading=READING.format(baseline=comparison.settings[0]),
        by_seed=_by_seed(comparison),
        differences=_differences(runs),
        search=None if searched is None else Table("What the search chose", *_split(searched)),
        facts=_facts(runs),
        pictures=[
            picture(name, figures[key], caption, "The numbers stand in the tables, and in each run's metrics.jsonl.")
            for key, (name, caption) in _PICTURES.items()
            if key in figures
        ],
        tables=[_evaluations(runs), *([_layers(runs)] if any(run.readings for run in several) else [])],
        commands=_command(runs, folder),
    )


def _lead(comparison: Comparison) -> str:
    """What holds in the first metric, without more than the statistics say."""
    metric, (baseline, *others) = next(iter(comparison.scores)), comparison.settings
    text = f"{baseline}: validation {metric} {_mean(comparison, metric, baseline)}"
    if not others:
        return f"{text}."
    if len(others) == 1:
        text += f", {others[0]}: {_mean(comparison, metric, others[0])}"
    found = [each for name in others if (each := comparison.difference(metric, name)) is not None]
    if not found:
        return f"{text}. One seed shows no difference: two seeds in common are needed."
    held = sum(each.p_holm is not None and each.p_holm < 0.05 for each in found)
    return f"{text}. {held} of {len(found)} differences from {baseline} have p < 0.05 by Holm's correction."


def _mean(comparison: Comparison, metric: str, setting: str) -> str:
    n, mean, std = comparison.summary(metric, setting)
    return f"{100 * mean:.2f}" + ("" if std is None else f" ± {100 * std:.2f} over {n} seeds")


def _split(rows: list[list[str]]) -> tuple[list[str], list[list[str]]]:
    return rows[0], rows[1:]


def _summaries(comparison: Comparison) -> list[Table]:
    """The comparison's table, a part for each metric, so that a row begins with its setting."""
    header, rows = _split(table(comparison))
    return [
        Table(f"{metric} × 100", header[1:], [row[1:] for row in rows if row[0] == metric])
        for metric in comparison.scores
    ]


def _by_seed(comparison: Comparison) -> Table:
    """Each seed's score beside the mean, the standard deviation and the interval; the CSV has a row for each score."""
    seeds = sorted({seed for by in comparison.scores.values() for by_seed in by.values() for seed in by_seed})
    rows = []
    for metric, by in comparison.scores.items():
        for setting, by_seed in by.items():
            _, mean, std = comparison.summary(metric, setting)
            cells = [f"{100 * by_seed[seed]:.2f}" if seed in by_seed else "" for seed in seeds]
            spread = "" if std is None else f"{100 * std:.2f}"
            rows.append(
                [
                    setting,
                    metric,
                    *cells,
                    f"{100 * mean:.2f}",
                    spread,
                    interval_text(comparison.interval(metric, setting)),
                ]
            )
    text = as_csv(comparison)
    header = ["setting", "metric", *(f"seed {seed}" for seed in seeds), "mean", "std", "95 % (t)"]
    data = base64.b64encode(text.encode("utf-8", "replace")).decode()
    return Table("Scores × 100 by setting and seed", header, rows, "scores.csv", data, text.count("\n") - 1)


def _differences(runs: Runs) -> Table | None:
    """The keys whose values differ between settings, a row for each setting."""
    configs = {name: identity(several[0].config) for name, several in runs.items()}
    keys = [key for key in differing_keys(list(configs.values())) if key != "seed"]
    rows = [
        [name, *("" if config.get(key) is None else str(config[key]) for key in keys)]
        for name, config in configs.items()
    ]
    return Table("Settings that differ", ["setting", *keys], rows) if keys else None


def _facts(runs: Runs) -> dict[str, str]:
    """What was run; several values where the runs differ."""
    several = [run for by_seed in runs.values() for run in by_seed]
    first = next(iter(runs.values()))
    facts = {
        "task": several[0].task,
        "data": _values(
            "embedded" if run.config["data"]["task"] == "demo" else run.config["data"].get("source") for run in several
        ),
        "model": _values(run.config["model"].get("path") for run in several),
        "seeds": _values(sorted(run.config["run"]["seed"] for run in several)),
        "runs": f"{len(several)}, of {len(runs)} settings; the baseline is {next(iter(runs))} ({len(first)} runs)",
        "steps": _values(run.results.get("steps") for run in several),
        "device": _values(run.results.get("device") for run in several),
        "jax": _values(run.manifest["versions"].get("jax") for run in several),
        "git commit": _values(run.manifest.get("git_commit") for run in several),
    }
    return {name: value for name, value in facts.items() if value}


def _values(found: Iterable[Any]) -> str:
    return ", ".join(dict.fromkeys(str(value) for value in found if value is not None))


def _evaluations(runs: Runs) -> Table:
    """Every evaluation of every run in the CSV; the page shows the last of each run."""
    rows, shown = [], []
    for setting, several in runs.items():
        for run in several:
            seed = run.config["run"]["seed"]
            for evaluation in run.results.get("evaluations", []):
                splits = [("validation", evaluation["metrics"]), *other_splits(evaluation)]
                rows += [[setting, seed, evaluation["step"], *at] for at in _flat(splits)]
            splits = [(split, metrics) for split, metrics in run.results["metrics"].items()]
            shown += [[setting, seed, run.results.get("steps", ""), *at] for at in _flat(splits)]
    return with_csv(
        "Evaluations", "evaluations.csv", ["setting", "seed", "step", "split", "metric", "value"], rows, shown
    )


def _flat(splits: Iterable[tuple[str, Mapping[str, float]]]) -> list[list[Any]]:
    return [[split, metric, value] for split, metrics in splits for metric, value in metrics.items()]


def _layers(runs: Runs) -> Table:
    """Every state of every run's last reading in the CSV; the page shows the last layer's output."""
    rows, shown = [], []
    for setting, several in runs.items():
        for run in several:
            for reading in run.readings[-1:]:
                of_run = [
                    [
                        setting,
                        run.config["run"]["seed"],
                        *place_name(state),
                        reading["step"],
                        *(state[name] for name in MEASURES),
                    ]
                    for state in reading["states"]
                ]
                rows += of_run
                shown += [row for row in of_run if row[3] == "output"][-1:]
    return with_csv(
        "Measures by layer", "layers.csv", ["setting", "seed", "layer", "state", "step", *MEASURES], rows, shown
    )


def _command(runs: Runs, folder: Path) -> str:
    folders = " \\\n  ".join(shlex.quote(str(run.path)) for several in runs.values() for run in several)
    return f"svt-jax eval report --output {shlex.quote(str(folder))} --runs \\\n  {folders}"
