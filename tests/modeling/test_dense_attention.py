"""Features of the training-free methods, beside the official ones."""

import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open
from transformers import CLIPConfig, CLIPModel

from zegclip import ZegClipConfig, ZegClipForSemanticSegmentation

GOLDENS = Path(os.environ.get("ZEGCLIP_GOLDENS", Path(__file__).resolve().parent.parent / "goldens"))
METHODS = ["plain", "maskclip", "sclip", "clearclip", "naclip"]


@pytest.fixture(scope="module", params=["dense_a", "dense_b"])
def golden(request):
    with safe_open(GOLDENS / f"{request.param}.safetensors", "pt") as file:
        names = list(file.keys())
        return json.loads(file.metadata()["meta"]), {name: file.get_tensor(name) for name in names}


@pytest.fixture(params=["eager", "sdpa"])
def model(request, golden):
    meta, tensors = golden
    clip_config = CLIPConfig(
        vision_config=meta["vision"], text_config={"num_hidden_layers": 1}, projection_dim=meta["projection_dim"]
    )
    config = ZegClipConfig(clip_config=clip_config, decode_head_type="similarity", naclip_sigma=meta["gaussian_std"])
    model = ZegClipForSemanticSegmentation(config).eval()
    model.set_attn_implementation(request.param)
    weights = {name.removeprefix("hf."): value for name, value in tensors.items() if name.startswith("hf.")}
    found = model.clip.load_state_dict(weights, strict=False)
    assert not found.unexpected_keys
    assert not [name for name in found.missing_keys if "vision" in name or "visual" in name]
    return model


@torch.no_grad()
def features(model, pixel_values, method):
    model.config.dense_attention = method
    return model.get_image_embeds(pixel_values)[1].flatten(1, 2)


@pytest.mark.parametrize("method", METHODS)
def test_features_equal_the_official_ones(model, golden, method, monkeypatch):
    meta, tensors = golden
    for index in range(len(meta["sizes"])):
        table = tensors.get(f"{index}.position_table")
        if table is not None:  # the official one, which is resized in another way
            monkeypatch.setattr(
                model.clip.vision_model.embeddings, "interpolate_pos_encoding", lambda *args, table=table: table[None]
            )
        found = features(model, tensors[f"{index}.pixel_values"], method)
        torch.testing.assert_close(found, tensors[f"{index}.{method}"], atol=1e-5, rtol=0)
        monkeypatch.undo()


def test_with_the_models_own_table_features_are_close(model, golden):
    meta, tensors = golden
    for index in range(1, len(meta["sizes"])):
        for method in METHODS:
            found = features(model, tensors[f"{index}.pixel_values"], method)
            assert (found * tensors[f"{index}.{method}"]).sum(dim=-1).min() > 0.99


def test_plain_is_clip_bit_for_bit(model, golden):
    _, tensors = golden
    pixel_values = tensors["0.pixel_values"]
    clip = CLIPModel(model.config.clip_config).eval()
    clip.load_state_dict(model.clip.state_dict())
    clip.set_attn_implementation(model.config._attn_implementation)
    with torch.no_grad():
        states = clip.vision_model(pixel_values).last_hidden_state
        expected = clip.visual_projection(clip.vision_model.post_layernorm(states))[:, 1:]
    assert torch.equal(features(model, pixel_values, "plain"), torch.nn.functional.normalize(expected, dim=-1))
