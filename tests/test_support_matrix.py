"""The script that finds out which versions zegclip works with: what it reads and what it writes."""

import importlib.util
import re
import sys
from pathlib import Path

import pytest
from packaging.requirements import Requirement

ROOT = Path(__file__).parents[1]
SPEC = importlib.util.spec_from_file_location("support_matrix", ROOT / ".ci" / "support_matrix.py")
matrix = importlib.util.module_from_spec(SPEC)
SPEC.loader.exec_module(matrix)

NEWEST, LOWEST = matrix.Row("3.12", "newest"), matrix.Row("3.11", "lowest")
PAGE = f"before\n\n{matrix.BEGIN}\n{matrix.END}\n\nafter | that\n"


def test_lower_bounds():
    needed = "\ntorch>=2.6\ntransformers >= 5.23.1,<6\npsutil\npytest>=8"
    assert matrix.lower_bounds(needed) == {"torch": "2.6", "transformers": "5.23.1", "pytest": "8"}


def test_what_is_needed_is_what_the_package_and_its_tests_need():
    named = [Requirement(line) for line in matrix.needed().split("\n") if line]
    names = [requirement.name for requirement in named]
    assert {"torch", "transformers", "peft", "datasets", "accelerate", "pytest", "psutil"} <= set(names)
    assert not {"ruff", "gradio"} & set(names)
    bounds = matrix.lower_bounds(matrix.needed())
    assert all(bounds[want.name] in want.specifier for want in named if want.specifier)


def test_requirements_of_the_rows():
    pinned = (ROOT / "constraints.txt").read_text()
    torch = re.search(r"^torch==.+$", pinned, re.MULTILINE)[0]
    assert matrix.requirements(NEWEST) == pinned
    lines = matrix.requirements(LOWEST).splitlines()
    without_torch = [line for line in lines if not line.startswith("torch==")]
    assert torch in lines
    lowest = matrix.requirements(matrix.Row("3.11", "lowest-torch")).splitlines()
    assert "torch==" + matrix.lower_bounds(matrix.needed())["torch"] in lowest
    assert set(without_torch) == {line for line in lowest if not line.startswith("torch==")}


def test_all_rows_are_pythons_that_we_name():
    classifiers = re.findall(r"Python :: (3\.\d+)", (ROOT / "setup.cfg").read_text())
    assert set(classifiers) == {row.python for row in matrix.ROWS} - {"3.10"}


@pytest.mark.parametrize(
    ("log", "cells"),
    [
        (
            "..s\nSKIPPED [1] a.py:1: 5 passed in 1s\n214 passed, 12 skipped, 12 deselected in 812.53s (0:13:32)\n",
            {"passed": "214", "failed": "0", "skipped": "12", "seconds": "813"},
        ),
        (
            "ERROR a.py::t[b - c] - OSError: no\nFAILED b.py::test_b\n"
            "===== 1 failed, 3 passed, 2 subtests passed, 1 error in 1.20s =====\n",
            {"passed": "3", "failed": "2", "skipped": "0", "seconds": "1", "remark": "first: `a.py::t[b - c]`"},
        ),
        ("Killed\n", {}),
    ],
    ids=["passed", "failed", "killed"],
)
def test_what_pytest_printed(log, cells):
    assert matrix.read_pytest(log) == cells


@pytest.mark.parametrize(
    ("log", "reason", "too_old"),
    [
        (
            "ERROR: Package 'zegclip' requires a different Python: 3.10.13 not in '>=3.11'\n",
            "refused by pip: needs Python 3.11 or newer",
            True,
        ),
        (
            "WARNING: no\nERROR: No matching distribution found for torch==1\nERROR: more\n",
            "not installed: No matching distribution found for torch==1",
            False,
        ),
        ("", "not installed: see install.log", False),
    ],
    ids=["too old", "not to be had", "no reason"],
)
def test_why_pip_refused(log, reason, too_old):
    assert matrix.why_not_installed(log) == (reason, too_old)


def test_table_goes_between_the_marks_and_keeps_other_rows():
    first = matrix.put_table(PAGE, {NEWEST: {"torch": "2.13.0", "passed": "7"}})
    both = matrix.put_table(first, {LOWEST: {"remark": "not here"}})
    assert both.startswith("before\n\n")
    assert both.endswith("\n\nafter | that\n")
    assert "\n| 3.12 | newest | 2.13.0 | - | - | - | - | - | 7 | - | - | - | - | - |\n" in both
    assert "\n| 3.11 | lowest | - | - | - | - | - | - | - | - | - | - | - | not here |\n" in both
    assert both.count("not run") == len(matrix.ROWS) - 2
    assert matrix.put_table(both, {}) == both
    assert matrix.put_table(both, {NEWEST: {"passed": "8"}}) == both.replace("2.13.0", "-").replace("| 7 |", "| 8 |")


def test_page_without_marks_is_refused():
    with pytest.raises(ValueError, match="no place for the table"):
        matrix.put_table("no marks", {})


def test_page_has_the_rows_of_the_script():
    rows = matrix.read_table((ROOT / "docs" / "support.md").read_text().split(matrix.BEGIN)[1].split(matrix.END)[0])
    assert set(rows) == set(matrix.ROWS)


def test_python_that_is_not_here(monkeypatch, tmp_path):
    monkeypatch.setattr(matrix, "find_python", lambda version: None)
    assert matrix.run_row(NEWEST, tmp_path / "row", [], again=False) == ({"remark": "not here"}, True)


def test_this_python_is_found():
    assert matrix.find_python(f"{sys.version_info.major}.{sys.version_info.minor}") == sys.executable
    assert matrix.find_python("2.99") is None
