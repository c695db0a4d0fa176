"""Reading official checkpoints: files, depths of prompts, and what is wrong with a wrong file."""

import copy
import json
import os
import re
from pathlib import Path

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from safetensors import safe_open

from zegclip import ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.modeling.convert_official_checkpoint import convert, read_checkpoint
from zegclip.modeling.model_error import ModelError

GOLDENS = Path(__file__).parent.parent / "goldens"


def read_state_dict(name, prefix):
    with safe_open(GOLDENS / name, "pt") as file:
        names = [name for name in file.keys() if name.startswith(prefix)]  # noqa: SIM118
        return {name.removeprefix(prefix): file.get_tensor(name) for name in names}


@pytest.fixture
def official():
    return read_state_dict("zegclip_a_inductive.safetensors", "sd.")


@pytest.fixture
def spectral():
    """An SPT-SEG checkpoint; its deep prompts go to 3 of 4 layers."""
    return read_state_dict("spt_c_grid6_transductive.safetensors", "state_dict.")


@pytest.fixture
def config():
    heads = {"num_attention_heads": 4}
    return ZegClipConfig(
        clip_config={"vision_config": heads, "text_config": heads},
        decoder_attention_heads=4,
        prompt_templates=["a photo of a {}", "the {}"],
        seen_class_names=["c0", "c2", "c3"],
    )


@pytest.fixture
def spectral_config(config):
    config.decoder_attention_heads = 8
    config.decoder_window_size = 2
    return config


@pytest.fixture(params=["zegclip", "spt-seg"])
def case(request):
    """A state dict of each method, with the other arguments of `convert`."""
    state_dict, config = ("official", "config") if request.param == "zegclip" else ("spectral", "spectral_config")
    return request.getfixturevalue(state_dict), {
        "method": request.param,
        "config": request.getfixturevalue(config),
    }


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


def test_pth_of_mmcv_equals_the_state_dict(case, tmp_path):
    state_dict, arguments = case
    path = tmp_path / "iter_20000.pth"
    torch.save({"state_dict": state_dict, "meta": {"CLASSES": ("a", "b"), "iter": 20000}, "optimizer": {}}, path)
    expected = run(convert(state_dict, **arguments))
    assert torch.equal(run(convert(path, **arguments)), expected)


def test_converted_model_saves_and_loads(case, tmp_path):
    state_dict, arguments = case
    model = convert(state_dict, **arguments)
    model.save_pretrained(tmp_path)  # its base is nowhere else, so it is saved too
    again = ZegClipForSemanticSegmentation.from_pretrained(tmp_path).eval()
    assert again.peft_config["default"].spectral_prompt == (arguments["method"] == "spt-seg")
    stored = again.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(stored[name], tensor), name
    # Where the weights lie in memory decides how a matrix product rounds its last bit.
    torch.testing.assert_close(run(again), run(model), atol=1e-5, rtol=0)


def test_converting_leaves_the_state_dict_alone(official, config):
    before = copy.deepcopy(official)
    convert(official, method="zegclip", config=config)
    assert official.keys() == before.keys()
    for name, tensor in official.items():
        assert torch.equal(tensor, before[name]), name


def test_reverse_deep_prompts(official, config):
    del official["backbone.prompt_embeddings"]
    official["backbone.deep_prompt_embeddings"] = official["backbone.deep_prompt_embeddings"][:2]
    model = convert(official, method="zegclip", config=config)
    assert model.peft_config["default"].prompted_layers(4) == range(2, 4)
    assert run(model).isfinite().all()


def test_spt_seg_sizes_come_from_the_tensors_and_the_rest_from_the_configuration(spectral, spectral_config):
    model = convert(spectral, method="spt-seg", config=spectral_config)
    config, prompts = model.config, model.peft_config["default"]
    vision = config.clip_config.vision_config
    assert (vision.hidden_size, vision.patch_size, vision.image_size, vision.num_hidden_layers) == (48, 16, 96, 4)
    assert config.decode_head_type == "spectral"
    assert (config.num_decoder_layers, config.decoder_ffn_dim) == (2, 128)
    assert (config.decoder_attention_heads, config.decoder_low_frequency_heads) == (8, 7)
    assert config.decoder_window_size == spectral_config.decoder_window_size
    assert (config.focal_weight, config.dice_weight, config.ssim_weight) == (100, 0, 1)
    assert config.prompt_templates == spectral_config.prompt_templates
    assert config.seen_class_names == spectral_config.seen_class_names
    assert (prompts.num_tokens, prompts.num_deep_layers) == (3, 2)
    assert (prompts.spectral_prompt, prompts.spectral_layers, prompts.spectral_grid_size) == (True, [0, 1], 6)
    assert not model.training


def test_spt_seg_filter_may_be_of_another_grid_than_the_positions(spectral, spectral_config):
    spectral["backbone.complex_weight"] = torch.randn(4, 3, 48, 2)
    model = convert(spectral, method="spt-seg", config=spectral_config)
    assert model.peft_config["default"].spectral_grid_size == 4
    assert model.config.clip_config.vision_config.image_size == 96
    stored = model.clip.vision_model.encoder.deep_prompt_filter["default"]
    assert torch.equal(stored, spectral["backbone.complex_weight"])


