"""What the user or the machine gets wrong becomes one sentence; an error of the program keeps its traceback."""

import errno
import io
import multiprocessing
import os
import re
import socket
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from transformers import AutoConfig

from zegclip import ZegClipConfig
from zegclip.commands.main import build_parser, main
from zegclip.errors import (
    TRACEBACK_VARIABLE,
    MachineError,
    UsageError,
    explain,
    explain_fault,
    find_worker_death,
    report_error,
    reporting_errors,
)
from zegclip.modeling.model_error import ModelError
from zegclip.processing.input_error import InputError
from zegclip.training.arguments import parse_arguments

KILLED = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")
IN_WORKER = "Caught {0} in DataLoader worker process 0.\nOriginal Traceback (most recent call last):\nsome.{0}: {1}"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (MemoryError(), "memory.*MemoryError"),
        (MemoryError("There is not enough memory for it: smaller!"), "^There is not enough memory for it: smaller!"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), "memory.*CUDA out of memory"),
        (
            RuntimeError(IN_WORKER.format("RuntimeError", "DefaultCPUAllocator: can't allocate memory: you tried")),
            "memory.*DefaultCPUAllocator",
        ),
        (KILLED, "died.*worker"),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "died.*worker"),
        (SafetensorError("I/O error: No space"), "written.*No space"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "written.*pos 64"),
    ],
)
def test_faults_of_the_machine(error, reason, capsys):
    assert (find_worker_death(error) is not None) == ("worker (pid" in str(error))
    assert report_error(error, "program", resumable=True) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("program: ")
    assert printed.count("\n") == 1
    assert "continues" in printed
    assert re.search(reason, printed.removeprefix("program: ").strip())


def test_a_lack_of_memory_in_numpy():
    with pytest.raises(MemoryError) as caught:
        np.empty(2**60, dtype=np.int8)
    assert "1.00 EiB" in explain_fault(caught.value)


MISTAKES = [
    (lambda: Path("missing.txt").read_text(), "missing.txt"),
    (lambda: AutoConfig.from_pretrained("no/such/model"), "no/such/model"),
    (lambda: hf_hub_download("nobody/nothing", "config.json", local_files_only=True), "cache"),
    (lambda: ZegClipConfig(decode_head_type="other"), "decode_head_type"),
    (lambda: ZegClipConfig(decoder_ffn_dim="wide"), "decoder_ffn_dim"),
    (lambda: parse_arguments(["--use_cpu", "--eval_strategy", "sometimes"]), "sometimes"),
]


@pytest.mark.parametrize(("mistake", "mentioned"), MISTAKES)
def test_mistakes_that_libraries_notice(mistake, mentioned, capsys):
    with pytest.raises(SystemExit) as leaving, reporting_errors("program"):
        mistake()
    assert leaving.value.code == 1
    printed = capsys.readouterr().err
    assert printed.count("\n") == 1
    assert mentioned in printed


@pytest.mark.parametrize("kind", [ModelError, InputError, UsageError])
def test_our_own_errors(kind):
    assert explain(kind("two.png is broken.\nmore")) == "two.png is broken."
    assert explain(kind(IN_WORKER.format(kind.__name__, "two.png is broken."))) == "two.png is broken."


def test_a_package_that_is_not_installed():
    assert "wandb" in explain(RuntimeError("WandbCallback requires wandb to be installed. Run `pip install wandb`."))


@pytest.mark.parametrize(
    "error",
    [RuntimeError("wrong shapes"), KeyError("x"), TypeError(), ValueError(), ImportError("no x"), OSError("x")],
)
def test_errors_of_the_program(error):
    assert explain(error) is None
    with pytest.raises(type(error)):
        report_error(error, "program")


def closed_file():
    descriptor = os.open(os.devnull, os.O_RDONLY)
    os.close(descriptor)
    os.read(descriptor, 1)


@pytest.mark.parametrize(
    "mistake",
    [
        closed_file,
        lambda: io.BytesIO(b"x").fileno(),
        lambda: os.lseek(os.pipe()[0], 0, 0),
        lambda: np.zeros((2, 3)) + np.zeros((4, 5)),
        lambda: torch.zeros(2, 3) @ torch.zeros(2, 3),
    ],
)
def test_wrong_use_of_a_library_or_the_system_keeps_its_traceback(mistake):
    with pytest.raises((OSError, ValueError, RuntimeError)) as caught:
        mistake()
    assert explain(caught.value) is None


NO_NETWORK = socket.gaierror(socket.EAI_NONAME, "Name or service not known")
IN_WORKER_OF_SYSTEM = "[Errno 13] Permission denied: '/x.png'"


@pytest.mark.parametrize(
    ("error", "reason"),
    [
        (OSError(errno.ENOSPC, "No space left on device"), "No space"),
        (OSError(errno.EMFILE, "Too many open files"), "Too many"),
        (PermissionError(errno.EACCES, "Permission denied", "here/x.png"), "here/x.png"),
        (BrokenPipeError(errno.EPIPE, "Broken pipe"), "Broken"),
        (NO_NETWORK, "not known"),
        (MachineError("it could not be written"), "written"),
        (PermissionError(IN_WORKER.format("PermissionError", IN_WORKER_OF_SYSTEM)), "/x.png"),
        (OSError(IN_WORKER.format("OSError", "[Errno 28] No space left on device")), "No space"),
    ],
)
def test_errors_of_the_system(error, reason):
    assert reason in explain(error)


def test_the_traceback_of_a_reported_error(monkeypatch, capsys):
    assert main(["segment", "x.png", "--labels", "a", "--model", "nowhere"]) == 1
    assert capsys.readouterr().err.count("\n") == 1
    monkeypatch.setenv(TRACEBACK_VARIABLE, "1")
    assert main(["segment", "x.png", "--labels", "a", "--model", "nowhere"]) == 1
    printed = capsys.readouterr().err
    assert printed.startswith("Traceback")
    assert "in check_model_path" in printed
    assert printed.splitlines()[-1].startswith("zegclip: nowhere: ")
    assert TRACEBACK_VARIABLE in build_parser().format_help()


def test_ctrl_c(capsys):
    assert report_error(KeyboardInterrupt(), "program") == 130
    assert capsys.readouterr().err == "program: interrupted.\n"


def test_a_worker_that_dies_in_the_middle_of_its_message():
    ours, its = multiprocessing.Pipe()
    its.close()
    with pytest.raises(EOFError) as caught:
        ours.recv()
    assert find_worker_death(caught.value) is caught.value
    assert "died" in explain_fault(caught.value)
    with pytest.raises(FileNotFoundError) as missing:
        os.stat("nowhere")
    assert find_worker_death(missing.value) is None


def test_a_worker_that_dies_while_a_library_reads_a_text():
    """jinja2 raises whatever interrupts it there as a syntax error, with the end of the message."""
    error, death = ValueError("Killed."), RuntimeError("DataLoader worker (pid 3) is killed by signal: Killed. ")
    error.__cause__ = death
    assert find_worker_death(error) is death
    assert "pid 3" in explain(error)
