"""The notebook, run from top to bottom as it is committed."""

import importlib.util
import json
import os
from pathlib import Path

import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[2]
NOTEBOOK = ROOT / "examples" / "zegclip.ipynb"


def test_it_is_committed_without_outputs():
    for cell in json.loads(NOTEBOOK.read_text(encoding="utf-8"))["cells"]:
        if cell["cell_type"] == "code":
            assert cell["outputs"] == []
            assert cell["execution_count"] is None


@pytest.mark.slow
def test_it_runs_offline_outside_of_a_checkout_from_top_to_bottom(tmp_path, monkeypatch):
    for package in ("nbclient", "ipykernel"):
        if importlib.util.find_spec(package) is None:
            pytest.fail(f"{package} is missing: pip install -c constraints.txt -e '.[notebook]'", pytrace=False)
    import nbclient
    import nbformat

    # Offline by its own doing; what it writes lands here.
    for name in ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE"):
        monkeypatch.delenv(name)
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")]))
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    place = tmp_path / "anywhere"
    place.mkdir()
    resources = {"metadata": {"path": str(place)}}
    nbclient.NotebookClient(notebook, timeout=600, kernel_name="python3", resources=resources).execute()
    assert not list(place.iterdir())
    outputs = [output for cell in notebook.cells for output in cell.get("outputs", [])]
    printed = "".join(output["text"] for output in outputs if output["output_type"] == "stream")
    assert sum("image/png" in output.get("data", {}) for output in outputs) == 4
    assert "Training 599,296 of 2,953,953 parameters." in printed
    assert "adapter_model.safetensors" in printed
    assert [output["text"] for output in outputs if output.get("name") == "stderr"] == []