def test_spt_seg_low_frequency_heads_follow_from_all_heads(spectral, spectral_config):
    spectral_config.decoder_attention_heads = 16
    model = convert(spectral, method="spt-seg", config=spectral_config)
    assert model.config.decoder_low_frequency_heads == 14
    spectral_config.decoder_attention_heads = 4
    with pytest.raises(ModelError, match=r"l_q\.weight has 28 rows.*decoder_attention_heads=4") as error:
        convert(spectral, method="spt-seg", config=spectral_config)
    assert "\n" not in str(error.value)


def test_head_counts_that_divide_the_checkpoint_s_widths_alone(official):
    """ViT-B/16's 768 and 512 cannot be shared out among 5, 7 and 3 heads, but this checkpoint's 40, 28 and 36 can."""
    widths = {
        "backbone": {64: 40, 192: 120, 32: 36},
        "text_encoder": {32: 28, 96: 84},
        "decode_head": {32: 36, 64: 72},
    }
    other = {}
    for name, tensor in official.items():
        shape = [widths[name.split(".")[0]].get(side, side) for side in tensor.shape]
        other[name] = torch.randn(shape)
    other["text_encoder.text_projection"] = torch.randn(28, 36)
    heads = {"vision_config": {"num_attention_heads": 5}, "text_config": {"num_attention_heads": 7}}
    with pytest.raises(StrictDataclassError):
        ZegClipConfig(decoder_attention_heads=3)
    config = {"clip_config": heads, "decoder_attention_heads": 3, "prompt_templates": ["the {}"]}
    model = convert(other, method="zegclip", config=config)
    clip = model.config.clip_config
    assert (clip.vision_config.hidden_size, clip.text_config.hidden_size, clip.projection_dim) == (40, 28, 36)
    assert (clip.vision_config.num_attention_heads, clip.text_config.num_attention_heads) == (5, 7)
    assert (model.config.decoder_attention_heads, model.config.prompt_templates) == (3, ["the {}"])
    assert model(torch.randn(1, 3, 64, 64), class_embeds=torch.randn(4, 36)).logits.isfinite().all()
    with pytest.raises(ModelError, match="decoder_attention_heads=8 does not divide"):
        convert(other, method="zegclip", config={"clip_config": heads})


def test_spt_seg_head_counts_that_do_not_fit(spectral):
    config = ZegClipConfig(clip_config={"vision_config": {"hidden_size": 35, "num_attention_heads": 5}})
    with pytest.raises(ModelError, match=r"tensors do not fit: The hidden size \(48\) is not a multiple"):
        convert(spectral, method="spt-seg", config=config)


@pytest.mark.parametrize(
    ("name", "shape", "message"),
    [
        ("decode_head.decoder_1.layers.0.hlfs.l_q.weight", (32, 32), "l_q.weight has 32 rows"),
        ("backbone.complex_weight", (6, 3, 48, 2), "Not an official SPT-SEG checkpoint, .* its tensors do not fit"),
    ],
)
def test_spt_seg_sizes_that_do_not_fit(spectral, spectral_config, name, shape, message):
    spectral[name] = torch.zeros(shape)
    with pytest.raises(ModelError, match=message) as error:
        convert(spectral, method="spt-seg", config=spectral_config)
    assert "\n" not in str(error.value)


def test_spt_seg_shallow_prompts_have_one_spectral_prompt(spectral, spectral_config):
    del spectral["backbone.deep_prompt_embeddings"]
    model = convert(spectral, method="spt-seg", config=spectral_config)
    prompts = model.peft_config["default"]
    assert (prompts.num_deep_layers, prompts.spectral_prompt, prompts.spectral_layers) == (0, True, [0])
    assert run(model).isfinite().all()


def test_spt_seg_reverse_deep_prompts_have_no_spectral_prompt(spectral, spectral_config):
    del spectral["backbone.prompt_embeddings"]
    model = convert(spectral, method="spt-seg", config=spectral_config)
    assert model.peft_config["default"].prompted_layers(4) == range(2, 4)
    assert not model.peft_config["default"].spectral_prompt
    assert not any("filter" in name for name in model.state_dict())
    assert run(model).isfinite().all()


@pytest.mark.parametrize(("method", "right"), [("zegclip", "spt-seg"), ("spt-seg", "zegclip")])
def test_a_checkpoint_of_the_other_method_names_it(official, spectral, method, right):
    checkpoint = spectral if method == "zegclip" else official
    with pytest.raises(ModelError, match=rf"'backbone\.complex_weight'.* '{right}'\.$") as error:
        convert(checkpoint, method=method)
    assert "\n" not in str(error.value)


