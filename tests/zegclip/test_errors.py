"""What the machine does wrong becomes one sentence; what the program does wrong does not."""

import multiprocessing
import os

import numpy as np
import pytest
import torch
from safetensors import SafetensorError

from zegclip.errors import explain_fault, is_worker_death

LACK = "There is not enough memory: make batches, crops or windows smaller"
KILLED = RuntimeError("DataLoader worker (pid 7) is killed by signal: Killed. ")


@pytest.mark.parametrize(
    ("error", "sentence"),
    [
        (MemoryError(), f"{LACK} (MemoryError)."),
        (MemoryError("There is not enough memory for it: smaller!"), "There is not enough memory for it: smaller!"),
        (torch.OutOfMemoryError("CUDA out of memory. Tried\nmore"), f"{LACK} (CUDA out of memory"),
        (
            RuntimeError("Caught RuntimeError in DataLoader worker process 0.\nTraceback\nRuntimeError: "
                         "DefaultCPUAllocator: can't allocate memory: you tried"),
            f"{LACK} (RuntimeError: DefaultCPUAllocator: can't allocate memory",
        ),
        (KILLED, "A process that reads pictures has died, perhaps for lack of memory (DataLoader worker (pid 7) is "),
        (RuntimeError("DataLoader worker (pid(s) 7, 8) exited unexpectedly"), "A process that reads pictures has"),
        (SafetensorError("I/O error: No space"), "Weights could not be written or read, perhaps for lack of space (I"),
        (RuntimeError("[enforce fail at inline_container.cc:672] . unexpected pos 64 vs 0"), "Weights could not be w"),
    ],
)  # fmt: skip
def test_faults(error, sentence):
    assert explain_fault(error).startswith(sentence)
    assert is_worker_death(error) == ("worker (pid" in str(error))


def test_a_lack_of_memory_in_numpy():
    with pytest.raises(MemoryError) as caught:
        np.empty(2**60, dtype=np.int8)
    assert explain_fault(caught.value).endswith(
        "(Unable to allocate 1.00 EiB for an array with shape (1152921504606846976,) and data type int8)."
    )


@pytest.mark.parametrize("error", [RuntimeError("shapes cannot be multiplied"), KeyError("x"), TypeError()])
def test_faults_of_the_program(error):
    assert explain_fault(error) is None


def test_a_worker_that_dies_in_the_middle_of_its_message():
    ours, its = multiprocessing.Pipe()
    its.close()
    with pytest.raises(EOFError) as caught:
        ours.recv()
    assert is_worker_death(caught.value)
    assert explain_fault(caught.value).startswith("A process that reads pictures has died, perhaps for lack of memory")
    with pytest.raises(FileNotFoundError) as missing:
        os.stat("nowhere")
    assert not is_worker_death(missing.value)
