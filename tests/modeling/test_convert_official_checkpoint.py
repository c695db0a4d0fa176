"""Reading official checkpoints: files, depths of prompts, and what is wrong with a wrong file."""

import copy
import json
import os
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from zegclip import ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.modeling.convert_official_checkpoint import convert, read_checkpoint

GOLDENS = Path(__file__).parent.parent / "goldens"


@pytest.fixture
def official():
    with safe_open(GOLDENS / "zegclip_a_inductive.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("sd.")]  # noqa: SIM118
        return {name[3:]: file.get_tensor(name) for name in names}


@pytest.fixture
def config():
    heads = {"num_attention_heads": 4}
    return ZegClipConfig(
        clip_config={"vision_config": heads, "text_config": heads},
        decoder_attention_heads=4,
        prompt_templates=["a photo of a {}", "the {}"],
        seen_class_names=["c0", "c2", "c3"],
    )


def run(model):
    generator = torch.Generator().manual_seed(0)
    pixel_values = torch.randn(1, 3, 64, 48, generator=generator)
    with torch.no_grad():
        return model(pixel_values, class_embeds=torch.randn(4, 32, generator=generator)).logits


def test_sizes_come_from_the_tensors_and_the_rest_from_the_configuration(official, config):
    model = convert(official, method="zegclip", config=config)
    vision = model.config.clip_config.vision_config
    assert (vision.hidden_size, vision.patch_size, vision.image_size, vision.num_hidden_layers) == (64, 16, 64, 4)
    assert model.config.num_decoder_layers == 3
    assert model.config.decoder_ffn_dim == 128
    assert model.config.prompt_templates == config.prompt_templates
    assert model.config.seen_class_names == config.seen_class_names
    assert not model.training


def test_pth_of_mmcv_equals_the_state_dict(official, config, tmp_path):
    path = tmp_path / "iter_20000.pth"
    torch.save({"state_dict": official, "meta": {"CLASSES": ("a", "b"), "iter": 20000}, "optimizer": {}}, path)
    expected = run(convert(official, method="zegclip", config=config))
    assert torch.equal(run(convert(path, method="zegclip", config=config)), expected)


def test_converting_leaves_the_state_dict_alone(official, config):
    before = copy.deepcopy(official)
    convert(official, method="zegclip", config=config)
    assert official.keys() == before.keys()
    for name, tensor in official.items():
        assert torch.equal(tensor, before[name]), name


def test_converted_model_saves_and_loads(official, config, tmp_path):
    model = convert(official, method="zegclip", config=config)
    model.save_pretrained(tmp_path)  # its base is nowhere else, so it is saved too
    again = ZegClipForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert torch.equal(run(again), run(model))


def test_reverse_deep_prompts(official, config):
    del official["backbone.prompt_embeddings"]
    official["backbone.deep_prompt_embeddings"] = official["backbone.deep_prompt_embeddings"][:2]
    model = convert(official, method="zegclip", config=config)
    assert model.peft_config["default"].prompted_layers(4) == range(2, 4)
    assert run(model).isfinite().all()


def test_class_embedding_is_folded_once(official, config):
    model = convert(official, method="zegclip", config=config)
    embeddings = model.clip.vision_model.embeddings
    expected = 2 * official["backbone.class_embedding"] + official["backbone.positional_embedding"][0]
    torch.testing.assert_close(embeddings.class_embedding + embeddings.position_embedding.weight[0], expected)


def test_key_list_of_the_full_size_checkpoint_is_taken_whole():
    """Every key of a ViT-B/16 checkpoint is either used or known to be dead."""
    shapes = json.loads((GOLDENS / "official_keys_voc_vitb16.json").read_text())
    with torch.device("meta"):
        state_dict = {name: torch.empty(shape) for name, shape in shapes.items()}
        model = convert(state_dict, method="zegclip")
    assert model.config.clip_config.vision_config.num_attention_heads == 12
    trained = [p.numel() for n, p in model.named_parameters() if "deep_prompt_" in n or "modules_to_save" in n]
    assert sum(trained) == 8_039_168


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda sd: sd.pop("backbone.ln_post.bias"), "missing keys: backbone.ln_post.bias"),
        (lambda sd: sd.pop("backbone.conv1.weight"), "no key 'backbone.conv1.weight'"),
        (lambda sd: sd.update({"decode_head.extra": torch.zeros(1)}), "unexpected keys: decode_head.extra"),
        (lambda sd: sd.clear(), "no key"),
    ],
)
def test_wrong_keys_are_named(official, config, change, message):
    change(official)
    with pytest.raises(ValueError, match=message):
        convert(official, method="zegclip", config=config)


def test_any_missing_key_is_named(official, config):
    """Whichever tensor is missing, the answer is a sentence with its name."""
    dead = ("self_attn", "norm1", "empty_weight")
    last = "decoder_1.layers.2."
    used_of_last = ("multihead_attn.q.", "multihead_attn.k.")
    for name in official:
        if any(part in name for part in dead) or (last in name and not any(part in name for part in used_of_last)):
            continue
        incomplete = {key: tensor for key, tensor in official.items() if key != name}
        if name in ("backbone.deep_prompt_embeddings", "backbone.prompt_embeddings"):
            continue  # their absence says which depth of prompts it is
        with pytest.raises(ValueError, match=name.replace(".", r"\.")):
            convert(incomplete, method="zegclip", config=config)


def test_unknown_method(official):
    with pytest.raises(ValueError, match="method must be 'zegclip'"):
        convert(official, method="other")


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


def test_a_pickle_is_never_executed(tmp_path):
    marker = tmp_path / "executed"
    torch.save({"state_dict": Hostile(marker)}, tmp_path / "hostile.pth")
    with pytest.raises(ValueError, match=r"hostile\.pth: not a checkpoint of plain tensors"):
        read_checkpoint(tmp_path / "hostile.pth")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "content"), [("empty.pth", b""), ("text.pth", b"hello"), ("bad.safetensors", b"x" * 64)]
)
def test_unreadable_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ValueError, match=f"{name}: not a checkpoint"):
        read_checkpoint(tmp_path / name)


def test_files_that_are_missing_or_hold_something_else(tmp_path):
    with pytest.raises(ValueError, match="there is no such checkpoint file"):
        read_checkpoint(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(ValueError, match="holds no state dict"):
        read_checkpoint(tmp_path / "list.pth")
