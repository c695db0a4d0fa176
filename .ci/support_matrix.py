"""
Which versions of Python and of the libraries zegclip works with, found out by installing and testing.

    python .ci/support_matrix.py                                          # all rows, the whole fast suite
    python .ci/support_matrix.py --rows 3.12-newest --tests tests/zegclip tests/modeling

A row is a Python and a set of versions: `newest` installs with constraints.txt as it is, `lowest` with every lower
bound of setup.cfg, so each bound must name a release. `lowest` has the torch of constraints.txt, as other builds may
bring gigabytes of CUDA along, and `lowest-torch` has the lowest one too.

Each row gets an environment of its own, and its line in the table of `--output` is written as soon as it is known;
lines of rows that were not asked for stay as they are. A run that was interrupted is taken up again: what is
installed stays, and rows that passed with the same requirements and tests are not run again but for `--again`. The
exit status is 1 if a row failed.
"""

import argparse
import configparser
import datetime
import hashlib
import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parents[1]
ENVIRONMENTS = Path(tempfile.gettempdir()) / "zegclip-support-matrix"
SHOWN = ("torch", "transformers", "peft", "accelerate", "datasets")
COLUMNS = ("Python", "versions", *SHOWN, "tests", "passed", "failed", "skipped", "seconds", "day", "remark")
BEGIN, END = "<!-- begin of the support matrix -->", "<!-- end of the support matrix -->"
WHOLE_SUITE = "all fast ones"


class Row(NamedTuple):
    """A Python, as `3.11`, and a set of versions: `newest`, `lowest` or `lowest-torch`."""

    python: str
    versions: str

    def __str__(self) -> str:
        return f"{self.python}-{self.versions}"


PYTHONS = ("3.10", "3.11", "3.12", "3.13")
ROWS = (*(Row(python, "newest") for python in PYTHONS), Row("3.11", "lowest"), Row("3.11", "lowest-torch"))


def needed() -> str:
    """Read what the package and its tests need, a requirement a line, from setup.cfg."""
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg", encoding="utf-8")
    return config["options"]["install_requires"] + config["options.extras_require"]["test"]


def lower_bounds(needed: str) -> dict[str, str]:
    """
    Read lower bounds.

    Args:
        needed: A requirement a line.

    Returns:
        Names of packages to versions; what has no lower bound is left out.
    """
    return dict(re.findall(r"^([\w.-]+)\s*>=\s*([\w.]+)", needed, re.MULTILINE))


def requirements(row: Row) -> str:
    """Make the constraints that a row is installed with."""
    pinned = (ROOT / "constraints.txt").read_text(encoding="utf-8")
    if row.versions == "newest":
        return pinned
    bounds = lower_bounds(needed())
    if row.versions == "lowest":
        bounds["torch"] = re.search(r"^torch==(\S+)$", pinned, re.MULTILINE)[1]
    return "".join(f"{name}=={version}\n" for name, version in bounds.items())


def find_python(version: str) -> str | None:
    """Find the interpreter of a version, such as 3.11: the one that runs this, on the path, or one of pyenv's."""
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv"))
    newest_first = sorted(pyenv.glob(f"versions/{version}.*/bin/python"), reverse=True)
    for candidate in (sys.executable, shutil.which(f"python{version}"), *map(str, newest_first)):
        # pyenv's names on the path may be there for versions that it does not run.
        command = [candidate, "-c", "import sys, venv, ensurepip; print('%d.%d' % sys.version_info[:2])"]
        if candidate and subprocess.run(command, capture_output=True, text=True).stdout.strip() == version:
            return candidate
    return None


def read_pytest(log: str) -> dict[str, str]:
    """
    Read what pytest counted from what it printed.

    Returns:
        Values for columns of the table, with the first failing test's id as the remark; none if pytest did not count.
    """
    counts = re.findall(r"^=* ?(\d+ [\w ]+(?:, \d+ [\w ]+)*) in ([\d.]+)s", log, re.MULTILINE)
    if not counts:
        return {}
    line, seconds = counts[-1]
    number = {word: int(count) for count, word in re.findall(r"(\d+) (\w+)", line)}
    failed = number.get("failed", 0) + number.get("error", 0) + number.get("errors", 0)
    cells = {
        "passed": str(number.get("passed", 0)),
        "failed": str(failed),
        "skipped": str(number.get("skipped", 0)),
        "seconds": f"{float(seconds):.0f}",
    }
    if first := re.search(r"^(?:FAILED|ERROR) ([^\s[]+(?:\[.*?\](?= - |$))?)", log, re.MULTILINE):
        cells["remark"] = f"first: `{first[1]}`"
    return cells


def why_not_installed(log: str) -> tuple[str, bool]:
    """Say why pip installed nothing, from what it printed, and whether that is for the age of this Python."""
    if found := re.search(r"requires a different Python: (\S+) not in '>=(\S+)'", log):
        older = [int(part) for part in found[1].split(".")[:2]] < [int(part) for part in found[2].split(".")[:2]]
        return f"refused by pip: needs Python {found[2]} or newer", older
    errors = re.findall(r"^ERROR: (.+)$", log, re.MULTILINE)
    return f"not installed: {errors[0] if errors else 'see install.log'}", False


