"""Prints the tables of scores.md from scores/runs.json: python docs/make_scores.py

`--add FOLDER` first adds the finished runs under a folder: those of train.py (or `eval.py compare`), and the JSON
files that benchmarks.glue_scores writes.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

import yaml

from svt_jax.analysis.statistics import paired_difference

RUNS = Path(__file__).parent / "scores" / "runs.json"
METRICS = {"cola": "matthews_correlation", "rte": "accuracy", "mrpc": "accuracy", "stsb": "spearmanr"}
SETTINGS = {
    "plain": "plain",
    "soft_decay": "SoftDecay",
    "centered_soft_decay": "SoftDecay, centred",
    "contra_norm": "ContraNorm, behind the feed-forward, residual twice",
    "contra_norm, attention": "ContraNorm, as published",
}


def found(folder: Path) -> list[dict[str, Any]]:
    """The finished runs under a folder, one entry each."""
    runs = []
    for path in sorted(folder.rglob("results.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        config = yaml.safe_load((path.parent / "config.yaml").read_text(encoding="utf-8"))
        versions = json.loads((path.parent / "manifest.json").read_text(encoding="utf-8"))["versions"]
        function, data = config["svt"]["function"], config["data"]
        site = config["svt"].get("site", "feed_forward")  # earlier versions had only this one
        function += "" if site == "feed_forward" else f", {site}"
        layout = data.get("layout", "padded")  # earlier versions had only this one
        runs.append(
            {
                "by": "svt_jax",
                "setting": "plain" if function == "none" else function,
                "seed": config["run"]["seed"],
                "alpha": (results["svt"]["alpha"] or [None])[0],
                "layout": layout,
                "group_by_length": layout == "padded" and data["group_by_length"],
                "device": results["device"].removesuffix(" x 1"),
                "versions": f"jax {versions['jax']}",
                **{key: results[key] for key in ("task", "steps")},
                "metrics": results["metrics"]["validation"],
            }
        )
    for path in sorted(folder.rglob("*.json")):
        results = json.loads(path.read_text(encoding="utf-8"))
        if "variant" in results:
            environment = results["environment"]
            runs.append(
                {
                    "by": "PyTorch",
                    "setting": results["variant"],
                    "layout": "padded",
                    "group_by_length": False,
                    "device": environment["device"],
                    "versions": f"PyTorch {environment['torch']}, transformers {environment['transformers']}",
                    **{key: results[key] for key in ("seed", "alpha", "task", "steps", "metrics")},
                }
            )
    return runs


def scores(runs: list[dict[str, Any]]) -> dict[tuple[str, str, str, str], dict[int, float]]:
    """Score x 100 by seed, for each (task, by, device, setting)."""
    out: dict[tuple[str, str, str, str], dict[int, float]] = {}
    for task, metric in METRICS.items():
        for run in runs:
            if run["task"] == task:
                by = run["by"] + (", packed" if run["layout"] == "packed" else "")
                key = (task, by, run["device"], run["setting"])
                out.setdefault(key, {})[run["seed"]] = 100 * run["metrics"][metric]
    return out


def table(runs: list[dict[str, Any]]) -> str:
    """A row for each task, side, device and setting. It shows the difference from the plain runs by seed."""
    by_setting = scores(runs)
    lines = [
        "| task | | on | setting | seeds | scores | mean ± std | difference from plain, by seed | p |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    for (task, by, device, setting), values in by_setting.items():
        seeds = sorted(values)
        spread = f" ± {statistics.stdev(values.values()):.1f}" if len(values) > 1 else ""
        difference = chance = ""
        plain = by_setting.get((task, by, device, "plain"))
        if setting != "plain" and plain and (paired := paired_difference(values, plain)):
            difference = f"{paired.mean:+.1f} ± {paired.std:.1f}"
            chance = "" if paired.p_t is None else f"{paired.p_t:.2f}"
        cells = [
            task,
            by,
            device,
            SETTINGS[setting],
            ", ".join(map(str, seeds)),
            ", ".join(f"{values[seed]:.1f}" for seed in seeds),
            f"{statistics.mean(values.values()):.1f}{spread}",
            difference,
            chance,
        ]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="FOLDER", help="of finished runs")
    arguments = parser.parse_args()
    runs = json.loads(RUNS.read_text(encoding="utf-8")) if RUNS.is_file() else []
    for folder in arguments.add:
        runs += [run for run in found(folder) if run not in runs]
    if arguments.add:
        runs.sort(key=lambda run: (list(METRICS).index(run["task"]), run["by"], run["device"], list(SETTINGS).index(run["setting"]), run["seed"]))  # fmt: skip
        lines = ",\n".join(json.dumps(run) for run in runs)
        RUNS.write_text(f"[\n{lines}\n]\n", encoding="utf-8")
    print(table(runs))


if __name__ == "__main__":
    main()
