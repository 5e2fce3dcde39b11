"""The example notebooks: stored without outputs or traces of a machine, and every cell runs."""

from __future__ import annotations

import json
import re
import sys
from pathlib import Path
from typing import Any

import nbformat
import pytest
from jupyter_client.kernelspec import KernelSpec
from jupyter_client.manager import AsyncKernelManager
from nbclient import NotebookClient
from nbclient.exceptions import CellExecutionError

EXAMPLES = Path(__file__).resolve().parents[2] / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
NAMES = [path.stem for path in NOTEBOOKS]


class _ThisPython(AsyncKernelManager):
    """Kernels of the python that runs the tests, whatever is installed for the user."""

    @property
    def kernel_spec(self) -> KernelSpec:
        argv = [sys.executable, "-m", "ipykernel_launcher", "-f", "{connection_file}"]
        return KernelSpec(argv=argv, display_name="this python", language="python")


def run(notebook: Any, folder: Path) -> list[Any]:
    """Execute, and return the outputs of all cells."""
    client = NotebookClient(
        notebook, timeout=240, kernel_manager_class=_ThisPython, resources={"metadata": {"path": str(folder)}}
    )
    client.execute()
    return [out for cell in notebook.cells for out in cell.get("outputs", [])]


def test_there_are_notebooks() -> None:
    assert len(NOTEBOOKS) >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_they_are_stored_clean(path: Path) -> None:
    notebook = nbformat.read(path, 4)
    nbformat.validate(notebook)
    for cell in notebook.cells:
        assert cell.metadata == {}
        if cell.cell_type == "code":
            assert cell.outputs == []
            assert cell.execution_count is None
            assert len(cell.source.splitlines()) <= 20
    assert set(notebook.metadata) <= {"kernelspec", "language_info"}
    assert notebook.metadata["kernelspec"]["name"] == "python3"
    assert notebook.metadata["language_info"] == {"name": "python"}
    assert not re.search(r"/(home|root|work|Users)/", path.read_text())
    kinds = [cell.cell_type for cell in notebook.cells]
    assert kinds[0] == "markdown"
    assert notebook.cells[0].source.startswith("# ")
    assert kinds.count("markdown") >= 3


@pytest.mark.parametrize("path", NOTEBOOKS, ids=NAMES)
def test_they_run_and_show_tables_and_a_chart(path: Path, tmp_path: Path) -> None:
    outputs = run(nbformat.read(path, 4), tmp_path)
    shown = [json.dumps(out.get("data", {})) for out in outputs]
    assert any("text/html" in data and "<table" in data for data in shown)
    assert sum("image/png" in data for data in shown) == 1
    assert not [out for out in outputs if out.output_type == "stream"]  # neither warnings nor bars
    assert list(tmp_path.iterdir()) == []  # nothing is left where they run


def test_a_cell_that_fails_fails(tmp_path: Path) -> None:
    notebook = nbformat.v4.new_notebook(cells=[nbformat.v4.new_code_cell("1 / 0")])
    with pytest.raises(CellExecutionError, match="ZeroDivisionError"):
        run(notebook, tmp_path)