def run_row(row: Row, folder: Path, tests: list[str], again: bool) -> tuple[dict[str, str], bool]:
    """
    Install and test.

    Args:
        folder: Where the environment is, and what pip and pytest print; may hold those of an earlier run.
        tests: Arguments of pytest; none for the whole fast suite.
        again: Run the tests even if they have passed already.

    Returns:
        Values for columns of the table, and whether all went well.
    """
    python = find_python(row.python)
    if python is None:
        return {"remark": "not here"}, True
    constraints = requirements(row)
    wanted = hashlib.sha256((needed() + constraints).encode()).hexdigest()
    environment, installed, result = folder / "venv", folder / "installed", folder / "result.json"
    if not installed.exists() or installed.read_text() != wanted:
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir(parents=True)
        (folder / "constraints.txt").write_text(constraints)
        subprocess.run([python, "-m", "venv", environment], check=True)
        with (folder / "install.log").open("w") as log:
            pip = [environment / "bin" / "python", "-m", "pip", "install"]
            command = [*pip, "-c", folder / "constraints.txt", "-e", f"{ROOT}[test]"]
            refused = any(subprocess.call(words, stdout=log, stderr=log) for words in ([*pip, "pip>=23.1"], command))
        if refused:
            reason, too_old = why_not_installed((folder / "install.log").read_text())
            return {"remark": reason}, too_old
        installed.write_text(wanted)  # last, so that an interrupted installation is started anew
    if result.exists() and not again:
        earlier = json.loads(result.read_text())
        if earlier["tests"] == tests:
            return earlier["cells"], True
    # What a session of Python of that environment says of itself.
    say = "import importlib.metadata as m, json, sys; print(json.dumps({n: m.version(n) for n in sys.argv[1:]}))"
    words = [environment / "bin" / "python", "-c", say, *SHOWN]
    cells = json.loads(subprocess.run(words, check=True, capture_output=True, text=True).stdout)
    cells |= {"tests": " ".join(tests) or WHOLE_SUITE, "day": f"{datetime.date.today():%Y-%m-%d}"}
    with (folder / "tests.log").open("w") as log:
        words = [environment / "bin" / "python", "-m", "pytest", "-q", "-p", "no:cacheprovider", *tests]
        status = subprocess.call(words, cwd=ROOT, stdout=log, stderr=log)
    cells |= read_pytest((folder / "tests.log").read_text()) or {"remark": f"pytest ended with status {status}"}
    if status == 0:
        result.write_text(json.dumps({"tests": tests, "cells": cells}))
    return cells, status == 0


def read_table(text: str) -> dict[Row, dict[str, str]]:
    """Read the rows of a table as this writes it."""
    lines = [[cell.strip() for cell in line.strip("| ").split("|")] for line in text.splitlines() if line[:1] == "|"]
    return {Row(*line[:2]): dict(zip(COLUMNS[2:], line[2:])) for line in lines[2:]}


def render_table(rows: dict[Row, dict[str, str]]) -> str:
    """Write rows, in the order of `ROWS`, as a table."""
    lines = [COLUMNS, ["---"] * len(COLUMNS)]
    lines += [(*row, *(rows[row].get(column, "-") for column in COLUMNS[2:])) for row in ROWS if row in rows]
    return "".join(f"| {' | '.join(line)} |\n" for line in lines)


def put_table(page: str, rows: dict[Row, dict[str, str]]) -> str:
    """
    Write rows into the table of a page, between its two marks.

    Args:
        page: The text of the page; rows that are there already stay, unless they are given anew. Others are "not run".
        rows: Values for columns of the table.

    Raises:
        ValueError: If the page does not have the marks.
    """
    if BEGIN not in page or END not in page:
        raise ValueError(f"no place for the table: lines {BEGIN!r} and {END!r} are missing")
    before, rest = page.split(BEGIN, 1)
    table, after = rest.split(END, 1)
    table = {row: {"remark": "not run"} for row in ROWS} | read_table(table) | rows
    return f"{before}{BEGIN}\n\n{render_table(table)}\n{END}{after}"


def write(page: Path, rows: dict[Row, dict[str, str]]) -> None:
    """Write rows into the table of the file `page`; raises `ValueError` if it has no place for one."""
    page.write_text(put_table(page.read_text(encoding="utf-8"), rows), encoding="utf-8")


def main() -> int:
    """Run the rows that were asked for; returns the exit status."""
    parser = argparse.ArgumentParser(
        description=__doc__.split("\n\n")[0].strip(), formatter_class=argparse.ArgumentDefaultsHelpFormatter
    )
    names = [str(row) for row in ROWS]
    parser.add_argument("--rows", nargs="+", choices=names, default=names, metavar="ROW", help=", ".join(names))
    parser.add_argument("--tests", nargs="+", default=[], help="what to give pytest instead of the whole fast suite")
    parser.add_argument("--environments", type=Path, default=ENVIRONMENTS, help="where to keep environments and logs")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "support.md", help="the page with the table")
    parser.add_argument("--again", action="store_true", help="run rows that have passed already")
    arguments = parser.parse_args()
    done: dict[Row, dict[str, str]] = {}
    failed = []
    write(arguments.output, done)  # raises now rather than after an hour
    for row in ROWS:
        if str(row) not in arguments.rows:
            continue
        folder = arguments.environments / str(row)
        print(f"{row}: in {folder}", flush=True)
        start = time.monotonic()
        cells, good = run_row(row, folder, arguments.tests, arguments.again)
        done[row] = cells
        failed += [] if good else [str(row)]
        counts = ", ".join(f"{cells[name]} {name}" for name in ("passed", "failed", "skipped") if name in cells)
        said = ", ".join(filter(None, (counts, cells.get("remark"))))
        print(f"{row}: {said} ({time.monotonic() - start:.0f} s with the installation)", flush=True)
        write(arguments.output, {row: cells})
    print(render_table(done))
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return 1 if failed else 0


if __name__ == "__main__":
    sys.exit(main())