def test_class_embedding_is_folded_once(official, config):
    model = convert(official, method="zegclip", config=config)
    embeddings = model.clip.vision_model.embeddings
    expected = 2 * official["backbone.class_embedding"] + official["backbone.positional_embedding"][0]
    torch.testing.assert_close(embeddings.class_embedding + embeddings.position_embedding.weight[0], expected)


@pytest.mark.parametrize(
    ("file", "method", "keys", "trained"),
    [
        ("official_keys_voc_vitb16.json", "zegclip", None, 8_039_168),
        ("official_keys_spt_seg_voc_vitb16.json", "spt-seg", 412, 10_524_224),  # tests/test_configs.py derives it
    ],
)
def test_key_list_of_the_full_size_checkpoint_is_taken_whole(file, method, keys, trained):
    """Every key of a ViT-B/16 checkpoint is either used or known to be dead."""
    shapes = json.loads((GOLDENS / file).read_text())
    assert keys in (None, len(shapes))
    with torch.device("meta"):
        model = convert({name: torch.empty(shape) for name, shape in shapes.items()}, method=method)
    assert model.config.clip_config.vision_config.num_attention_heads == 12
    found = [p.numel() for n, p in model.named_parameters() if "deep_prompt_" in n or "modules_to_save" in n]
    assert sum(found) == trained


@pytest.mark.parametrize(
    ("change", "named"),
    [
        (lambda sd: sd.pop("backbone.ln_post.bias"), "missing keys: backbone.ln_post.bias"),
        (lambda sd: sd.pop("backbone.conv1.weight"), "no key 'backbone.conv1.weight'"),
        (lambda sd: sd.update({"decode_head.extra": torch.zeros(1)}), "unexpected keys: decode_head.extra"),
        (lambda sd: sd.clear(), "no key"),
        (lambda sd: sd.update({"backbone.proj": torch.zeros(64)}), r"'backbone\.proj' has the shape \(64,\)"),
        (lambda sd: sd.update({"backbone.conv1.weight": torch.zeros(64, 3, 0, 0)}), r"has the shape \(64, 3, 0, 0\)"),
        (lambda sd: sd["backbone.ln_post.bias"].fill_(float("nan")), r"'backbone\.ln_post\.bias' holds NaN"),
    ],
)
def test_wrong_keys_are_named(case, change, named):
    state_dict, arguments = case
    change(state_dict)
    with pytest.raises(ModelError, match=named):
        convert(state_dict, **arguments)


def test_any_missing_key_is_named_unless_it_is_dead(case):
    state_dict, arguments = case
    dead = ("self_attn", "norm1", "empty_weight")
    if arguments["method"] == "zegclip":
        last, dead_in_last = "decoder_1.layers.2.", (".v.", "attn.proj.", "linear1", "linear2", "norm2", "norm3")
        # Of three layers: self-attention and its norm; twelve more of the last; one other.
        number = 3 * (4 + 2) + 12 + 1
    else:
        dead += ("multihead_attn", "h_proj", "proj_fre")
        last, dead_in_last = "decoder_1.layers.1.", ("linear1", "linear2", "norm2", "norm3", "hlfs.proj")
        # Of both layers: self-attention, its norm, cross-attention, a projection; ten more of the last; three others.
        number = 2 * (4 + 2 + 8 + 2) + 10 + 3
    used = {
        name: tensor
        for name, tensor in state_dict.items()
        if not any(part in name for part in dead + (dead_in_last if last in name else ()))
    }
    assert len(state_dict) - len(used) == number
    assert torch.equal(run(convert(used, **arguments)), run(convert(state_dict, **arguments)))
    for name in used.keys() - {"backbone.deep_prompt_embeddings", "backbone.prompt_embeddings"}:
        # The absence of those two means another depth of prompts.
        with pytest.raises(ModelError, match=re.escape(name)):
            convert({key: tensor for key, tensor in used.items() if key != name}, **arguments)


def test_unknown_method(official):
    with pytest.raises(ModelError, match="method must be 'zegclip' or 'spt-seg', not 'other'"):
        convert(official, method="other")


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


def test_a_pickle_is_never_executed(tmp_path):
    marker = tmp_path / "executed"
    torch.save({"state_dict": Hostile(marker)}, tmp_path / "hostile.pth")
    with pytest.raises(ModelError, match=r"hostile\.pth: not a checkpoint of plain tensors"):
        read_checkpoint(tmp_path / "hostile.pth")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "content"), [("empty.pth", b""), ("text.pth", b"hello"), ("bad.safetensors", b"x" * 64)]
)
def test_unreadable_files(tmp_path, name, content):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ModelError, match=f"{name}: not a checkpoint"):
        read_checkpoint(tmp_path / name)


def test_files_that_are_missing_or_hold_something_else(tmp_path):
    with pytest.raises(ModelError, match="there is no such checkpoint file"):
        read_checkpoint(tmp_path / "none.pth")
    for content in ([1, 2], {1: torch.zeros(2)}, {"a": 3}):
        torch.save(content, tmp_path / "other.pth")
        with pytest.raises(ModelError, match=r"other\.pth: holds no state dict"):
            read_checkpoint(tmp_path / "other.pth")
