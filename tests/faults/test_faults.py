"""What else can go wrong ends in one sentence, with nothing half written and nothing temporary left."""

import json
import os
import re
import shutil
import signal
import subprocess

import numpy as np
import psutil
import pytest
from interrupted import contents, leftovers
from PIL import Image
from small_run import SMALL, cut_short, options, read_weights

from zegclip import DEFAULT_MODEL

pytestmark = pytest.mark.thorough

TRAIN = ["train.py", *options(**SMALL | {
    "num_train_pictures": 60, "num_eval_pictures": 1, "max_steps": 500, "save_strategy": "steps", "save_steps": 1,
    "eval_strategy": "no",
})]  # fmt: skip
EVAL = ["eval.py", *options(num_eval_pictures=40, use_cpu=True, baseline="no", save_predictions=True)]
COMMANDS = ["train.py", "eval.py", "segment", "export"]
ALL = pytest.mark.parametrize("command", COMMANDS)


@pytest.fixture
def pictures(tmp_path):
    folder = tmp_path / "pictures"
    folder.mkdir()
    rng = np.random.default_rng(0)
    for index in range(100):
        Image.fromarray(rng.integers(256, size=(40, 90, 3), dtype=np.uint8)).save(folder / f"{index}.png")
    return folder


@pytest.fixture
def commands(model_folder, clip_folder, pictures, tmp_path):
    """Commands that take their time, and write below the folder `out`."""
    out = tmp_path / "out"
    return {
        "train.py": [*TRAIN, "--model", clip_folder, "--output_dir", out],
        "eval.py": [*EVAL, "--results_dir", out],
        "segment": ["zegclip", "segment", pictures, "--labels", "cat, b", "--model", model_folder, "--output", out],
        "export": ["zegclip", "export", model_folder, out / "shared"],
    }


def complaint(printed):
    """The one sentence that a command has ended with."""
    assert "Traceback" not in printed, printed[-3000:]
    last = printed.strip().splitlines()[-1]
    assert re.match(r"(zegclip|train\.py|eval\.py): ", last), printed[-3000:]
    return last


def is_at_work(command, out):
    """Whether it has something temporary, or has left a first result."""
    if command in ("train.py", "export"):
        return bool(leftovers(out.parent))
    return any(out.rglob("*.json*")) if command == "segment" else any(out.rglob("counts-*"))


@pytest.mark.parametrize(
    ("command", "number", "status"),
    [
        pytest.param("train.py", signal.SIGINT, 130, marks=pytest.mark.slow),
        *((command, signal.SIGINT, 130) for command in ("eval.py", "segment", "export")),
        *((command, signal.SIGTERM, 143) for command in COMMANDS),
    ],
)
def test_an_interruption_leaves_nothing_temporary(runner, commands, tmp_path, command, number, status):
    runner.start(*commands[command])
    runner.wait_for(lambda: is_at_work(command, tmp_path / "out"))
    os.killpg(runner.pid, number)  # as a terminal does, to all processes of a command
    assert runner.wait() == status, runner.log.read_text()
    assert not leftovers(tmp_path)
    printed = runner.log.read_text()
    if number == signal.SIGINT:
        assert "interrupted" in complaint(printed)
    assert "Traceback" not in printed
    assert not (tmp_path / "out" / "shared").exists()


def kill_workers(pid):
    """Kill the worker processes of a command that are alive, and return them."""
    workers = [child for child in psutil.Process(pid).children() if child.status() != psutil.STATUS_ZOMBIE]
    for worker in workers:
        worker.kill()
    return workers


@pytest.mark.parametrize("command", ["train.py", "eval.py"])
def test_a_worker_process_dies(runner, commands, tmp_path, command):
    runner.start(*commands[command], "--dataloader_num_workers", "1")
    runner.wait_for(lambda: is_at_work(command, tmp_path / "out"))
    # Between two epochs there is none for a moment.
    runner.wait_for(lambda: kill_workers(runner.pid))
    assert runner.wait() == 1
    assert "process" in complaint(runner.log.read_text())
    assert not leftovers(tmp_path)


@pytest.mark.parametrize(
    ("command", "size"), [("eval.py", 1500), ("segment", 1500), ("export", 1500), ("export", 10**5)]
)
def test_files_that_find_no_room(runner, commands, tmp_path, command, size):
    """A limit on the size of files stands for a full disk; the larger one stops an export at its weights."""
    printed = runner.run(*commands[command], limits={"RLIMIT_FSIZE": size}, expect=1)
    assert "too large" in complaint(printed)
    assert not leftovers(tmp_path)
    assert not (tmp_path / "out" / "shared").exists()
    assert not list((tmp_path / "out").glob("*.json"))


@pytest.fixture
def small_disk(tmp_path):
    """A file system of its own with little room, at the folder `out`."""
    folder = tmp_path / "out"
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", "size=24k", "none", str(folder)]
    if shutil.which("mount") is None or subprocess.run(mount, capture_output=True, check=False).returncode:
        pytest.skip("mounting a file system takes root's rights")
    yield folder
    subprocess.run(["umount", str(folder)], check=True)


@pytest.mark.parametrize("command", ["eval.py", "segment", "export"])
def test_a_full_disk(runner, commands, small_disk, command):
    printed = runner.run(*commands[command], expect=1)
    assert "No space left on device" in complaint(printed)
    assert not leftovers(small_disk)
    if command == "segment":
        assert all((small_disk / f"{path.stem}_mask.png").stat().st_size for path in small_disk.glob("*.json"))


