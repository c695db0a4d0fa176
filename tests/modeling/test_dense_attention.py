"""Features of the training-free methods, beside the official ones."""

import pytest
import torch
from tiny_models import dense_model, golden_files, read_dense_golden
from transformers import CLIPModel

from zegclip import DeepPromptConfig, ZegClipForSemanticSegmentation

METHODS = ["plain", "maskclip", "sclip", "clearclip", "naclip"]


@pytest.fixture(scope="module", params=golden_files("dense_*.safetensors"), ids=lambda path: path.stem)
def golden(request):
    return read_dense_golden(request.param)


@pytest.fixture(params=["eager", "sdpa"])
def model(request, golden):
    model = dense_model(*golden)
    model.set_attn_implementation(request.param)
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
            assert (found * tensors[f"{index}.{method}"]).sum(dim=-1).min() > 0.998


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
    model.config.dense_attention = "naclip"
    with torch.no_grad():
        assert torch.equal(model.clip.vision_model(pixel_values).last_hidden_state, states)  # CLIP's own methods


@pytest.mark.parametrize("golden", golden_files("dense_*.safetensors")[:1], ids=["first"], indirect=True)
@pytest.mark.parametrize("method", METHODS)
def test_precisions_states_and_graphs(model, golden, method):
    _, tensors = golden
    pixel_values = tensors["0.pixel_values"]
    expected = features(model, pixel_values, method)
    torch.compiler.reset()
    compiled = torch.compile(lambda values: model.get_image_embeds(values)[1], backend="eager", fullgraph=True)
    with torch.no_grad():
        torch.testing.assert_close(compiled(pixel_values).flatten(1, 2), expected, atol=1e-6, rtol=0)
        outputs = model(pixel_values, class_embeds=torch.eye(expected.shape[-1])[:3], output_hidden_states=True)
    assert len(outputs.hidden_states) == model.config.clip_config.vision_config.num_hidden_layers + 1
    for dtype in (torch.bfloat16, torch.float16):
        found = features(model.to(dtype), pixel_values.to(dtype), method).float()
        assert (found * expected).sum(dim=-1).min() > 0.98


def test_an_adapters_prompts_take_clips_own_last_layer(model, golden):
    _, tensors = golden
    pixel_values = tensors["0.pixel_values"]
    plain, dense = (features(model, pixel_values, method) for method in ("plain", "naclip"))
    assert not torch.allclose(plain, dense, atol=1e-2)
    model.add_adapter(DeepPromptConfig(num_tokens=0))
    model.eval()
    assert torch.equal(features(model, pixel_values, "naclip"), features(model, pixel_values, "plain"))
    model.disable_adapters()
    assert torch.equal(features(model, pixel_values, "naclip"), dense)


def test_it_is_saved_and_can_be_asked_for(model, golden, tmp_path):
    model.clip.save_pretrained(tmp_path)  # a plain CLIP
    loaded = ZegClipForSemanticSegmentation.from_pretrained(
        tmp_path, decode_head_type="similarity", dense_attention="naclip", naclip_sigma=model.config.naclip_sigma
    ).eval()
    pixel_values = golden[1]["0.pixel_values"]
    expected = features(model, pixel_values, "naclip")
    with torch.no_grad():
        torch.testing.assert_close(loaded.get_image_embeds(pixel_values)[1].flatten(1, 2), expected, atol=1e-6, rtol=0)
    loaded.save_pretrained(tmp_path / "again")
    assert ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "again").config.dense_attention == "naclip"
