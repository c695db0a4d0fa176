"""Killed at any moment and started again with the same command, a training ends with the same weights."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time

import psutil
import pytest
from small_run import CONFIG, ROOT, SMALL, cut_short, options, read_weights

pytestmark = pytest.mark.thorough

# Seven pictures in batches of two: three steps an epoch, so that interruptions fall into epochs and between them.
FIELDS = SMALL | {
    "num_train_pictures": 7, "num_eval_pictures": 1, "max_steps": 24, "save_strategy": "steps", "save_steps": 2,
    "save_total_limit": 30, "eval_strategy": "steps", "eval_steps": 10, "logging_steps": 1, "seed": 3,
    "dataloader_num_workers": 1,
}  # fmt: skip


@pytest.fixture
def output(tmp_path):
    return tmp_path / "run"


@pytest.fixture
def start(clip_folder, output, tmp_path):
    """Start a training whose output goes to a file: a pipe that nobody reads would stop it."""

    def start(processes=1, limit=None, **fields):
        command = [sys.executable]
        if processes > 1:
            command += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
        fields = FIELDS | {"model": clip_folder, "output_dir": output} | fields
        with open(tmp_path / "log.txt", "w") as file:
            return subprocess.Popen(
                [*command, str(ROOT / "train.py"), CONFIG, *options(**fields)],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
                preexec_fn=limit,
            )

    return start


@pytest.fixture
def finish(start, tmp_path):
    """Run a training to its end; return what it has printed."""

    def finish(*, expect=0, **more):
        code = start(**more).wait()
        printed = (tmp_path / "log.txt").read_text()
        assert code == expect, printed[-3000:]
        return printed

    return finish


def kill_at(folder, pattern, process, seconds=0.0):
    """Wait for a file, and a little longer, then kill a process and its children, as when a machine is lost."""
    while not any(folder.glob(pattern)):
        assert process.poll() is None, "it has ended before"
        time.sleep(0.0005)
    time.sleep(seconds)
    process.send_signal(signal.SIGSTOP)
    everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in everyone:
        one.kill()
    psutil.wait_procs(everyone)


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_a_random_step_and_resumed(start, finish, output, tmp_path, processes):
    finish(processes=processes, output_dir=tmp_path / "undisturbed")
    process = start(processes)
    kill_at(output, f"checkpoint-{random.choice(range(2, 18, 2))}", process, random.random() / 30)
    assert not (output / "adapter_model.safetensors").exists(), "it had finished before it was killed"
    assert f"Resuming from {output / 'checkpoint-'}" in finish(processes=processes)
    assert read_weights(output) == read_weights(tmp_path / "undisturbed")
    if processes == 1:
        assert "Training " not in finish(), "there was nothing left to train"


@pytest.mark.parametrize("processes", [1, 2])
def test_resumed_in_the_middle_of_a_later_epoch(finish, output, processes):
    """At step 4 of 3 an epoch: accelerate alone forgets the epoch where it skips batches in several processes."""
    finish(processes=processes, save_steps=1)
    undisturbed = read_weights(output)
    cut_short(output, 4)
    assert "checkpoint-4" in finish(processes=processes, save_steps=1)
    assert read_weights(output) == undisturbed


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written(start, finish, output, tmp_path):
    finish(output_dir=tmp_path / "undisturbed")
    kill_at(output, "_unfinished-checkpoint-[48]/*/*", start())
    assert list(output.glob("_unfinished-checkpoint-*")), "it was too late for this test"
    finish()
    assert read_weights(output) == read_weights(tmp_path / "undisturbed")
    assert not list(output.glob("_unfinished-checkpoint-*"))


def test_a_full_disk_ends_the_run_with_one_sentence(start, finish, output):
    """A limit on the size of files stands for a full disk: what is written gets lost in the same places."""
    finish(save_steps=24)
    reference = read_weights(output)
    shutil.rmtree(output)

    kill_at(output, "checkpoint-2", start())
    for other in output.glob("checkpoint-*"):
        if other.name != "checkpoint-2":
            shutil.rmtree(other)
    good = {path: path.read_bytes() for path in (output / "checkpoint-2").iterdir()}
    size = len(read_weights(output / "checkpoint-2")) // 2

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    # Without workers: the limit would also hold for the shared memory in which they pass tensors on.
    printed = finish(expect=1, limit=limit, dataloader_num_workers=0)
    (sentence,) = (line for line in printed.splitlines() if line.startswith("train.py: "))
    for name in (str(output / "checkpoint-4"), "checkpoint-2"):
        assert name in sentence
    assert "Traceback" not in printed
    assert {path: path.read_bytes() for path in (output / "checkpoint-2").iterdir()} == good
    assert not list(output.glob("_unfinished-checkpoint-*"))
    finish()
    assert read_weights(output) == reference
