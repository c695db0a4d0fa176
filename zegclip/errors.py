"""Errors that the user, or whoever runs the machine, can fix: each is reported in one sentence."""

import errno
import multiprocessing
import os
import re
import signal
import socket
import sys
import threading
import traceback
from collections.abc import Iterator
from contextlib import contextmanager

from safetensors import SafetensorError

TRACEBACK_VARIABLE = "ZEGCLIP_TRACEBACK"
"""Environment variable: 1 to print the traceback of every error, also of those that are reported in one sentence."""
_WORKER_DIED = re.compile(
    r"DataLoader worker \(pid.*\) (exited unexpectedly|is killed by signal)|Pin memory thread exited unexpectedly"
)
_MULTIPROCESSING = os.path.dirname(multiprocessing.__file__)
_NOT_WRITTEN = "inline_container"  # The part of PyTorch that writes files; its errors name no other reason.
_ERRNO = re.compile(r"\[Errno (\d+)\] [^:]*(?:: '(.+)')?$")
_OF_MACHINE = {
    *(errno.EAGAIN, errno.EDQUOT, errno.EFBIG, errno.EHOSTUNREACH, errno.EIO, errno.EMFILE, errno.ENETUNREACH),
    *(errno.ENFILE, errno.ENOLCK, errno.ENOMEM, errno.ENOSPC, errno.EOPNOTSUPP, errno.EROFS, errno.ESTALE),
    errno.ENOENT,  # without a file name: of the working directory, which was deleted
}
_OF_LIBRARY = ("datasets", "fsspec", "huggingface_hub", "pyarrow", "transformers")
_NOT_INSTALLED = re.compile(r"to be installed|pip install|not found in your environment|No package metadata")


class UsageError(ValueError):
    """A command, setting, configuration file or folder that the user can fix."""


class MachineError(OSError):
    """A fault of the machine or the network, in our own words."""


@contextmanager
def as_usage_errors(fields: str = "") -> Iterator[None]:
    """Raise errors of a library about the values that it was given as [`UsageError`], which begins with `fields`."""
    try:
        yield
    except UsageError:
        raise
    except (ValueError, TypeError) as error:  # transformers raises both
        raise UsageError(f"{fields}: {sentence_of(error)}" if fields else sentence_of(error)) from error


def sentence_of(error: BaseException) -> str:
    """Return an error's message in one line, or the name of its class if it has none."""
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    lines = [line.strip() for line in str(error).splitlines() if line.strip()] or [type(error).__name__]
    # The message of a data loader's worker is a traceback: the original message comes last, behind its class.
    if lines[0].startswith("Caught "):
        return re.sub(r"^[\w.]*Error: ", "", lines[-1])
    return lines[0]


def explain(error: BaseException) -> str | None:
    """Return the sentence to report for an error that can be fixed, `None` for an error of the program itself."""
    from huggingface_hub.errors import HFValidationError, HTTPError, StrictDataclassError

    from zegclip.modeling.model_error import ModelError, sentence_of_config_error
    from zegclip.processing.input_error import InputError

    if (fault := explain_fault(error)) is not None:
        return fault
    if isinstance(error, StrictDataclassError):
        return sentence_of_config_error(error)
    ours = (ModelError, InputError, UsageError, MachineError, FloatingPointError)
    others = (HTTPError, HFValidationError)  # the first is that of the Hub's HTTP client
    fixable = isinstance(error, (*ours, *others)) or (isinstance(error, OSError) and _is_fixable(error))
    not_installed = isinstance(error, (ImportError, RuntimeError)) and _NOT_INSTALLED.search(str(error))
    return sentence_of(error) if fixable or not_installed else None


