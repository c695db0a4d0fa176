"""`zegclip bundle`, and what all commands that write a model folder do not do: replace one, or leave a part of one."""

import json
import os
import subprocess
import sys

import pytest
import torch

from zegclip import DeepPromptConfig, ZegClipForSemanticSegmentation
from zegclip.commands.main import main


@pytest.fixture
def adapter(model, model_folder, processor, tmp_path):
    """An adapter beside its processor, trained on the model of `model_folder`."""
    model.add_adapter(DeepPromptConfig(num_tokens=2))
    model.peft_config["default"].base_model_name_or_path = str(model_folder)
    model.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_bundle(adapter, model, model_folder, processor, noise, picture, tmp_path, succeeds):
    output = tmp_path / "bundled"
    output.mkdir()
    assert str(output) in succeeds("bundle", adapter, output)
    for path in model_folder.iterdir():
        path.unlink()
    inputs = processor(images=noise, text=["cat", "tree"], return_tensors="pt")
    with torch.no_grad():
        ours = ZegClipForSemanticSegmentation.from_pretrained(output)(**inputs).logits
        assert torch.equal(ours, model.eval()(**inputs).logits)
    segment = ["segment", picture, "--labels", "cat, tree", "--model", output]
    succeeds(*segment, "--output", tmp_path / "results")


def test_bundle_needs_an_adapter(model_folder, tmp_path, fails):
    fails(["bundle", model_folder, tmp_path / "out"], model_folder, "adapter")
    fails(["bundle", tmp_path / "missing", tmp_path / "out"], tmp_path / "missing")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["convert", "bundle", "export"])
def test_nothing_is_replaced(checkpoint, adapter, tmp_path, fails, command):
    source = checkpoint if command == "convert" else adapter
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("keep me")
    for output in (tmp_path / "out", tmp_path / "out" / "precious.txt"):
        fails([command, source, output], output)
    assert (tmp_path / "out" / "precious.txt").read_text() == "keep me"


@pytest.mark.parametrize("command", ["convert", "bundle", "export"])
def test_an_interrupted_command_leaves_no_folder(checkpoint, adapter, tmp_path, monkeypatch, command):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zegclip.ZegClipProcessor.save_pretrained", fail)
    monkeypatch.setattr("zegclip.ZegClipImageProcessor.save_pretrained", fail)
    before = sorted(tmp_path.iterdir())
    assert main([command, str(checkpoint if command == "convert" else adapter), str(tmp_path / "out")]) == 1
    assert sorted(tmp_path.iterdir()) == before


@pytest.mark.thorough
@pytest.mark.parametrize(
    "command", ["convert", *(pytest.param(name, marks=pytest.mark.slow) for name in ("bundle", "export"))]
)
def test_a_command_writes_the_same_files_each_time(checkpoint, clip_folder, adapter, tmp_path, command):
    """Its base has no decode head, and one that is initialised at random would be saved."""
    if command != "convert":
        described = json.loads((adapter / "adapter_config.json").read_text())
        described |= {"base_model_name_or_path": str(clip_folder), "base_fingerprint": None}
        (adapter / "adapter_config.json").write_text(json.dumps(described))
    source = checkpoint if command == "convert" else adapter
    for seed in ("1", "2"):  # sets are in another order
        words = [sys.executable, "-m", "zegclip", command, str(source), str(tmp_path / seed)]
        subprocess.run(words, check=True, env={**os.environ, "PYTHONHASHSEED": seed})
    files = [path.relative_to(tmp_path / "1") for path in (tmp_path / "1").rglob("*") if path.is_file()]
    assert len(files) > 3
    assert [
        name for name in files if (tmp_path / "1" / name).read_bytes() != (tmp_path / "2" / name).read_bytes()
    ] == []