@ALL
def test_an_output_folder_that_is_read_only(runner, commands, tmp_path, command):
    out = tmp_path / "out"
    out.mkdir()
    out.chmod(0o555)
    printed = runner.run(*commands[command], permissions=True, expect=1)
    assert all(part in complaint(printed) for part in ("Permission denied", str(out)))
    assert not list(out.iterdir())


@pytest.fixture
def training(runner, clip_folder, tmp_path):
    """The words of a training with 12 checkpoints, up to its output folder; and the folder of such a training."""
    words = [*TRAIN, *options(max_steps=12, save_total_limit=12), "--model", clip_folder, "--output_dir"]
    runner.run(*words, tmp_path / "undisturbed")
    return words, tmp_path / "undisturbed"


def test_a_checkpoint_that_finds_no_room(runner, training, tmp_path):
    words, undisturbed = training
    out = shutil.copytree(undisturbed, tmp_path / "out")
    cut_short(out, 2)
    good = contents(out / "checkpoint-2")
    printed = runner.run(*words, out, limits={"RLIMIT_FSIZE": len(read_weights(undisturbed)) // 2}, expect=1)
    assert all(str(part) in complaint(printed) for part in (out / "checkpoint-3", "checkpoint-2"))
    assert contents(out / "checkpoint-2") == good
    assert not leftovers(tmp_path)
    runner.run(*words, out)
    assert read_weights(out) == read_weights(undisturbed)


def test_killed_while_a_checkpoint_is_written(runner, training, tmp_path):
    words, undisturbed = training
    out = tmp_path / "out"
    while not leftovers(out):  # it may have been written in the meantime
        runner.start(*words, out)
        runner.wait_for(lambda: leftovers(out))
        os.killpg(runner.pid, signal.SIGKILL)
        assert runner.wait() == -signal.SIGKILL
    runner.run(*words, out)
    assert read_weights(out) == read_weights(undisturbed)
    assert not leftovers(out)


def test_a_picture_that_may_not_be_read(runner, model_folder, pictures, tmp_path):
    bad, good = pictures / "0.png", pictures / "1.png"
    bad.chmod(0)
    words = ["zegclip", "segment", bad, good, "--labels", "cat", "--model", model_folder, "--output", tmp_path / "out"]
    printed = runner.run(*words, permissions=True, expect=1)
    assert str(bad) in complaint(printed)
    assert contents(tmp_path / "out").keys() == {"1.json", "1_mask.png", "1_overlay.png"}


def test_a_picture_that_is_too_large_for_the_memory(runner, model_folder, pictures, tmp_path):
    big, small, out = tmp_path / "big.png", pictures / "1.png", tmp_path / "out"
    Image.new("RGB", (6000, 6000)).save(big)  # 108 MB
    words = ["zegclip", "segment", small, "--labels", "cat, b", "--model", model_folder, "--output"]
    runner.run(*words, out)
    for spare in (100, 250):
        place = tmp_path / f"out {spare}"
        printed = runner.run(*words[:2], big, *words[2:], place, limits={"RLIMIT_AS": spare * 2**20}, expect=1)
        assert str(big) in complaint(printed)
        assert "memory" in complaint(printed)
        assert contents(place).keys() == {"1.json", "1_mask.png", "1_overlay.png"}
        assert (place / "1_mask.png").read_bytes() == (out / "1_mask.png").read_bytes()


@pytest.mark.slow
def test_windows_that_are_too_many_for_the_memory(runner, tmp_path):
    """The real allocator refuses. What has room depends on the machine, so there is less and less of it."""
    shutil.copytree(DEFAULT_MODEL, tmp_path / "model")
    path = tmp_path / "model" / "processor_config.json"
    fields = json.loads(path.read_text())
    fields["image_processor"] |= {"size": {"shortest_edge": 384}, "window_size": 192, "window_stride": 192}
    path.write_text(json.dumps(fields))
    rng = np.random.default_rng(0)
    for name in ("one", "two"):
        Image.fromarray(rng.integers(256, size=(384, 768, 3), dtype=np.uint8)).save(tmp_path / f"{name}.png")
    words = ["zegclip", "segment", tmp_path / "one.png", tmp_path / "two.png", "--labels", "cat, house, grass"]
    words += ["--model", tmp_path / "model", "--output"]
    assert "memory" not in runner.run(*words, tmp_path / "free")
    expected = json.loads((tmp_path / "free" / "two.json").read_text())["labels"]
    for spare in range(400, 100, -25):
        place = tmp_path / f"out {spare}"
        printed = runner.run(*words, place, limits={"RLIMIT_AS": spare * 2**20})
        for found, usual in zip(json.loads((place / "two.json").read_text())["labels"], expected, strict=True):
            assert found["share"] == pytest.approx(usual["share"], abs=1e-3)
            assert found["score"] == pytest.approx(usual["score"], abs=1e-4)
        if "going on with" in printed:
            break
    assert printed.count("for 8 windows of 192 x 192 pixels at once") == 1  # and not for each picture
    printed = runner.run(*words, tmp_path / "none", limits={"RLIMIT_AS": 60 * 2**20}, expect=1)
    assert "2 of 2 pictures" in printed
    assert "memory" in complaint(printed)
