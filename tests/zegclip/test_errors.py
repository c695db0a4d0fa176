"""What the user or the machine gets wrong becomes one sentence; an error of the program keeps its traceback."""

import multiprocessing
import os
import re
from pathlib import Path

import numpy as np
import pytest
import torch
from huggingface_hub import hf_hub_download
from safetensors import SafetensorError
from transformers import AutoConfig

from zegclip import ZegClipConfig
from zegclip.errors import UsageError, explain, explain_fault, is_worker_death, report_error, reporting_errors
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
    assert is_worker_death(error) == ("worker (pid" in str(error))
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
    [RuntimeError("wrong shapes"), KeyError("x"), TypeError(), ValueError(), ImportError("no x")],
)
def test_errors_of_the_program(error):
    assert explain(error) is None
    with pytest.raises(type(error)):
        report_error(error, "program")


def test_ctrl_c(capsys):
    assert report_error(KeyboardInterrupt(), "program") == 130
    assert capsys.readouterr().err == "program: interrupted.\n"


def test_a_worker_that_dies_in_the_middle_of_its_message():
    ours, its = multiprocessing.Pipe()
    its.close()
    with pytest.raises(EOFError) as caught:
        ours.recv()
    assert is_worker_death(caught.value)
    assert "died" in explain_fault(caught.value)
    with pytest.raises(FileNotFoundError) as missing:
        os.stat("nowhere")
    assert not is_worker_death(missing.value)
