"""
Runs commands in children of one process that has everything imported, so that starting one takes no time.

    python tests/launched/forking.py

Each line of its input is a request in JSON (see `run`). It answers with the child's number and, when the child has
ended, with its status: below 0 the signal that ended it.
"""

import atexit
import ctypes
import gc
import importlib
import json
import os
import resource
import runpy
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any, NoReturn

ROOT = Path(__file__).parents[2]
MODULES = (
    "matplotlib.pyplot",
    "numpy.ctypeslib",
    "peft.utils.transformers_weight_conversion",
    "transformers.models.clip.modeling_clip",
    "zegclip.training.data_report",
    "zegclip.commands.main",
    "zegclip.commands.demo",
    "zegclip.processing.image_processing_zegclip",
    "zegclip.sharing.publishing",
    "zegclip.segmenting.segmenter",
    "zegclip.training.evaluate",
    "zegclip.training.train",
)


def run(argv: list[str], log: str, cwd: str = ".", limits: dict | None = None, permissions: bool = False) -> None:
    """
    Run a script of this repository, or `zegclip`, as the only thing that this process does.

    Args:
        argv: Its name and words.
        log: File for all that it prints.
        cwd: Folder to run in.
        limits: Of `resource`, by name; a limit of address space is what may be added to the present one.
        permissions: Whether those of files hold for root too.
    """
    os.setsid()
    file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for number in (1, 2):
        os.dup2(file, number)
    os.close(file)
    os.chdir(cwd)
    for name, value in (limits or {}).items():
        if name == "RLIMIT_AS":
            value += int(Path("/proc/self/statm").read_text().split()[0]) * os.sysconf("SC_PAGE_SIZE")
        resource.setrlimit(getattr(resource, name), (value, value))
    if permissions:
        # No capabilities, effective, permitted or inheritable, in version 3 of their form.
        header, none = (ctypes.c_uint32 * 2)(0x20080522, 0), (ctypes.c_uint32 * 6)()
        assert ctypes.CDLL(None).capset(header, none) == 0
    sys.argv = argv
    if argv[0].endswith(".py"):
        runpy.run_path(str(ROOT / argv[0]), run_name="__main__")
    else:
        runpy.run_module(argv[0], run_name="__main__")


def leave(function: Callable[..., None], **arguments: Any) -> NoReturn:
    """Call a function and end the process as Python would, without taking the interpreter apart, which takes long."""
    status = 0
    try:
        function(**arguments)
    except SystemExit as end:
        status = end.code if isinstance(end.code, int) else int(end.code is not None)
    except BaseException:
        traceback.print_exc()
        status = 1
    atexit._run_exitfuncs()
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)


def main() -> None:
    """Answer requests until there are no more."""
    sys.path.insert(0, str(ROOT))
    for name in MODULES:
        importlib.import_module(name)
    threads = {path.read_text().strip() for path in Path("/proc/self/task").glob("*/comm")}
    # Arrow's allocator expects to be forked; others would leave their locks shut in the child.
    assert len(threads - {"jemalloc_bg_thd"}) == 1, threads
    gc.freeze()  # or each child would copy what is only looked at
    answers = os.dup(1)
    os.write(answers, b"ready\n")
    for request in iter(sys.stdin.readline, ""):
        child = os.fork()
        if child == 0:
            os.close(answers)
            sys.stdin = open(os.devnull)  # noqa: SIM115
            leave(run, **json.loads(request))
        os.write(answers, f"{child}\n".encode())
        _, status = os.waitpid(child, 0)
        os.write(answers, f"{os.waitstatus_to_exitcode(status)}\n".encode())


if __name__ == "__main__":
    main()
