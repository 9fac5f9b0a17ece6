"""The notebooks of examples/: their pictures are stored in them, and every cell runs."""

import json
import resource
from pathlib import Path

import pytest

EXAMPLES = Path(__file__).resolve().parent.parent / "examples"
NOTEBOOKS = sorted(EXAMPLES.glob("*.ipynb"))
MOST_BYTES = 400_000
MOST_SECONDS = 180  # on two free cores


def cells(path):
    return [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]


def cpu_seconds():
    spent = resource.getrusage(resource.RUSAGE_CHILDREN)
    return spent.ru_utime + spent.ru_stime


def pictures(code):
    return sum("image/png" in output.get("data", {}) for cell in code for output in cell["outputs"])


def test_there_are_notebooks():
    assert len(NOTEBOOKS) == 2


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_holds_what_its_cells_gave_in_order_and_is_small(path):
    code = cells(path)
    assert [cell["execution_count"] for cell in code] == list(range(1, len(code) + 1))
    kinds = {output["output_type"] for cell in code for output in cell["outputs"]}
    assert kinds <= {"stream", "display_data", "execute_result"}
    assert pictures(code) >= 3
    assert path.stat().st_size <= MOST_BYTES


@pytest.mark.long
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_every_cell_of_a_notebook_runs(path):
    for package in ("matplotlib", "nbclient", "ipykernel"):
        pytest.importorskip(package, reason=f"{package} is not installed: make notebooks brings it")
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(path, 4)
    for cell in notebook.cells:
        if cell.cell_type == "code":
            cell.outputs = []
    start = cpu_seconds()
    NotebookClient(notebook, timeout=1200, kernel_name="python3",
                   resources={"metadata": {"path": str(EXAMPLES)}}).execute()  # A cell that fails raises here.
    assert cpu_seconds() - start < 2 * MOST_SECONDS
    assert pictures([cell for cell in notebook.cells if cell.cell_type == "code"]) == pictures(cells(path))
