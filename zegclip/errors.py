"""What a command, setting or folder gets wrong, and what the machine lacks: each reported in one sentence."""

import multiprocessing
import os
import re
import traceback

from safetensors import SafetensorError

_WORKER_DIED = re.compile(
    r"DataLoader worker \(pid.*\) (exited unexpectedly|is killed by signal)|Pin memory thread exited unexpectedly"
)
_MULTIPROCESSING = os.path.dirname(multiprocessing.__file__)
_NOT_WRITTEN = "inline_container"  # The part of PyTorch that writes its files; its errors name no other reason.


class UsageError(ValueError):
    """A command, setting, configuration file or folder that the user can mend."""


def sentence_of(error: BaseException) -> str:
    """Return what an error says, in one line; its type where it says nothing."""
    lines = str(error).strip().splitlines() or [type(error).__name__]
    # What a data loader's worker raises arrives with a traceback in its message; the sentence comes last.
    return lines[-1] if lines[0].startswith("Caught ") else lines[0]


def explain_fault(error: BaseException) -> str | None:
    """
    Say what the machine lacks, or what happened there; `None` for an error that tells of something else.

    Those are: too little memory, on the CPU or an accelerator; a worker process that has died; weights that could not
    be written or read.
    """
    reason = sentence_of(error)
    if is_worker_death(error):
        return f"A process that reads pictures has died, perhaps for lack of memory ({reason.strip(' .')})."
    if isinstance(error, (RuntimeError, MemoryError)):
        from zegclip.processing.windows import NO_MEMORY, is_out_of_memory

        if NO_MEMORY in reason:
            return reason[reason.index(NO_MEMORY) :]
        if is_out_of_memory(error):
            return f"{NO_MEMORY}: make batches, crops or windows smaller ({reason})."
    if isinstance(error, SafetensorError) or (isinstance(error, RuntimeError) and _NOT_WRITTEN in reason):
        return f"Weights could not be written or read, perhaps for lack of space ({reason})."
    return None


def is_worker_death(error: BaseException) -> bool:
    """Tell whether a data loader has lost a worker process, which it may notice in the middle of anything."""
    if isinstance(error, (ConnectionError, EOFError, FileNotFoundError)):
        # In the middle of its message, perhaps before the system says that it is dead.
        places = [frame.f_code.co_filename for frame, _ in traceback.walk_tb(error.__traceback__)]
        return any(place.startswith(_MULTIPROCESSING) for place in places)
    return isinstance(error, RuntimeError) and _WORKER_DIED.match(str(error)) is not None
