"""Nothing that is loaded is run, nothing reaches the network unasked, and nothing asks to trust foreign code."""

import ast
import json
import os
import pickle
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model

from zegclip import DeepPromptConfig
from zegclip.errors import reporting_errors
from zegclip.loading import load_adapter_into, load_model
from zegclip.picture_world.dataset import export_picture_world
from zegclip.training.train import train

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
CODE = [
    path
    for folder in ("zegclip", "modeling", "processing", "picture_world", "model_cards")
    for path in (ROOT / folder).rglob("*.py")
] + [ROOT / "train.py", ROOT / "eval.py"]
CONFIG = ROOT / "configs" / "zegclip_picture_world_inductive.yaml"


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
    """Put a file that PyTorch would write, and that does harm when it is unpickled, where another lies."""
    torch.save({"state_dict": Hostile(marker)}, path)
    with pytest.raises(pickle.UnpicklingError):
        torch.load(path, weights_only=True)
    torch.load(path, weights_only=False)
    marker.rmdir()  # so the file is as hostile as it should be


def one_sentence(error, *parts):
    message = str(error.value)
    assert len(message.splitlines()) == 1, message
    assert "weights_only" not in message, "advice to load it unsafely"
    for part in parts:
        assert str(part) in message, message


def test_weights_of_a_model_are_never_unpickled(model, tmp_path, marker):
    model.save_pretrained(tmp_path / "model")
    (tmp_path / "model" / "model.safetensors").unlink()
    make_hostile(tmp_path / "model" / "pytorch_model.bin", marker)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_model(tmp_path / "model")
    one_sentence(error, tmp_path / "model")
    assert not marker.exists()


@pytest.mark.parametrize("load", ["load_model", "load_adapter_into"])
def test_weights_of_an_adapter_are_never_unpickled(model, tmp_path, marker, load):
    model.save_pretrained(tmp_path / "base")
    model.name_or_path = str(tmp_path / "base")
    tuned = get_peft_model(model, DeepPromptConfig(num_tokens=2))
    tuned.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "adapter_model.safetensors").unlink()
    make_hostile(tmp_path / "adapter" / "adapter_model.bin", marker)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load_model(tmp_path / "adapter") if load == "load_model" else load_adapter_into(tuned, tmp_path / "adapter")
    one_sentence(error, tmp_path / "adapter")
    assert not marker.exists()


SMALL = [
    "--num_train_pictures", "4", "--num_eval_pictures", "1", "--total_train_batch_size", "2", "--use_cpu",
    "--decoder_attention_heads", "2", "--decoder_ffn_dim", "32", "--num_prompt_tokens", "2", "--window_stride", "48",
]  # fmt: skip


def test_a_checkpoint_that_is_damaged_or_hostile_is_named(clip_folder, tmp_path, marker, capsys):
    words = [str(CONFIG), "--model", str(clip_folder), *SMALL, "--max_steps", "2", "--save_steps", "1"]
    words += ["--save_total_limit", "2", "--output_dir", str(tmp_path / "run")]
    train(words)
    for name in ("adapter_model.safetensors", "trainer_state.json"):
        (tmp_path / "run" / name).unlink()
    shutil.rmtree(tmp_path / "run" / "checkpoint-2")
    checkpoint = tmp_path / "run" / "checkpoint-1"

    def refused(name):
        capsys.readouterr()
        with pytest.raises(SystemExit) as leaving, reporting_errors("train.py"):
            train(words)
        assert leaving.value.code == 1
        sentence = capsys.readouterr().err.strip().splitlines()[-1]
        assert sentence.startswith(f"train.py: {checkpoint} is damaged or not of this run"), (name, sentence)
        assert not marker.exists(), name

    for name in ("optimizer.pt", "rng_state.pth", "scheduler.pt", "adapter_model.safetensors", "trainer_state.json"):
        whole = (checkpoint / name).read_bytes()
        (checkpoint / name).write_bytes(whole[: len(whole) // 2])
        refused(name)
        if name.endswith((".pt", ".pth")):
            make_hostile(checkpoint / name, marker)
            refused(name)
        (checkpoint / name).write_bytes(whole)
    with pytest.raises(ValueError, match="checkpoint-7: there is no such checkpoint folder"):
        train([*words, "--resume_from_checkpoint", str(tmp_path / "checkpoint-7")])
    make_hostile(checkpoint / "training_args.bin", marker)  # which nothing reads
    train(words)
    assert not marker.exists()
    assert (tmp_path / "run" / "adapter_model.safetensors").is_file()


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
    from PIL import Image

    model.save_pretrained(tmp_path / "model")
    processor.save_pretrained(tmp_path / "model")
    Image.new("RGB", (40, 30)).save(tmp_path / "picture.png")
    export_picture_world(tmp_path / "folder" / "train", "train", 2)
    small = [str(CONFIG), *SMALL]
    run, folder = str(tmp_path / "run"), str(tmp_path / "folder")
    commands = [
        ["zegclip", "segment", str(tmp_path / "picture.png"), "--labels", "cat, dog", "--output", str(tmp_path / "a")],
        ["zegclip", "segment", str(tmp_path / "picture.png"), "--labels", "cat, dog", "--output", str(tmp_path / "b"),
         "--model", str(tmp_path / "model")],
        ["zegclip", "demo", "--output", str(tmp_path / "demo")],
        ["zegclip", "check", folder, "--output", str(tmp_path / "check"), "--workers", "0"],
        ["zegclip", "convert", str(checkpoint), str(tmp_path / "converted")],
        [str(ROOT / "train.py"), *small, "--model", str(clip_folder), "--output_dir", run, "--max_steps", "2"],
        [str(ROOT / "eval.py"), *small, "--model", run, "--output_dir", run],
        [str(ROOT / "eval.py"), *small, "--output_dir", str(tmp_path / "eval")],
        ["zegclip", "segment", str(tmp_path / "picture.png"), "--labels", "cat, dog", "--output", str(tmp_path / "c"),
         "--model", run],
        ["zegclip", "bundle", run, str(tmp_path / "bundle")],
        ["zegclip", "export", run, str(tmp_path / "export")],
        ["zegclip", "onnx", str(tmp_path / "bundle"), str(tmp_path / "onnx")],
    ]  # fmt: skip
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
