"""A comparison as table, Markdown, JSON, CSV and plot."""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from svt_jax.analysis.compare import Comparison, Search
from svt_jax.analysis.csv_text import csv_text
from svt_jax.analysis.finished import read_finished
from svt_jax.host import only_warns
from svt_jax.stores import make_folder, writable

if TYPE_CHECKING:
    from matplotlib.figure import Figure


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
                row += [_interval(ends) for ends in (found.interval, found.interval_bca)]
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


def _interval(ends: tuple[float, float] | None) -> str:
    return "" if ends is None else " to ".join(f"{100 * end:+.2f}" for end in ends)


def search_table(searches: Mapping[str, Search]) -> list[list[str]]:
    """Header and rows: each try of each setting, with its score on the held part."""
    metric = next(iter(searches.values())).metric
    rows = [["setting", "tried", f"held-out {metric}", "chosen"]]
    for name, each in searches.items():
        for values, score in zip(each.tried, each.scores, strict=True):
            tried = ", ".join(f"{key} {value}" for key, value in values.items())
            rows.append([name, tried, f"{100 * score:.2f}", "yes" if values == each.chosen else ""])
    return rows


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
        "Validation scores x 100 after the last step, over seeds; ± is the standard deviation (n - 1). Differences are "
        f"from {comparison.settings[0]}, seed by seed, with the paired t-test's two-sided p, and that p by Holm's "
        "correction for the number of rows; p is empty where the differences do not vary. With few seeds a large p shows "
        "little: read the interval. Seeds for 1.0 is how many seeds would find a true difference of 1.0 in four of five "
        "tries, if the differences vary as they did here. Token uniformity is that of the last layer's output after the last step, "
        "a mean over seeds, with the change from the baseline.",
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


def picture(comparison: Comparison, path: Path) -> None:
    """Each metric's scores by setting: a marker for each seed, joined between settings, and a bar at the mean."""
    from svt_jax.analysis.plots import PLAIN_TEXT, FigureCanvasAgg, matplotlib

    with matplotlib.rc_context(PLAIN_TEXT):
        figure = _scores(comparison)
        FigureCanvasAgg(figure)
        figure.savefig(path, dpi=150)


def _scores(comparison: Comparison) -> Figure:
    from svt_jax.analysis.plots import Figure

    settings = comparison.settings
    seeds = sorted({seed for scores in comparison.scores.values() for by in scores.values() for seed in by})
    markers = "osD^v<>phX"
    width = max(3.5, 1.2 * len(settings) + 1)
    figure = Figure(figsize=(width * len(comparison.scores), 3.6), layout="constrained")
    axes = figure.subplots(1, len(comparison.scores), squeeze=False)
    for axis, (metric, by_setting) in zip(axes[0], comparison.scores.items(), strict=True):
        for n, seed in enumerate(seeds):
            points = [100 * by_setting[s][seed] if seed in by_setting[s] else np.nan for s in settings]
            axis.plot(
                points, marker=markers[n % len(markers)], color="0.45", linewidth=0.8, markerfacecolor="white",
                label=f"seed {seed}",
            )  # fmt: skip
        for n, setting in enumerate(settings):
            mean = 100 * comparison.summary(metric, setting)[1]
            axis.hlines(mean, n - 0.25, n + 0.25, color="black", linewidth=2.5, label=None if n else "mean")
        axis.set_xticks(range(len(settings)), settings, rotation=20 if len(settings) > 2 else 0)
        axis.set(title=f"{comparison.task}: {metric} x 100", xlim=(-0.5, len(settings) - 0.5))
        axis.spines[["top", "right"]].set_visible(False)
    axes[0][-1].legend(frameon=False, fontsize="small", loc="center left", bbox_to_anchor=(1.0, 0.5))
    return figure


def seed_bands(comparison: Comparison) -> dict[str, Figure]:
    """Loss, scores and alpha by step, and each measure by layer after the last step: seeds as a band around their mean.

    Leaves out what some run has not written.
    """
    from svt_jax.analysis.plots import measures_by_depth, training_curves

    runs = {
        setting: [read_finished(path) for _, path in sorted(by_seed.items())]
        for setting, by_seed in comparison.folders.items()
    }
    every = [run for several in runs.values() for run in several]
    figures = {}
    if all(run.lines and "evaluations" in run.results for run in every):
        curves = {
            setting: [{"lines": run.lines, "evaluations": run.results["evaluations"]} for run in several]
            for setting, several in runs.items()
        }
        figures["curves"] = training_curves(curves)
    if all(run.readings for run in every):
        figures["depth"] = measures_by_depth(
            {name: [r.readings[-1] for r in several] for name, several in runs.items()}
        )
    return figures


def write_comparison(comparison: Comparison, folder: Path, searches: Mapping[str, Search] | None = None) -> list[Path]:
    """Writes compare.md, .json, .csv and .png, and the pictures of `seed_bands`; returns their paths.

    If a picture cannot be made, it warns.
    """
    make_folder(folder)
    paths = [folder / f"compare.{ending}" for ending in ("md", "json", "csv")]
    paths[0].write_text(markdown(comparison, searches), encoding="utf-8")
    paths[1].write_text(json.dumps(as_json(comparison, searches), indent=2) + "\n", encoding="utf-8")
    paths[2].write_text(as_csv(comparison), encoding="utf-8")
    with only_warns("the picture of the scores"):
        with writable(folder) as local:
            picture(comparison, local / "compare.png")
        paths.append(folder / "compare.png")
    with only_warns("the pictures of the runs"):
        from svt_jax.analysis.plots import save

        paths += save(seed_bands(comparison), folder)
    return paths
