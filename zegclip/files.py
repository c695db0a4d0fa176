"""Atomic writes: files and folders are written to a temporary name, then renamed, however a process ends."""

import json
import os
import platform
import re
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from types import FrameType
from typing import Any

from zegclip.errors import UsageError

RECORD_NAME = "run.json"
"""File in the output folder of a run: its settings and the contents of its data."""
_TEMPORARY = ".zegclip-"
_ABANDONED_AFTER = 24 * 3600  # Seconds; writing a result takes a few.


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """
    Yield a temporary path to write to, renamed to `path` at the end unless an error is raised; parents are created.

    Raises:
        OSError: If it cannot be written; an earlier file is left unchanged.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{_TEMPORARY}{_machine()}-{os.getpid()}-{uuid.uuid4().hex}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def read_json(path: Path) -> dict[str, Any]:
    """Read a JSON object, empty if the file is missing; `ModelError` if it contains something else."""
    from zegclip.modeling.stored_adapter import read_json_object  # needs time to import

    return read_json_object(path) if path.is_file() else {}


def write_json(path: Path, content: Mapping[str, Any]) -> None:
    """Replace a file as [`replacing`]."""
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


def check_new_folder(output: Path) -> None:
    """Raise a [`UsageError`] if `output` is a file, or a folder that is not empty."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise UsageError(f"{output}: this exists already; choose another name or remove it first.")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Yield a temporary folder, renamed to `output` at the end unless an error is raised."""
    output = output.resolve()
    output.parent.mkdir(parents=True, exist_ok=True)
    remove_leftovers(output.parent)
    with temporary_folder(output.parent) as place:
        folder = place / output.name
        yield folder
        if output.is_dir():
            output.rmdir()  # Empty, but not every system lets it be replaced.
        os.replace(folder, output)


@contextmanager
def temporary_folder(place: Path) -> Iterator[Path]:
    """Yield a folder that is deleted at the end, or by [`remove_leftovers`] if its process was killed."""
    folder = None
    try:
        with _delaying_signals():
            folder = tempfile.TemporaryDirectory(dir=place, prefix=f"{_TEMPORARY}{_machine()}-{os.getpid()}-")
        yield Path(folder.name)
    finally:
        with _delaying_signals():
            if folder is not None:
                folder.cleanup()


@contextmanager
def writing_to(output: Path) -> Iterator[Path]:
    """
    Yield a temporary folder whose files are moved into `output` at the end, subfolders included: all of them or none.

    None of them is moved if an error is raised. If the process is killed in between, JSON files are missing: the
    earlier ones are deleted first and the new ones moved last, so if they exist, the others are complete.
    """
    output.mkdir(parents=True, exist_ok=True)
    with temporary_folder(output) as folder:
        yield folder
        with _delaying_signals(), temporary_folder(output) as earlier:
            _move_all(folder, output, earlier)


def _move_all(folder: Path, output: Path, earlier: Path) -> None:
    """
    Move all files of a folder into another; after an error, put back those that were there, from `earlier`.

    If one of them cannot be put back, JSON files are missing, as after a kill.
    """
    names = [path.relative_to(folder) for path in sorted(folder.rglob("*")) if not path.is_dir()]
    names.sort(key=lambda name: name.suffix == ".json")
    records = [name for name in names if name.suffix == ".json"]
    for name in names:
        (output / name).parent.mkdir(parents=True, exist_ok=True)
        (earlier / name).parent.mkdir(parents=True, exist_ok=True)
        with suppress(FileNotFoundError):  # There is none, or another process has just moved it.
            try:
                os.link(output / name, earlier / name)
            except FileNotFoundError:
                raise
            except OSError:  # Not every file system has links.
                shutil.copy2(output / name, earlier / name)
    try:
        for name in records:
            (output / name).unlink(missing_ok=True)
        for name in names:
            os.replace(folder / name, output / name)
    except OSError:
        with suppress(OSError):
            for name in records:
                (output / name).unlink(missing_ok=True)
            for name in names:
                if os.path.lexists(earlier / name):
                    os.replace(earlier / name, output / name)
                else:
                    (output / name).unlink(missing_ok=True)
        raise


@contextmanager
def exiting_on_sigterm() -> Iterator[None]:
    """Turn SIGTERM into `SystemExit(143)`, so that temporary files are removed."""

    def exit_now(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _handling(exit_now, signal.SIGTERM):
        yield


def remove_leftovers(output: Path) -> None:
    """
    Remove the temporary files and folders of killed processes.

    On this machine, those are the ones whose process does not exist any more; of other machines, those a day old.
    """
    if not output.is_dir():
        return
    try:
        with os.scandir(output) as entries:
            leftovers = [entry for entry in entries if entry.name.startswith(_TEMPORARY)]
    except OSError:  # A folder may be writable, but not readable.
        return
    for leftover in leftovers:
        owner, _, _ = leftover.name.removeprefix(_TEMPORARY).rpartition("-")
        machine, _, process = owner.rpartition("-")
        killed = machine == _machine() and process.isdecimal() and not _is_running(int(process))
        try:
            if not killed and time.time() - leftover.stat().st_mtime <= _ABANDONED_AFTER:
                continue
            if leftover.is_dir():
                shutil.rmtree(leftover, ignore_errors=True)
            else:
                os.unlink(leftover)
        except OSError:  # Its process has just removed it, or belongs to another user.
            continue


def _machine() -> str:
    return re.sub(r"[^\w.-]", "_", platform.node())[:64]


def _is_running(process: int) -> bool:
    if os.name != "posix":  # Elsewhere, signal 0 is Ctrl-C.
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # It belongs to another user.
        return True
    return True


@contextmanager
def _delaying_signals() -> Iterator[None]:
    """Delay Ctrl-C and SIGTERM until the end."""
    delayed: list[int] = []
    try:
        with _handling(lambda number, frame: delayed.append(number), signal.SIGINT, signal.SIGTERM):
            yield
    finally:
        for number in delayed:
            signal.raise_signal(number)


@contextmanager
def _handling(handler: Callable[[int, FrameType | None], Any], *signals: signal.Signals) -> Iterator[None]:
    """Install a signal handler for a while; only in the main thread, which alone receives signals."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, usual in previous.items():
            signal.signal(number, signal.SIG_DFL if usual is None else usual)
