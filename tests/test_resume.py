"""Killed and started again with the same command, a training in two processes ends with the same weights."""

import os
import random
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
    "num_train_pictures": 7, "num_eval_pictures": 1, "save_strategy": "steps", "save_total_limit": 30,
    "eval_strategy": "steps", "eval_steps": 10, "logging_steps": 1, "seed": 3, "dataloader_num_workers": 1,
}  # fmt: skip


@pytest.fixture
def start(clip_folder, tmp_path):
    """Start a training whose output goes to a file: a pipe that nobody reads would stop it."""

    def start(output, **fields):
        launcher = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
        words = options(**FIELDS, model=clip_folder, output_dir=output, **fields)
        with open(tmp_path / "log.txt", "w") as file:
            return subprocess.Popen(
                [*launcher, str(ROOT / "train.py"), CONFIG, *words],
                stdout=file,
                stderr=subprocess.STDOUT,
                env=os.environ | {"OMP_NUM_THREADS": "1"},
                start_new_session=True,
            )

    return start


@pytest.fixture
def finish(start, tmp_path):
    """Run a training to its end; return what it has printed."""

    def finish(output, **fields):
        code = start(output, **fields).wait()
        printed = (tmp_path / "log.txt").read_text()
        assert code == 0, printed[-3000:]
        return printed

    return finish


def kill_at(folder, name, process):
    """Wait for a file, and a little longer, then kill a process and its children, as when a machine is lost."""
    while not (folder / name).exists():
        assert process.poll() is None, "it has ended before"
        time.sleep(0.0005)
    time.sleep(random.random() / 30)
    process.send_signal(signal.SIGSTOP)
    everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in everyone:
        one.kill()
    psutil.wait_procs(everyone)


@pytest.mark.slow
def test_killed_at_a_random_step_and_resumed(start, finish, tmp_path):
    undisturbed, output, fields = tmp_path / "undisturbed", tmp_path / "run", {"max_steps": 24, "save_steps": 2}
    finish(undisturbed, **fields)
    kill_at(output, f"checkpoint-{random.choice(range(2, 18, 2))}", start(output, **fields))
    assert not (output / "adapter_model.safetensors").exists(), "it had finished before it was killed"
    assert str(output / "checkpoint-") in finish(output, **fields)
    assert read_weights(output) == read_weights(undisturbed)


def test_resumed_in_the_middle_of_a_later_epoch(finish, tmp_path):
    """At step 4 of 3 an epoch: accelerate alone forgets the epoch where it skips batches in several processes."""
    output, fields = tmp_path / "run", {"max_steps": 8, "save_steps": 1}
    finish(output, **fields)
    undisturbed = read_weights(output)
    cut_short(output, 4)
    assert "checkpoint-4" in finish(output, **fields)
    assert read_weights(output) == undisturbed
