"""Measures encoders layer by layer for atlas.md: python docs/make_atlas.py --texts FILE.txt [NAME=]MODEL ...

A model is a hub id or a folder; a name in front of it takes the place of its own. The file has one text a line. Readings
are added to docs/atlas.json; then the picture is drawn anew from all readings there, and the table printed. Without a
model only the last two are done.
"""

import argparse
import json
from pathlib import Path

import matplotlib
from matplotlib.figure import Figure

import svt_jax
from svt_jax.analysis import plots
from svt_jax.analysis.measure_plots import TITLES
from svt_jax.analysis.style import RC, save, styles
from svt_jax.data.tables import read_lines

HERE = Path(__file__).parent
READINGS, PICTURES = HERE / "atlas.json", HERE / "pictures"
MEASURES = {"token_uniformity": 2, "effective_rank": 1, "iso_score": 3}
"""The measures, and the digits of each in the table."""


def measured(model: str, texts: list[str]) -> dict:
    """One model's reading: each measure by depth, from the embeddings' output to the last layer's."""
    values = svt_jax.probe(model, texts, measures=list(MEASURES)).values
    states = [{name: round(state[name], 5) for name in MEASURES} for state in plots.states_of(values, "output")]
    return {"texts": len(texts), "states": states}


def table(readings: dict[str, dict]) -> str:
    """A row for each model and measure: the embeddings' output, and the output at every fourth of the depth."""
    lines = ["| model | layers | measure | embeddings | 1/4 | 1/2 | 3/4 | last |", "|---" * 8 + "|"]
    for name, reading in readings.items():
        states, layers = reading["states"], len(reading["states"]) - 1
        for measure, digits in MEASURES.items():
            cells = [f"{states[round(share * layers)][measure]:.{digits}f}" for share in (0, 0.25, 0.5, 0.75, 1)]
            title = TITLES.get(measure, measure.replace("_", " "))
            lines.append(f"| {name} | {layers} | {title} | {' | '.join(cells)} |")
    return "\n".join(lines)


@matplotlib.rc_context(RC)
def picture(readings: dict[str, dict]) -> Figure:
    """A panel for each measure over relative depth, a line for each model."""
    figure = Figure(figsize=(9.6, 3.2), layout="constrained")
    panels, looks = list(figure.subplots(1, len(MEASURES)).flat), styles(readings)
    for panel, measure in zip(panels, MEASURES, strict=True):
        for name, reading in readings.items():
            values = [state[measure] for state in reading["states"]]
            depth = [n / (len(values) - 1) for n in range(len(values))]
            panel.plot(depth, values, label=name, **looks[name].curve())
        panel.set_title(TITLES.get(measure, measure.replace("_", " ")))
        panel.set_xticks([0, 0.5, 1], ["emb.", "half", "last"])
        panel.grid(visible=True, axis="y")
    panels[0].legend(fontsize=8)
    return figure


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", nargs="*", metavar="[NAME=]MODEL")
    parser.add_argument("--texts", type=Path, help="one text a line; needed for models")
    options = parser.parse_args()
    if options.models and options.texts is None:
        parser.error("models need --texts FILE.txt, one text a line")
    readings = json.loads(READINGS.read_text(encoding="utf-8")) if READINGS.is_file() else {}
    texts = [line for line in read_lines(options.texts) if line.strip()] if options.models else []
    for each in options.models:
        name, _, model = each.rpartition("=")
        readings[name or Path(model).name] = measured(model, texts)
        READINGS.write_text(json.dumps(readings, indent=1) + "\n", encoding="utf-8")
    for path in save({"atlas": picture(readings)}, PICTURES):
        if path.suffix == ".png":  # pages show the SVG
            path.unlink()
    print(table(readings))


if __name__ == "__main__":
    main()