def _is_fixable(error: OSError) -> bool:
    """
    Return whether an `OSError` is about a file, the machine or the network, and not a mistake of the program.

    The system names the file that it could not use: whoever reads the name can mend it. Without a name, an error is
    about something that the program holds open, and wrong use of that (a closed file, a socket for a file) looks the
    same to Python: there only what the program cannot cause counts, such as a full disk. Without a number, it comes
    from a library; Hugging Face's raise `OSError` when a model or data set cannot be found or loaded.
    """
    number, name = error.errno, error.filename
    if number is None and str(error).startswith("Caught ") and (found := _ERRNO.search(sentence_of(error))):
        number, name = int(found[1]), found[2]  # of a data loader's worker: only the message has come through
    if isinstance(name, (str, bytes, os.PathLike)) and name:
        return True
    if number in _OF_MACHINE or isinstance(error, (ConnectionError, TimeoutError, socket.gaierror)):
        return True
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    return number is None and bool(frames) and str(frames[-1].f_globals.get("__name__")).split(".")[0] in _OF_LIBRARY


def explain_fault(error: BaseException) -> str | None:
    """
    Return a sentence about a fault of the machine, `None` for any other error.

    Those are: too little memory, on the CPU or an accelerator; a worker process that died; weights that could not be
    written or read.
    """
    if (death := find_worker_death(error)) is not None:
        reason = sentence_of(death).strip(" .")
        return f"A process that reads pictures has died, perhaps for lack of memory ({reason})."
    reason = sentence_of(error)
    if isinstance(error, (RuntimeError, MemoryError)):
        from zegclip.processing.windows import NO_MEMORY, is_out_of_memory

        if NO_MEMORY in reason:
            return reason[reason.index(NO_MEMORY) :]
        if is_out_of_memory(error):
            return f"{NO_MEMORY}: make batches, crops or windows smaller ({reason})."
    if isinstance(error, SafetensorError) or (isinstance(error, RuntimeError) and _NOT_WRITTEN in reason):
        return f"Weights could not be written or read, perhaps for lack of space ({reason})."
    return None


def find_worker_death(error: BaseException | None) -> BaseException | None:
    """
    Return the error with which a data loader has reported that a worker process died, `None` for any other error.

    A data loader raises it at any point of the program: code that is interrupted there may raise another one from it.
    """
    while error is not None:
        if isinstance(error, (ConnectionError, EOFError, FileNotFoundError)):
            # In the middle of its message, perhaps before the system reports that it is dead.
            places = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
            if any(place.startswith(_MULTIPROCESSING) for place in places):
                return error
        elif isinstance(error, RuntimeError) and _WORKER_DIED.match(str(error)):
            return error
        error = error.__cause__ or error.__context__
    return None


def report_error(error: BaseException, program: str, *, resumable: bool = False) -> int:
    """
    Print one sentence on stderr, on a line of its own below all progress bars.

    With `ZEGCLIP_TRACEBACK=1` in the environment, the traceback stands above it.

    Args:
        error: Is raised again if it is one of the program itself.
        program: Prefix of the sentence.
        resumable: Whether the same command continues from what has been saved.

    Returns:
        The exit status, 130 after Ctrl-C and 1 otherwise.
    """
    interrupted = isinstance(error, KeyboardInterrupt)
    sentence = "interrupted." if interrupted else explain(error)
    if sentence is None:
        raise error
    if resumable and (interrupted or explain_fault(error) is not None):
        sentence += " The same command continues from what has been saved."
    if hasattr(signal, "SIGCHLD") and threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or a data loader could report a dead worker once more
    bars = getattr(getattr(sys.modules.get("tqdm"), "tqdm", None), "_instances", ())
    for bar in list(bars):
        bar.close()
    if os.environ.get(TRACEBACK_VARIABLE, "0") not in ("", "0"):
        traceback.print_exception(error)
    print(f"{program}: {sentence}", file=sys.stderr)
    return 130 if interrupted else 1


@contextmanager
def reporting_errors(program: str) -> Iterator[None]:
    """Exit with [`report_error`] instead of a traceback."""
    try:
        yield
    except (Exception, KeyboardInterrupt) as error:
        sys.exit(report_error(error, program))
