"""Killed at any moment and started again with the same command, a training ends with the same weights."""

import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "configs" / "zegclip_picture_world_inductive.yaml"
# Seven pictures in batches of two: three steps an epoch, so that interruptions fall into epochs and between them.
WORDS = [
    "--num_train_pictures", "7", "--num_eval_pictures", "1", "--total_train_batch_size", "2", "--window_stride", "48",
    "--decoder_attention_heads", "2", "--decoder_ffn_dim", "32", "--num_prompt_tokens", "2", "--use_cpu",
    "--max_steps", "24", "--save_strategy", "steps", "--save_steps", "2", "--logging_steps", "1", "--seed", "3",
    "--save_total_limit", "30", "--eval_strategy", "steps", "--eval_steps", "10", "--dataloader_num_workers", "1",
]  # fmt: skip


def command(clip_folder, output, processes=1, *words):
    launcher = [sys.executable]
    if processes > 1:
        launcher += ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", str(processes)]
    return [*launcher, str(ROOT / "train.py"), str(CONFIG), *WORDS, "--model", str(clip_folder),
            "--output_dir", str(output), *words]  # fmt: skip


def start(log, *words, **kwargs):
    environment = os.environ | {"OMP_NUM_THREADS": "1"}
    with open(log, "w") as file:  # a pipe that nobody reads would stop the training
        return subprocess.Popen(
            list(map(str, words)),
            stdout=file,
            stderr=subprocess.STDOUT,
            env=environment,
            start_new_session=True,
            **kwargs,
        )


def finish(log, *words, expect=0, **kwargs):
    code = start(log, *words, **kwargs).wait()
    printed = log.read_text()
    assert code == expect, printed[-3000:]
    return printed


def kill(process):
    """Kill a process and all that it has started, as a lost machine would."""
    everyone = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for one in everyone:
        one.kill()
    psutil.wait_procs(everyone)


def wait_for(folder, pattern, process, seconds=0.0):
    """Wait until there is such a file, and a little longer, then stop the process where it is."""
    while process.poll() is None:
        if any(folder.glob(pattern)):
            time.sleep(seconds)
            process.send_signal(signal.SIGSTOP)
            return True
        time.sleep(0.0005)
    return False


@pytest.fixture
def log(tmp_path):
    return tmp_path / "log.txt"


def weights(folder):
    return (folder / "adapter_model.safetensors").read_bytes()


@pytest.mark.parametrize("processes", [1, pytest.param(2, marks=pytest.mark.slow)])
def test_killed_at_a_random_step_and_resumed(clip_folder, tmp_path, log, processes):
    finish(log, *command(clip_folder, tmp_path / "undisturbed", processes))
    output = tmp_path / "run"
    process = start(log, *command(clip_folder, output, processes))
    assert wait_for(output, f"checkpoint-{random.choice(range(2, 18, 2))}", process, random.random() / 30)
    kill(process)
    assert not (output / "adapter_model.safetensors").exists(), "it had finished before it was killed"
    printed = finish(log, *command(clip_folder, output, processes))
    assert f"Resuming from {output / 'checkpoint-'}" in printed
    assert weights(output) == weights(tmp_path / "undisturbed")
    # Once more, there is nothing left to train.
    if processes == 1:
        assert "the training has finished before" in finish(log, *command(clip_folder, output))


@pytest.mark.parametrize("processes", [1, 2])
def test_resumed_in_the_middle_of_a_later_epoch(clip_folder, tmp_path, log, processes):
    """At step 4 of 3 an epoch: accelerate alone forgets the epoch where it skips batches in several processes."""
    words = command(clip_folder, tmp_path / "run", processes, "--save_steps", "1")
    finish(log, *words)
    undisturbed = weights(tmp_path / "run")
    for step in range(5, 25):
        shutil.rmtree(tmp_path / "run" / f"checkpoint-{step}")
    for name in ("adapter_model.safetensors", "trainer_state.json"):
        (tmp_path / "run" / name).unlink()
    assert "checkpoint-4" in finish(log, *words)
    assert weights(tmp_path / "run") == undisturbed


@pytest.mark.slow
def test_killed_while_a_checkpoint_is_written(clip_folder, tmp_path, log):
    finish(log, *command(clip_folder, tmp_path / "undisturbed"))
    output = tmp_path / "run"
    process = start(log, *command(clip_folder, output))
    assert wait_for(output, "_unfinished-checkpoint-[48]/*/*", process)
    kill(process)
    assert list(output.glob("_unfinished-checkpoint-*")), "it was too late for this test"
    finish(log, *command(clip_folder, output))
    assert weights(output) == weights(tmp_path / "undisturbed")
    assert not list(output.glob("_unfinished-checkpoint-*"))


def test_a_full_disk_ends_the_run_with_one_sentence(clip_folder, tmp_path, log):
    """A limit on the size of files stands for a full disk: what is written gets lost in the same places."""
    output = tmp_path / "run"
    finish(log, *command(clip_folder, output, 1, "--save_steps", "24"), expect=0)
    reference = weights(output)
    shutil.rmtree(output)

    process = start(log, *command(clip_folder, output))
    assert wait_for(output, "checkpoint-2", process)
    kill(process)
    good = {path.name: path.read_bytes() for path in (output / "checkpoint-2").iterdir()}
    for other in output.glob("checkpoint-*"):
        if other.name != "checkpoint-2":
            shutil.rmtree(other)
    size = (output / "checkpoint-2" / "adapter_model.safetensors").stat().st_size // 2

    def limit():
        resource.setrlimit(resource.RLIMIT_FSIZE, (size, size))

    # Without workers: the limit would also hold for the shared memory in which they pass tensors on.
    alone = command(clip_folder, output, 1, "--dataloader_num_workers", "0")
    printed = finish(log, *alone, expect=1, preexec_fn=limit)
    (sentence,) = (line for line in printed.splitlines() if line.startswith("train.py: "))
    assert sentence.startswith(f"train.py: {output / 'checkpoint-4'} could not be written")
    assert "checkpoint-2 is intact" in sentence
    assert "Traceback" not in printed
    assert {path.name: path.read_bytes() for path in (output / "checkpoint-2").iterdir()} == good
    assert not list(output.glob("_unfinished-checkpoint-*"))
    finish(log, *command(clip_folder, output))
    assert weights(output) == reference
