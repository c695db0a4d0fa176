"""What users can rely on changes only where `tests/public_surface.txt` changes too."""

import difflib
import importlib.util
from pathlib import Path

ROOT = Path(__file__).parents[1]


def test_public_surface_is_the_one_written_down():
    spec = importlib.util.spec_from_file_location("manifest", ROOT / ".ci" / "manifest.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    written = (ROOT / "tests" / "public_surface.txt").read_text(encoding="utf-8")
    changes = difflib.unified_diff(written.splitlines(), module.manifest().splitlines(), "written", "code", "", "", 0)
    changes = "\n".join(changes)
    assert not changes, f"{changes}\nIf it is meant: python .ci/manifest.py > tests/public_surface.txt"
