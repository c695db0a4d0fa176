"""What tells two versions of a model apart: where its files lie does not, what is in them does."""

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from zegclip import DeepPromptConfig, ZegClipForSemanticSegmentation
from zegclip.identity import content_of_clip, state_of_model

ROOT = Path(__file__).parents[2]


@pytest.fixture
def adapter(model, clip_folder, tmp_path):
    """An adapter alone, whose base lies elsewhere."""
    tuned = ZegClipForSemanticSegmentation.from_pretrained(clip_folder, config=model.config)
    tuned.add_adapter(DeepPromptConfig(num_tokens=2))
    tuned.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def flip(path):
    """Change a bit of a file and nothing that a folder says of it but the time of the last change."""
    before = path.stat()
    content = bytearray(path.read_bytes())
    content[-1] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


@pytest.mark.parametrize("name", ["adapter/adapter_model.safetensors", "clip/model.safetensors", "clip/config.json"])
def test_changed_weights_are_another_state(adapter, tmp_path, name):
    before = state_of_model(str(adapter))
    (adapter / "README.md").write_text("a card")
    (adapter / "checkpoint-3").mkdir()
    assert state_of_model(str(adapter)) == before
    flip(tmp_path / name)
    assert state_of_model(str(adapter)) != before


def test_a_training_reads_the_clip_of_an_adapter(adapter, clip_folder, tmp_path):
    before, own = content_of_clip(str(adapter)), content_of_clip(str(clip_folder))
    assert own in before
    flip(adapter / "adapter_model.safetensors")
    assert content_of_clip(str(adapter)) == before
    shutil.copytree(clip_folder, tmp_path / "copy")
    assert content_of_clip(str(tmp_path / "copy")) == own
    for name in ("model.safetensors", "config.json", "tokenizer.json"):
        flip(clip_folder / name)
        now = content_of_clip(str(clip_folder))
        assert now != own
        own = now


TWO_COMMITS = """
import json, os, sys
from pathlib import Path
from hub_stand_in import serve_hub

folder, output, *words = sys.argv[1:]
with serve_hub() as hub:
    os.environ.update(hub.environment())
    from zegclip.commands.main import main
    from zegclip.identity import content_of_adapter, content_of_clip

    files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    hub.repositories["someone/model"] = [files]
    for _ in range(2):
        commit, _ = hub.commit("someone/model", "main")
        for _ in range(2):
            assert main(["segment", *words, "--output", output, "--model", "someone/model"]) == 0
            record = json.loads(Path(output, "a.json").read_text())
            assert record["model"] == f"someone/model@{commit}", record
        assert content_of_clip("someone/model") == content_of_adapter("someone/model") == f"someone/model@{commit}"
        hub.repositories["someone/model"].append(files | {"README.md": b"other words, the same weights"})
"""


def test_another_revision_of_a_hub_id_is_another_model(model_folder, tmp_path):
    Image.new("RGB", (50, 40), "red").save(tmp_path / "a.png")
    paths = [str(ROOT / "tests" / "launched"), os.environ.get("PYTHONPATH", "")]
    environment = {"HF_HOME": str(tmp_path / "home"), "TRANSFORMERS_OFFLINE": "0"}
    environment["PYTHONPATH"] = os.pathsep.join(paths)
    words = [model_folder, tmp_path / "results", tmp_path / "a.png", "--labels", "cat, tree"]
    done = subprocess.run(
        [sys.executable, "-c", TWO_COMMITS, *map(str, words)],
        env={**os.environ, **environment},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("1 of 1 picture was done before") == 2
