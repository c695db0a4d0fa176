"""Writing files so that none is ever there in part, however a process ends."""

import os
import platform
import re
import shutil
import signal
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import Any

RECORD_NAME = "run.json"
"""Settings and contents of the run in its output folder."""
_TEMPORARY = ".zegclip-"
_ABANDONED_AFTER = 24 * 3600  # Seconds; a result is written in some seconds.


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """
    Give a path to write to, which becomes `path` at the end if all went well; folders are made.

    Raises:
        OSError: If it cannot be written; what was there before is still there.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f"{_TEMPORARY}{_machine()}-{os.getpid()}-{uuid.uuid4().hex}")
    try:
        yield part
        os.replace(part, path)
    finally:
        part.unlink(missing_ok=True)


def check_new_folder(output: Path) -> None:
    """Refuse to replace anything, before work is done for nothing; raises `ValueError`."""
    if output.exists() and (not output.is_dir() or any(output.iterdir())):
        raise ValueError(f"{output}: this exists already; choose another name or remove it first.")


@contextmanager
def new_folder(output: Path) -> Iterator[Path]:
    """Give a folder that becomes `output` at the end, if all went well: it is never there in part."""
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
    """Give a folder that is gone at the end, or with [`remove_leftovers`], if its process was killed."""
    folder = None
    try:
        with _holding_back_signals():
            folder = tempfile.TemporaryDirectory(dir=place, prefix=f"{_TEMPORARY}{_machine()}-{os.getpid()}-")
        yield Path(folder.name)
    finally:
        with _holding_back_signals():
            if folder is not None:
                folder.cleanup()


@contextmanager
def writing_to(output: Path) -> Iterator[Path]:
    """
    Give a folder whose files move into `output` at the end, if all went well: none is ever there in part.

    A JSON file moves last, and the one that it replaces goes first: where it lies, the others lie beside it.
    """
    output.mkdir(parents=True, exist_ok=True)
    with temporary_folder(output) as folder:
        yield folder
        files = sorted(folder.iterdir(), key=lambda path: path.suffix == ".json")
        with _holding_back_signals():
            for path in files:
                if path.suffix == ".json":
                    (output / path.name).unlink(missing_ok=True)
            for path in files:
                os.replace(path, output / path.name)


@contextmanager
def exiting_on_sigterm() -> Iterator[None]:
    """Make SIGTERM an exit like any other, with status 143, so that nothing temporary is left."""

    def leave(number: int, frame: FrameType | None) -> None:
        raise SystemExit(128 + number)

    with _receiving(leave, signal.SIGTERM):
        yield


def remove_leftovers(output: Path) -> None:
    """
    Remove the temporary files and folders of runs that were killed.

    Those are the ones whose process, on this machine, is no more; another machine's are, when a day old.
    """
    if not output.is_dir():
        return
    try:
        with os.scandir(output) as entries:
            leftovers = [entry for entry in entries if entry.name.startswith(_TEMPORARY)]
    except OSError:  # Where one may write, but not look.
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
        except OSError:  # Its owner has finished, or is another user.
            continue


def _machine() -> str:
    return re.sub(r"[^\w.-]", "_", platform.node())[:64]


def _is_running(process: int) -> bool:
    if os.name != "posix":  # Where signal 0 is no question, but Ctrl-C.
        return True
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # It is another user's.
        return True
    return True


@contextmanager
def _holding_back_signals() -> Iterator[None]:
    """Let Ctrl-C and SIGTERM wait until the end."""
    held_back: list[int] = []
    try:
        with _receiving(lambda number, frame: held_back.append(number), signal.SIGINT, signal.SIGTERM):
            yield
    finally:
        for number in held_back:
            signal.raise_signal(number)


@contextmanager
def _receiving(handler: Callable[[int, FrameType | None], Any], *signals: signal.Signals) -> Iterator[None]:
    """Let a function receive signals for a while; only a program's main thread ever does."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = {number: signal.signal(number, handler) for number in signals}
    try:
        yield
    finally:
        for number, usual in previous.items():
            signal.signal(number, signal.SIG_DFL if usual is None else usual)
