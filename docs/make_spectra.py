"""Draws the pictures of spectra.md and prints its tables from the readings beside them: python docs/make_spectra.py

A reading is the spectrum.json of `eval.py spectrum`; spectra.md says how the readings were made.
"""

import json
from pathlib import Path

from svt_jax.analysis import plots

HERE = Path(__file__).parent
READINGS = {  # file -> name in the pictures
    "pretrained": "pretrained",
    "plain": "fine-tuned",
    "soft_decay": "fine-tuned with SoftDecay",
}
METHODS = {"fine-tuned": "none", "fine-tuned with SoftDecay": "soft_decay", "pretrained": "none"}
SHOWN = {
    "skewness": "skewness",
    "median_ratio": "median of σ/σ₁",
    "token_uniformity": "token uniformity",
    "cls_uniformity": "CLS uniformity",
    "effective_rank": "effective rank",
}


MODELS = {"MiniLM": "", "MPNet": "mpnet_"}  # name -> what its files begin with


def read(name: str) -> dict:
    return json.loads((HERE / "spectra" / f"{name}.json").read_text(encoding="utf-8"))


def table(prefix: str = "") -> str:
    """Each measure by layer: pretrained / fine-tuned / fine-tuned with SoftDecay; SVT's input and output last."""
    readings = [read(prefix + name) for name in READINGS]
    lines = ["| | " + " | ".join(SHOWN.values()) + " |", "|---" * (len(SHOWN) + 1) + "|"]
    for states in zip(*(plots.states_of(reading, "output") for reading in readings), strict=True):
        cells = [" / ".join(f"{state[measure]:.{_digits(measure)}f}" for state in states) for measure in SHOWN]
        lines.append(f"| {plots.layer_name(states[0]['layer'])} | " + " | ".join(cells) + " |")
    for kind, label in (("svt_input", "SVT's input"), ("svt_output", "SVT's output")):
        (state,) = plots.states_of(readings[-1], kind)
        cells = [f"{state[measure]:.{_digits(measure)}f}" for measure in SHOWN]
        lines.append(f"| {label} | " + " | ".join(cells) + " |")
    return "\n".join(lines)


def _digits(measure: str) -> int:
    return {"effective_rank": 1}.get(measure, 2)


def main() -> None:
    figures = {f"histograms_{name}": plots.spectrum_histograms(read(name)) for name in READINGS}
    figures["svt"] = plots.svt_histograms(read("soft_decay"))
    names = {label: name for name, label in READINGS.items()}
    for prefix in MODELS.values():
        readings = {label: [read(prefix + names[label])] for label in METHODS}
        figures[f"{prefix}by_depth"] = plots.measures_by_depth(readings, METHODS)
    for path in plots.save(figures, HERE / "spectra"):
        if path.suffix == ".png":
            path.unlink()  # pages show the SVG, which follows them to light or dark
    for model, prefix in MODELS.items():
        print(f"{model}\n{table(prefix)}\n")


if __name__ == "__main__":
    main()
