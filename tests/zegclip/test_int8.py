"""The vision tower in int8: `zegclip segment --dtype int8`."""

import sys
from importlib.util import find_spec

import numpy as np
import pytest
import torch
from PIL import Image

from zegclip import DEFAULT_MODEL
from zegclip.commands.main import main
from zegclip.picture_world.classes import CLASS_NAMES
from zegclip.picture_world.dataset import load_picture_world
from zegclip.segmenting.segmenter import load_segmenter


@pytest.mark.skipif(find_spec("torchao") is None, reason="torchao, which is optional, is not installed")
def test_the_same_classes_as_in_float32():
    exact, rounded = (load_segmenter(DEFAULT_MODEL, "cpu", dtype) for dtype in ("float32", "int8"))
    layers = [module for module in rounded.model.clip.vision_model.modules() if isinstance(module, torch.nn.Linear)]
    assert len(layers) > 20
    assert all("int8" in str(layer.weight.__class__.__name__).lower() for layer in layers)
    assert rounded.model.clip.text_projection.weight.__class__ is torch.nn.Parameter
    same = []
    for row in load_picture_world("test", num_scenes=4):
        maps = [one(row["image"], candidate_labels=list(CLASS_NAMES))["segmentation"] for one in (exact, rounded)]
        same.append(np.mean(maps[0] == maps[1]))
    assert 0.99 < np.mean(same) < 1


def test_without_torchao(tmp_path, monkeypatch, capsys):
    Image.new("RGB", (96, 96)).save(tmp_path / "a.png")
    monkeypatch.setitem(sys.modules, "torchao.quantization", None)
    words = [tmp_path / "a.png", "--labels", "cat, tree", "--output", tmp_path / "results", "--dtype", "int8"]
    assert main(["segment", *map(str, words)]) == 1
    assert capsys.readouterr().err == "zegclip: int8 needs torchao, not installed here: pip install 'zegclip[int8]'.\n"


def test_another_device_is_refused():
    with pytest.raises(ValueError, match="--device cpu"):
        load_segmenter(DEFAULT_MODEL, "meta", "int8")
