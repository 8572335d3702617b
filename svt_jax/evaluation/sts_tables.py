"""The tables that `eval.py sts` prints."""

from __future__ import annotations

from typing import Any

from rich.table import Table


def score_table(tables: list[dict[str, Any]]) -> Table:
    """Spearman x 100 of each task, by the mean of its files and over all of its pairs."""
    shown = Table(title="Spearman x 100", title_justify="left")
    for column in ("pooling", "post", "of", *tables[0]["tasks"], "average"):
        shown.add_column(column, justify="left" if column in ("pooling", "post", "of") else "right")
    for table in tables:
        for kind in ("mean", "all"):
            scores = [*(task[kind] for task in table["tasks"].values()), table["average"][kind]]
            shown.add_row(table["pooling"], _post(table), kind, *(f"{score:.2f}" for score in scores))
    return shown


def analysis_table(tables: list[dict[str, Any]]) -> Table:
    """Measures of the embeddings before and after each post."""
    measured = list(tables[0]["analysis"]["before"])
    shown = Table(title="Embeddings, before -> after", title_justify="left")
    for column in ("pooling", "post", *measured):
        shown.add_column(column.replace("_", " "))
    for table in tables:
        before, after = table["analysis"]["before"], table["analysis"]["after"]
        shown.add_row(table["pooling"], _post(table), *(f"{before[m]:.3f} -> {after[m]:.3f}" for m in measured))
    return shown


def _post(table: dict[str, Any]) -> str:
    value = table["alpha"] if table["alpha"] is not None else table["dim"]
    return table["post"] if value is None else f"{table['post']} {value:g}"
