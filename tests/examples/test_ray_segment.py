"""Pictures segmented by two workers of Ray have the results of one process, also if one of the workers is killed."""

import importlib.util
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from zegclip.commands.main import main
from zegclip.picture_world.dataset import load_picture_world

SCRIPT = Path(__file__).parents[2] / "examples" / "ray_segment.py"
LABELS = "cat/house, tree, grass"


@pytest.mark.slow
def test_a_killed_worker_is_replaced(tmp_path, model_folder):
    if importlib.util.find_spec("ray") is None:
        pytest.fail("ray is missing: pip install -c constraints.txt -e '.[ray]'", pytrace=False)
    (tmp_path / "pictures" / "more").mkdir(parents=True)
    for number, row in enumerate(load_picture_world("test", num_scenes=24)):
        row["image"].resize((200, 150)).save(tmp_path / "pictures" / ("more" if number % 2 else "") / f"{number}.png")
    usual = ["--labels", LABELS, "--model", str(model_folder), "--output"]
    assert main(["segment", str(tmp_path / "pictures"), "--recursive", *usual, str(tmp_path / "alone")]) == 0

    command = [sys.executable, str(SCRIPT), str(tmp_path / "pictures"), *usual, str(tmp_path / "two"), "--batch", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0"}
    with subprocess.Popen(command, stdout=subprocess.PIPE, env=environment, text=True) as process:
        assert process.stdout is not None
        while process.poll() is None and not list(tmp_path.glob("two/*.json")):
            time.sleep(0.05)
        workers = [
            child for child in psutil.Process(process.pid).children(recursive=True) if "MapWorker" in child.name()
        ]
        assert workers
        os.kill(workers[0].pid, signal.SIGKILL)
        printed = process.stdout.read()
    assert process.returncode == 0, printed
    assert "24 pictures segmented" in printed
    names = {path.name for path in (tmp_path / "alone").iterdir()}
    assert {path.name for path in (tmp_path / "two").iterdir()} == names
    for name in (name for name in names if name.endswith("_mask.png")):  # Scores differ by rounding.
        assert (tmp_path / "two" / name).read_bytes() == (tmp_path / "alone" / name).read_bytes()

    again = subprocess.run(command, capture_output=True, env=environment, text=True)
    assert "24 of 24 pictures were done before." in again.stdout
