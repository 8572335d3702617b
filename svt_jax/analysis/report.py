"""report.html: one self-contained page on a run, made of the files that the run left."""

from __future__ import annotations

import html
import io
import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

_STYLE = """
:root { color-scheme: light dark; --line: #8884; --ink: light-dark(#1a1a1a, #eee); --paper: light-dark(#fff, #16181c); }
body { font: 16px/1.5 system-ui, sans-serif; color: var(--ink); background: var(--paper); max-width: 60rem; margin: auto; padding: 1rem; }
table { border-collapse: collapse; display: block; overflow-x: auto; }
th, td { border-bottom: 1px solid var(--line); padding: .3rem .8rem .3rem 0; text-align: left; font-variant-numeric: tabular-nums; }
pre { overflow-x: auto; border: 1px solid var(--line); border-radius: 6px; padding: .7rem; }
figure { margin: 1rem 0; background: #fff; border-radius: 6px; } figure svg { width: 100%; height: auto; }
"""


def render_report(run: Path) -> str:
    """The page, as HTML text.

    Args:
      run: folder with config.yaml, manifest.json, metrics.jsonl and results.json.
    Raises:
      ValueError: if the run is not complete.
    """
    if not (run / "results.json").is_file():
        raise ValueError(
            f"{run} has no results.json: the run is not complete. Start the same training command again to finish it."
        )
    results = json.loads((run / "results.json").read_text(encoding="utf-8"))
    manifest = json.loads((run / "manifest.json").read_text(encoding="utf-8"))
    config = yaml.safe_load((run / "config.yaml").read_text(encoding="utf-8"))
    lines = [json.loads(line) for line in (run / "metrics.jsonl").read_text(encoding="utf-8").splitlines()]
    svt = results["svt"]
    scores = {f"validation {name}": f"{value:.4f}" for name, value in results["metrics"]["validation"].items()}
    best = ", ".join(f"{name} {value:.4f}" for name, value in results["best"]["metrics"].items())
    summary = {
        **scores,
        "best": f"step {results['best']['step']}: {best}",
        "transformation": svt["function"]
        if not svt["layers"]
        else f"{svt['function']} in layers {svt['layers']}"
        + (f", alpha {[round(a, 4) for a in svt['alpha']]}" if svt["alpha"] else ""),
        "steps": f"{results['steps']} ({results['epochs']:.2f} epochs)",
        "speed": f"{results['train']['examples_per_second']:.1f} examples/s, {results['train']['wall_time_s']:.0f} s in all",
        "device": results["device"],
        "versions": ", ".join(f"{name} {version}" for name, version in manifest["versions"].items()),
        "git commit": manifest["git_commit"] or "none",
        "weights (sha256)": manifest["weights_sha256"] or "random",
    }
    title = f"{results['task']}: {run.name}"
    sections = [
        ("Result", _table(["", ""], summary.items())),
        ("Course of the training", _curves(lines)),
        ("Evaluations", _table(["step", "epoch", "metrics"], _evaluations(results))),
        ("Config", f"<pre>{html.escape(yaml.safe_dump(config, sort_keys=False))}</pre>"),
        (
            "How to reproduce",
            f"<pre>python train.py --config {html.escape(str(run / 'config.yaml'))} --run.name again</pre>",
        ),
    ]
    body = "\n".join(f"<section><h2>{heading}</h2>\n{content}</section>" for heading, content in sections)
    return (
        f'<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        f'<meta name="viewport" content="width=device-width, initial-scale=1"><title>{html.escape(title)}</title>'
        f"<style>{_STYLE}</style></head>\n<body><main><h1>{html.escape(title)}</h1>\n{body}\n</main></body></html>\n"
    )


def _table(header: Sequence[str], rows: Any) -> str:
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in header) if any(header) else ""
    body = "".join("<tr>" + "".join(f"<td>{html.escape(str(cell))}</td>" for cell in row) + "</tr>" for row in rows)
    return f"<table>{f'<thead><tr>{head}</tr></thead>' if head else ''}<tbody>{body}</tbody></table>"


def _evaluations(results: dict[str, Any]) -> list[tuple[int, str, str]]:
    steps_per_epoch = results["steps"] / results["epochs"]
    return [
        (e["step"], f"{e['step'] / steps_per_epoch:.2f}", ", ".join(f"{n} {v:.4f}" for n, v in e["metrics"].items()))
        for e in results["evaluations"]
    ]


def _curves(lines: list[dict[str, Any]]) -> str:
    """Loss, gradient norm and alpha by step, as one inline SVG."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    steps = [line["step"] for line in lines]
    layers = sorted({layer for line in lines for layer in line["alpha"]}, key=int)
    panels = ["training loss", "gradient norm", *(["alpha"] if layers else [])]
    figure, axes = plt.subplots(1, len(panels), figsize=(4 * len(panels), 3), constrained_layout=True)
    for axis, name in zip(axes, panels, strict=True):
        if name == "alpha":
            for n, layer in enumerate(layers):
                axis.plot(
                    steps,
                    [line["alpha"][layer] for line in lines],
                    label=f"layer {layer}",
                    linestyle=["-", "--", ":"][n % 3],
                )
            axis.legend(frameon=False)
        else:
            key = {"training loss": "loss", "gradient norm": "grad_norm"}[name]
            axis.plot(steps, [line[key] for line in lines], linewidth=1.0)
        axis.set(title=name, xlabel="step")
        axis.spines[["top", "right"]].set_visible(False)
    buffer = io.StringIO()
    with matplotlib.rc_context({"svg.hashsalt": "svt_jax"}):
        figure.savefig(buffer, format="svg", metadata={"Date": None})
    plt.close(figure)
    svg = buffer.getvalue()
    return f'<figure role="img" aria-label="{", ".join(panels)} by step">{svg[svg.index("<svg") :]}</figure>'
