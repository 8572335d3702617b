"""Prints the tables of bench.md from bench/*.json: python docs/make_bench.py

`--add FOLDER` first adds a finished comparison (the output of `eval.py compare`) as bench/TASK.json.
"""

import argparse
import json
from pathlib import Path
from typing import Any

import yaml

from svt_jax.analysis.compare import Comparison, Search
from svt_jax.analysis.comparison_files import search_table

FOLDER = Path(__file__).parent / "bench"
NAMES = {
    "plain": "plain",
    "soft_decay": "SoftDecay",
    "centred": "SoftDecay, centred",
    "contra_norm": "ContraNorm",
    "polynomial": "polynomial",
    "de_escalation": "De-escalation",
    "feat_scale": "FeatScale",
    "attn_scale": "AttnScale",
    "gfsa": "GFSA",
    "laplacian": "Laplacian",
    "neutreno": "NeuTRENO",
    "i_star": "I-STAR",
    "cos_reg": "CosReg",
    "gor": "GOR",
    "spectrum_area": "area of the spectrum",
}


def added(folder: Path) -> dict[str, Any]:
    """A finished comparison: its numbers, and what each run was and ended with, but for parameters that are arrays."""
    found: dict[str, Any] = json.loads((folder / "compare.json").read_text(encoding="utf-8"))
    runs: dict[str, Any] = {}
    for setting in found["token_uniformity"]:
        for seed in found["token_uniformity"][setting]:
            run = folder / "runs" / f"{setting}-seed{seed}"
            results, manifest = (json.loads((run / f"{name}.json").read_text()) for name in ("results", "manifest"))
            config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
            found["optim"], found["steps"] = config["optim"] | {"learning_rate": None}, results["steps"]
            found["device"], found["versions"] = results["device"], manifest["versions"]
            runs.setdefault(setting, {})[seed] = {
                "learning_rate": config["optim"]["learning_rate"],
                "svt_learning_rate": config["optim"]["svt_learning_rate"],
                "svt": config["svt"],
                "parameters": {
                    layer: {name: each["last"] for name, each in values.items() if isinstance(each["last"], float)}
                    for layer, values in results["svt"]["parameters"].items()
                },
            }
    return {**found, "runs": runs}


def comparison(found: dict[str, Any]) -> Comparison:
    """The comparison in the first metric of its task, whose rows Holm's correction is over."""
    metric, by_setting = next(iter(found["metrics"].items()))
    scores = {name: {int(seed): score for seed, score in each["by_seed"].items()} for name, each in by_setting.items()}
    uniformity = {
        name: {int(seed): value for seed, value in each.items()} for name, each in found["token_uniformity"].items()
    }
    return Comparison(found["task"], {metric: scores}, [], {}, uniformity)


def table(found: dict[str, Any]) -> str:
    """A row for each setting: every run's score, the paired difference, and token uniformity. Scores are times 100."""
    compared = comparison(found)
    metric, scores = next(iter(compared.scores.items()))
    seeds = sorted(scores[compared.settings[0]])
    by_seed = f"seeds {', '.join(map(str, seeds))}"
    header = ["", by_seed, "mean", "difference", "95 %", "p", "p (Holm)", "token uniformity", by_seed]
    rows = [header, ["---"] * len(header)]
    for name in compared.settings:
        paired = compared.difference(metric, name)
        uniformity, change = compared.mean_uniformity(name)
        row = [NAMES[name], ", ".join(f"{100 * scores[name][seed]:.1f}" for seed in seeds)]
        row += [f"{100 * compared.summary(metric, name)[1]:.1f}"]
        if paired is None:
            row += [""] * 4
        else:
            row += [f"{100 * paired.mean:+.1f}", "" if paired.interval is None else "{:+.1f} to {:+.1f}".format(*(100 * end for end in paired.interval))]  # fmt: skip
            row += ["" if p is None else f"{p:.2f}" for p in (paired.p_t, paired.p_holm)]
        row += [f"{uniformity:.3f}" + ("" if paired is None else f" ({change:+.3f})")]
        rows.append([*row, ", ".join(f"{compared.uniformity[name][seed]:.3f}" for seed in seeds)])
    return "\n".join(f"| {' | '.join(row)} |" for row in rows)


def searched(found: dict[str, Any]) -> str:
    """A row for each try of each setting; empty without a search."""
    if "search" not in found:
        return ""
    searches = {
        NAMES[name]: Search(each["tried"], each["scores"], each["metric"]) for name, each in found["search"].items()
    }
    header, *rows = search_table(searches)
    return "\n".join(f"| {' | '.join(row)} |" for row in (header, ["---"] * len(header), *rows))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--add", type=Path, nargs="+", default=[], metavar="FOLDER", help="of finished comparisons")
    for folder in parser.parse_args().add:
        found = added(folder)
        FOLDER.mkdir(exist_ok=True)
        lines = ",\n".join(f'"{key}": {json.dumps(value)}' for key, value in found.items())
        (FOLDER / f"{found['task']}.json").write_text(f"{{\n{lines}\n}}\n", encoding="utf-8")
    for path in sorted(FOLDER.glob("*.json")):
        found = json.loads(path.read_text(encoding="utf-8"))
        print(f"{found['task']}\n\n{table(found)}\n\n{searched(found)}\n")


if __name__ == "__main__":
    main()
