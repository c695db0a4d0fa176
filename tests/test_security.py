"""Nothing that is loaded is run, nothing reaches the network unasked, and nothing asks to trust foreign code."""

import ast
import json
import os
import pickle
import re
import subprocess
import sys

import pytest
import torch
from peft import get_peft_model
from PIL import Image
from small_run import CONFIG, ROOT, SMALL, cut_short, options, read_weights

from zegclip import DeepPromptConfig
from zegclip.errors import reporting_errors
from zegclip.loading import load_adapter_into, load_model
from zegclip.picture_world.dataset import export_picture_world
from zegclip.training.train import train

pytestmark = pytest.mark.thorough

CODE = [
    path
    for folder in ("zegclip", "modeling", "processing", "picture_world", "model_cards")
    for path in (ROOT / folder).rglob("*.py")
] + [ROOT / "train.py", ROOT / "eval.py"]


class Hostile:
    """Makes a folder when it is unpickled."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.fixture
def marker(tmp_path):
    return tmp_path / "marker"


def make_hostile(path, marker):
    """Replace a file by a pickle in PyTorch's format that runs code when it is loaded."""
    torch.save({"state_dict": Hostile(marker)}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    torch.load(path, weights_only=False)
    marker.rmdir()  # so the file is as hostile as it should be


@pytest.mark.parametrize("kind", ["model", "adapter"])
def test_weights_are_never_unpickled(model, tmp_path, marker, kind):
    folder = tmp_path / kind
    model.save_pretrained(tmp_path / "model")
    loaders = [load_model]
    if kind == "adapter":
        model.name_or_path = str(tmp_path / "model")
        tuned = get_peft_model(model, DeepPromptConfig(num_tokens=2))
        tuned.save_pretrained(folder)
        loaders.append(lambda folder: load_adapter_into(tuned, folder))
    (path,) = folder.glob("*.safetensors")
    path.unlink()
    make_hostile(folder / ("pytorch_model.bin" if kind == "model" else "adapter_model.bin"), marker)
    for load in loaders:
        with pytest.raises(ValueError, match=re.escape(str(folder))) as error:
            load(folder)
        assert len(str(error.value).splitlines()) == 1
        assert "weights_only" not in str(error.value), "advice to load it unsafely"
        assert not marker.exists()


def test_a_checkpoint_that_is_damaged_or_hostile_is_named(clip_folder, tmp_path, marker, capsys):
    run = tmp_path / "run"
    fields = SMALL | {"model": clip_folder, "output_dir": run, "max_steps": 2, "save_steps": 1, "save_total_limit": 2}
    words = [CONFIG, *options(**fields)]
    train(words)
    cut_short(run, 1)
    checkpoint = run / "checkpoint-1"

    def refused(name):
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving, reporting_errors("train.py"):
            train(words)
        assert leaving.value.code == 1
        sentence = capsys.readouterr().err.strip().splitlines()[-1]
        assert sentence.startswith(f"train.py: {checkpoint} "), (name, sentence)
        assert not marker.exists(), name

    for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt", "adapter_model.safetensors", "trainer_state.json"):
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(whole[: len(whole) // 2])
        refused(name)
        if name.endswith((".pt", ".pth")):
            make_hostile(checkpoint / name, marker)
            refused(name)
        (checkpoint / name).write_bytes(whole)
    with pytest.raises(ValueError, match="checkpoint-7"):
        train([*words, "--resume_from_checkpoint", str(tmp_path / "checkpoint-7")])
    make_hostile(checkpoint / "training_args.bin", marker)  # which nothing reads
    train(words)
    assert not marker.exists()
    assert read_weights(run)


def test_the_code_trusts_no_other_code():
    """What else a linter can see of this kind is in ruff's rules S, which `make lint` applies."""
    for path in CODE:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.keyword) and node.arg in ("trust_remote_code", "allow_pickle"):
                assert isinstance(node.value, ast.Constant), f"{path}:{node.value.lineno}"
                assert node.value.value is False, f"{path}:{node.value.lineno}"


# What a process runs that may not use the network, without any variable that keeps libraries offline.
WATCHED = """
import json, os, sys

attempts = []

def watch(event, arguments):
    if event in ("socket.connect", "socket.sendto", "socket.getaddrinfo", "socket.gethostbyname"):
        attempts.append(f"{event} {arguments}")
        raise OSError("there is no network")

sys.addaudithook(watch)
import runpy
from zegclip.commands.main import main

for words in json.loads(sys.argv[1]):
    before = len(attempts)
    script, *rest = words
    if script == "zegclip":
        status = main(rest)
    else:
        sys.argv = words
        try:
            runpy.run_path(script, run_name="__main__")
            status = 0
        except SystemExit as leaving:
            status = leaving.code or 0
    print("RESULT", json.dumps([words[:2], status, attempts[before:]]))
"""


@pytest.mark.slow
def test_no_command_reaches_for_the_network(model, processor, clip_folder, checkpoint, tmp_path):
    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    Image.new("RGB", (40, 30)).save(tmp_path / "picture.png")
    export_picture_world(tmp_path / "folder" / "train", "train", 2)
    segment = ["zegclip", "segment", "picture.png", "--labels", "cat, dog", "--output"]
    small = [CONFIG, *options(**SMALL)]
    commands = [
        [*segment, "a"],
        [*segment, "b", "--model", "model"],
        ["zegclip", "demo", "--output", "demo"],
        ["zegclip", "check", "folder", "--output", "check", "--workers", "0"],
        ["zegclip", "init", "folder"],
        ["zegclip", "export-data", "folder", "colours", "--to", "colours"],
        ["zegclip", "convert", str(checkpoint), "converted"],
        [str(ROOT / "train.py"), *small, "--model", str(clip_folder), "--output_dir", "run", "--max_steps", "2"],
        [str(ROOT / "eval.py"), *small, "--model", "run", "--output_dir", "run"],
        [str(ROOT / "eval.py"), *small, "--output_dir", "eval"],
        [*segment, "c", "--model", "run"],
        ["zegclip", "bundle", "run", "bundle"],
        ["zegclip", "export", "run", "export"],
        ["zegclip", "onnx", "bundle", "onnx"],
    ]
    online = {name: value for name, value in os.environ.items() if not name.endswith("_OFFLINE")}
    result = subprocess.run(
        [sys.executable, "-c", WATCHED, json.dumps(commands)],
        env=online | {"HF_HOME": str(tmp_path / "cache"), "HF_HUB_DISABLE_TELEMETRY": "0"},
        capture_output=True, text=True, check=False, cwd=tmp_path,
    )  # fmt: skip
    lines = [json.loads(line[7:]) for line in result.stdout.splitlines() if line.startswith("RESULT ")]
    assert len(lines) == len(commands), result.stderr[-3000:]
    for name, status, attempts in lines:
        print(*name, status, attempts)
        assert not attempts, name
        assert status == 0, (name, result.stderr[-3000:])
