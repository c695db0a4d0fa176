"""Imports run one way: commands, training, sharing and drawing, ground, picture world, processing and modeling."""

import re
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
RANKS = {
    "modeling": 0,
    "processing": 0,
    "picture_world": 1,
    "drawing": 3,
    "importing": 3,
    "sharing": 3,
    "training": 4,
    "segmenting": 4,
    "exporting": 4,
    "commands": 5,
}
ENTRANCE = {"zegclip/__init__.py": 6, "zegclip/__main__.py": 6, "zegclip/registration.py": 6}  # leads to every room
FILES = [path for name in (*list(RANKS)[:3], "zegclip") for path in (ROOT / name).rglob("*.py")]


@pytest.mark.parametrize("path", FILES, ids=lambda path: path.relative_to(ROOT).as_posix())
def test_nothing_imports_upward(path):
    name = path.relative_to(ROOT).as_posix()
    room = next((part for part in reversed(path.relative_to(ROOT).parts[:-1]) if part in RANKS), "zegclip")
    for imported in re.findall(r"^ *(?:from|import) zegclip\.?(\w*)", path.read_text(encoding="utf-8"), re.MULTILINE):
        other = imported if imported in RANKS else "zegclip"
        assert other == room or RANKS.get(other, 2) < ENTRANCE.get(name, RANKS.get(room, 2)), f"imports {imported}"
