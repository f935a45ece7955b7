"""docs/tour.ipynb runs from top to bottom, with the toy model in the place of the quickstart's."""

import shutil

import pytest
from pages import ROOT

nbformat = pytest.importorskip("nbformat", reason="needs nbclient")
nbclient = pytest.importorskip("nbclient", reason="needs nbclient")
pytest.importorskip("ipykernel", reason="needs ipykernel")


@pytest.mark.slow
def test_the_notebook_runs(trained, tmp_path, environment, monkeypatch) -> None:
    shutil.copytree(trained, tmp_path / "runs" / "quickstart")
    for name, value in environment.items():  # the kernel is a process of its own
        monkeypatch.setenv(name, value)
    notebook = nbformat.read(ROOT / "docs" / "tour.ipynb", as_version=4)
    cells = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert all(cell.outputs == [] and cell.execution_count is None for cell in cells)  # as it is committed
    nbclient.NotebookClient(notebook, timeout=300, resources={"metadata": {"path": str(tmp_path)}}).execute()
    streams = [[output for output in cell.outputs if output.get("name") == "stdout"] for cell in cells]
    printed = ["".join(output["text"] for output in outputs) for outputs in streams]
    assert printed[0].strip() and "fell out" in printed[1]
    assert [line.split()[0] for line in printed[2].splitlines()[:3]] == ["encoder", "decoder", "cross"]
    assert printed[-1].endswith("answers [1, 0, 1, 0]\n")
