"""The tables that `eval.py sts` prints, 80 columns wide."""

from __future__ import annotations

from typing import Any

from rich import box
from rich.table import Table

_MEASURES = {
    "token_uniformity": "uniformity",
    "explained_variance_1": "EV_1",
    "explained_variance_3": "EV_3",
    "rbf_distance": "RBF distance",
    "local_structure": "local structure",
}


def score_table(tables: list[dict[str, Any]]) -> Table:
    """Spearman x 100 of each task, by the mean of its files and over all of its pairs."""
    shown = _table(f"Spearman x 100, protocol {tables[0]['protocol']}", ["", "of", *tables[0]["tasks"], "avg"], words=2)
    for table in tables:
        label = f"{table['pooling']} {_post(table)}"
        for kind in ("mean", "all"):
            scores = [*(task[kind] for task in table["tasks"].values()), table["average"][kind]]
            shown.add_row(label if kind == "mean" else "", kind, *(f"{score:.2f}" for score in scores))
    return shown


def analysis_table(tables: list[dict[str, Any]]) -> Table:
    """Measures of the embeddings of each pooling, before and after each map."""
    measured = list(tables[0]["analysis"]["before"])
    shown = _table("Embeddings before and after", ["", *(_MEASURES[name] for name in measured)], words=1)
    before = None
    for table in tables:
        if table["pooling"] != before:
            before = table["pooling"]
            shown.add_row(f"{before} before", *(f"{table['analysis']['before'][name]:.3f}" for name in measured))
        if table["post"] != "none":
            after = table["analysis"]["after"]
            shown.add_row(f"{before} {_post(table)}", *(f"{after[name]:.3f}" for name in measured))
    return shown


def _table(title: str, columns: list[str], *, words: int) -> Table:
    shown = Table(title=title, title_justify="left", box=box.SIMPLE_HEAD, padding=(0, 1, 0, 0))
    for number, column in enumerate(columns):
        shown.add_column(column, justify="left" if number < words else "right", no_wrap=number > 0)
    return shown


def _post(table: dict[str, Any]) -> str:
    value = table["alpha"] if table["alpha"] is not None else table["dim"]
    return table["post"] if value is None else f"{table['post']} {value:g}"
