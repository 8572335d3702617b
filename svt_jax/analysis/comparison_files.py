"""A comparison as table, Markdown, JSON, CSV and plot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from svt_jax.analysis.compare import Comparison, Search
from svt_jax.analysis.csv_text import csv_text
from svt_jax.analysis.finished import FinishedRun, read_finished
from svt_jax.host import only_warns
from svt_jax.stores import make_folder

if TYPE_CHECKING:
    from matplotlib.figure import Figure


READING = (
    "Validation scores x 100 after the last step, over seeds; ± is the standard deviation (n - 1). Differences are from "
    "{baseline}, seed by seed, with the paired t-test's two-sided p, and that p by Holm's correction for the number of rows; p is "
    "empty where the differences do not vary. With few seeds a large p shows little: read the interval. Seeds for 1.0 is how many "
    "seeds would find a true difference of 1.0 in four of five tries, if the differences vary as they did here. Token uniformity "
    "is that of the last layer's output after the last step, a mean over seeds, with the change from the baseline."
)
"""How to read the table."""


def table(comparison: Comparison) -> list[list[str]]:
    """Header and rows: a row for each metric and setting, scores times 100. Columns without an entry are left out."""
    header = ["metric", "setting", "n", "mean ± std", "difference", "95 % (t)", "95 % (BCa)", "pairs", "p (t)"]
    header += ["p (Holm)", "p (Wilcoxon)", "seeds for 1.0", "token uniformity"]
    rows = [header]
    for metric in comparison.scores:
        for setting in comparison.settings:
            n, mean, std = comparison.summary(metric, setting)
            row = [metric, setting, str(n), f"{100 * mean:.2f}" + (f" ± {100 * std:.2f}" if std is not None else "")]
            found = comparison.difference(metric, setting)
            if found is None:
                row += ["" if setting == comparison.settings[0] else "needs two seeds in common", *[""] * 7]
            else:
                row += [f"{100 * found.mean:+.2f} ± {100 * found.std:.2f}"]
                row += [interval_text(ends, sign="+") for ends in (found.interval, found.interval_bca)]
                row += ["" if len(found.seeds) == n else str(len(found.seeds))]
                row += ["" if p is None else f"{p:.3f}" for p in (found.p_t, found.p_holm, found.p_wilcoxon)]
                row += [str(found.seeds_for_one_point or "")]
            rows.append([*row, _uniformity(*comparison.mean_uniformity(setting), setting == comparison.settings[0])])
    filled = [n for n in range(len(header)) if n < 5 or any(row[n] for row in rows[1:])]
    return [[row[n] for n in filled] for row in rows]


def _uniformity(mean: float | None, change: float | None, is_baseline: bool) -> str:
    if mean is None:
        return ""
    return f"{mean:.3f}" if change is None or is_baseline else f"{mean:.3f} ({change:+.3f})"


def interval_text(ends: tuple[float, float] | None, *, sign: str = "") -> str:
    """Both ends times 100; empty for none."""
    return "" if ends is None else " to ".join(f"{100 * end:{sign}.2f}" for end in ends)


def search_table(searches: Mapping[str, Search]) -> list[list[str]]:
    """Header and rows: each try of each setting, with its score on the held part."""
    metric = next(iter(searches.values())).metric
    rows = [["setting", "tried", f"held-out {metric}", "chosen"]]
    for name, each in searches.items():
        for values, score in zip(each.tried, each.scores, strict=True):
            tried = ", ".join(f"{key} {_plain(value)}" for key, value in values.items())
            rows.append([name, tried, f"{100 * score:.2f}", "yes" if values == each.chosen else ""])
    return rows


def _plain(value: Any) -> str:
    return ", ".join(f"{name} {each}" for name, each in value.items()) if isinstance(value, dict) else str(value)


def _rows(table: list[list[str]]) -> list[str]:
    """A table in Markdown."""
    header, *rows = table
    rows = [[cell.replace("|", r"\|") for cell in row] for row in rows]  # a | in a name would start another column
    return [f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows)]


def markdown(comparison: Comparison, searches: Mapping[str, Search] | None = None) -> str:
    """The table, how to read it, what makes the runs less comparable, and what a search has chosen."""
    lines = [f"# {comparison.task}: {', '.join(comparison.settings)}", "", *_rows(table(comparison))]
    lines += [
        "",
        READING.format(baseline=comparison.settings[0]),
        *(f"\nNote: {warning}." for warning in comparison.warnings),
    ]
    if searches:
        lines += ["", "Values were chosen on a part of the training set, before the runs above, with one seed:", ""]
        lines += _rows(search_table(searches))
    return "\n".join(lines) + "\n"


def as_json(comparison: Comparison, searches: Mapping[str, Search] | None = None) -> dict[str, Any]:
    """Everything in the table, as numbers; and with a search "search": what each setting tried and chose."""
    metrics: dict[str, Any] = {}
    for metric, by_setting in comparison.scores.items():
        for setting, by_seed in by_setting.items():
            n, mean, std = comparison.summary(metric, setting)
            found = comparison.difference(metric, setting)
            metrics.setdefault(metric, {})[setting] = {
                "n": n,
                "mean": mean,
                "std": std,
                "by_seed": {str(seed): value for seed, value in sorted(by_seed.items())},
                "difference": None if found is None else dataclasses.asdict(found),
            }
    return {
        "task": comparison.task,
        "baseline": comparison.settings[0],
        "metrics": metrics,
        "token_uniformity": {name: {str(s): v for s, v in by.items()} for name, by in comparison.uniformity.items()},
        "warnings": comparison.warnings,
        **(
            {"search": {n: {**dataclasses.asdict(s), "chosen": s.chosen} for n, s in searches.items()}}
            if searches
            else {}
        ),
    }


def as_csv(comparison: Comparison) -> str:
    """A row for each run and metric."""
    return csv_text(
        ["task", "setting", "seed", "metric", "value"],
        (
            [comparison.task, setting, seed, metric, value]
            for metric, by_setting in comparison.scores.items()
            for setting, by_seed in by_setting.items()
            for seed, value in sorted(by_seed.items())
        ),
    )


def runs_of(comparison: Comparison) -> dict[str, list[FinishedRun]]:
    """The runs by setting, in the order of their seeds."""
    return {
        setting: [read_finished(path) for _, path in sorted(by_seed.items())]
        for setting, by_seed in comparison.folders.items()
    }


def figures(comparison: Comparison, runs: Mapping[str, Sequence[FinishedRun]]) -> dict[str, Figure]:
    """Pictures of the runs by the names of their files; leaves out what some run has not written.

    compare   scores by setting and differences from the baseline, with 95 % intervals and each seed
    curves    loss, scores and parameters by step, seeds as a band around their mean
    depth     each measure by layer after the last step, likewise
    spectra   the distribution of sigma / sigma_1 by layer, a panel for each setting
    """
    from svt_jax.analysis import comparison_plots
    from svt_jax.analysis.plots import measures_by_depth
    from svt_jax.analysis.training_plots import training_curves

    every = [run for several in runs.values() for run in several]
    found = {"compare": comparison_plots.scores(comparison)}
    if all(run.lines and "evaluations" in run.results for run in every):
        courses = {
            setting: [{"lines": run.lines, "evaluations": run.results["evaluations"]} for run in several]
            for setting, several in runs.items()
        }
        found["curves"] = training_curves(courses, comparison.methods)
    if all(run.readings for run in every):
        readings = {setting: [run.readings[-1] for run in several] for setting, several in runs.items()}
        found["depth"] = measures_by_depth(readings, comparison.methods)
        found["spectra"] = comparison_plots.spectra_by_depth(readings, comparison.methods)
    return found


def write_comparison(comparison: Comparison, folder: Path, searches: Mapping[str, Search] | None = None) -> list[Path]:
    """Writes compare.md, .json and .csv, the pictures of `figures` as SVG and PNG, and report.html; returns their paths.

    If the pictures or the page cannot be made, it warns.
    """
    make_folder(folder)
    paths = [folder / f"compare.{ending}" for ending in ("md", "json", "csv")]
    paths[0].write_text(markdown(comparison, searches), encoding="utf-8")
    paths[1].write_text(json.dumps(as_json(comparison, searches), indent=2) + "\n", encoding="utf-8")
    paths[2].write_text(as_csv(comparison), encoding="utf-8")
    runs, drawn = runs_of(comparison), {}
    with only_warns("the pictures"):
        from svt_jax.analysis.style import save

        drawn = figures(comparison, runs)
        paths += save(drawn, folder)
    with only_warns("the page"):
        from svt_jax.analysis.report import write_comparison_report

        paths.append(write_comparison_report(comparison, runs, drawn, folder, searches))
    return paths
