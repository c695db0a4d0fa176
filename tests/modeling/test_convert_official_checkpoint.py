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
from tiny_models import load, logits, pictures, random

from zegclip import ZegClipConfig
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
    return request.getfixturevalue(state_dict), {"method": request.param, "config": request.getfixturevalue(config)}


def run(model):
    dim = model.config.clip_config.projection_dim
    return logits(model, {"pixel_values": pictures(1, 64, 48), "class_embeds": random(4, dim)})


def test_sizes_come_from_the_tensors_and_the_rest_from_the_configuration(case):
    state_dict, arguments = case
    before = copy.deepcopy(state_dict)
    model = convert(state_dict, **arguments)
    given, config, prompts = arguments["config"], model.config, model.peft_config["default"]
    vision = config.clip_config.vision_config
    sizes = (vision.hidden_size, vision.patch_size, vision.image_size, vision.num_hidden_layers)
    assert config.decoder_ffn_dim == 128
    for name in ("prompt_templates", "seen_class_names", "decoder_attention_heads", "decoder_window_size"):
        assert getattr(config, name) == getattr(given, name)
    assert not model.training
    if arguments["method"] == "zegclip":
        assert sizes == (64, 16, 64, 4)
        assert config.num_decoder_layers == 3
        assert not prompts.spectral_prompt
    else:
        assert sizes == (48, 16, 96, 4)
        assert (config.decode_head_type, config.num_decoder_layers) == ("spectral", 2)
        assert config.decoder_low_frequency_heads == 7
        assert (config.focal_weight, config.dice_weight, config.ssim_weight) == (100, 0, 1)
        assert (prompts.num_tokens, prompts.num_deep_layers) == (3, 2)
        assert (prompts.spectral_prompt, prompts.spectral_layers, prompts.spectral_grid_size) == (True, [0, 1], 6)
    # The state dict is as it was.
    assert state_dict.keys() == before.keys()
    for name, tensor in state_dict.items():
        assert torch.equal(tensor, before[name]), name


def test_pth_of_mmcv_equals_the_state_dict(case, tmp_path):
    state_dict, arguments = case
    path = tmp_path / "iter_20000.pth"
    torch.save({"state_dict": state_dict, "meta": {"CLASSES": ("a", "b"), "iter": 20000}, "optimizer": {}}, path)
    assert torch.equal(run(convert(path, **arguments)), run(convert(state_dict, **arguments)))


def test_converted_model_saves_and_loads(case, tmp_path):
    state_dict, arguments = case
    model = convert(state_dict, **arguments)
    model.save_pretrained(tmp_path)  # its base is nowhere else, so it is saved too
    again = load(tmp_path)
    assert again.peft_config["default"].spectral_prompt == (arguments["method"] == "spt-seg")
    stored = again.state_dict()
    for name, tensor in model.state_dict().items():
        assert torch.equal(stored[name], tensor), name
    # Where the weights lie in memory decides how a matrix product rounds its last bit.
    torch.testing.assert_close(run(again), run(model), atol=1e-5, rtol=0)


@pytest.mark.parametrize(
    ("missing", "layers", "filtered"),
    [("backbone.prompt_embeddings", range(2, 4), set()), ("backbone.deep_prompt_embeddings", range(1), {0})],
    ids=["reverse deep", "shallow"],
)
def test_other_depths_of_prompts(case, missing, layers, filtered):
    state_dict, arguments = case
    del state_dict[missing]
    if missing == "backbone.prompt_embeddings":
        state_dict["backbone.deep_prompt_embeddings"] = state_dict["backbone.deep_prompt_embeddings"][:2]
    model = convert(state_dict, **arguments)
    prompts = model.peft_config["default"]
    assert prompts.prompted_layers(4) == layers
    assert prompts.filtered_layers(4) == (filtered if arguments["method"] == "spt-seg" else set())
    assert any("filter" in name for name in model.state_dict()) == prompts.spectral_prompt
    assert run(model).isfinite().all()


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
    with pytest.raises(ModelError, match=r"l_q\.weight.*28.*decoder_attention_heads=4"):
        convert(spectral, method="spt-seg", config=spectral_config)


def test_head_counts_that_divide_the_checkpoint_s_widths_alone(official):
    """ViT-B/16's 768 and 512 cannot be shared out among 5, 7 and 3 heads, but this checkpoint's 40, 28 and 36 can."""
    widths = {
        "backbone": {64: 40, 192: 120, 32: 36},
        "text_encoder": {32: 28, 96: 84},
        "decode_head": {32: 36, 64: 72},
    }
    other = {}
    for name, tensor in official.items():
        other[name] = torch.randn([widths[name.split(".")[0]].get(side, side) for side in tensor.shape])
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
    assert run(model).isfinite().all()
    with pytest.raises(ModelError, match="decoder_attention_heads=8"):
        convert(other, method="zegclip", config={"clip_config": heads})


@pytest.mark.parametrize(
    ("name", "shape", "named"),
    [
        ("decode_head.decoder_1.layers.0.hlfs.l_q.weight", (32, 32), r"l_q\.weight"),
        ("backbone.complex_weight", (6, 3, 48, 2), "SPT-SEG"),
    ],
)
def test_spt_seg_sizes_that_do_not_fit(spectral, spectral_config, name, shape, named):
    spectral[name] = torch.zeros(shape)
    with pytest.raises(ModelError, match=named):
        convert(spectral, method="spt-seg", config=spectral_config)


def test_spt_seg_head_counts_that_do_not_fit(spectral):
    config = ZegClipConfig(clip_config={"vision_config": {"hidden_size": 35, "num_attention_heads": 5}})
    with pytest.raises(ModelError, match="48"):
        convert(spectral, method="spt-seg", config=config)


@pytest.mark.parametrize(("method", "right"), [("zegclip", "spt-seg"), ("spt-seg", "zegclip")])
def test_a_checkpoint_of_the_other_method_names_it(official, spectral, method, right):
    checkpoint = spectral if method == "zegclip" else official
    with pytest.raises(ModelError, match=rf"'backbone\.complex_weight'.* '{right}'"):
        convert(checkpoint, method=method)


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
        (lambda sd: sd.pop("backbone.ln_post.bias"), r"backbone\.ln_post\.bias"),
        (lambda sd: sd.pop("backbone.conv1.weight"), r"backbone\.conv1\.weight"),
        (lambda sd: sd.update({"decode_head.extra": torch.zeros(1)}), r"decode_head\.extra"),
        (lambda sd: sd.clear(), "no key"),
        (lambda sd: sd.update({"backbone.proj": torch.zeros(64)}), r"backbone\.proj.*\(64,\)"),
        (lambda sd: sd.update({"backbone.conv1.weight": torch.zeros(64, 3, 0, 0)}), r"\(64, 3, 0, 0\)"),
        (lambda sd: sd["backbone.ln_post.bias"].fill_(float("nan")), r"backbone\.ln_post\.bias.*NaN"),
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
    with pytest.raises(ModelError, match=r"method.*'other'"):
        convert(official, method="other")


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (os.system, (f"touch {self.marker}",))


def test_a_pickle_is_never_executed(tmp_path):
    marker = tmp_path / "executed"
    torch.save({"state_dict": Hostile(marker)}, tmp_path / "hostile.pth")
    with pytest.raises(ModelError, match=r"hostile\.pth"):
        read_checkpoint(tmp_path / "hostile.pth")
    assert not marker.exists()


@pytest.mark.parametrize(
    ("name", "content"),
    [
        ("empty.pth", b""),
        ("text.pth", b"hello"),
        ("bad.safetensors", b"x" * 64),
        ("missing.pth", None),
        ("list.pth", [1, 2]),
        ("number_key.pth", {1: torch.zeros(2)}),
        ("number.pth", {"a": 3}),
    ],
)
def test_files_that_hold_no_checkpoint(tmp_path, name, content):
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        torch.save(content, tmp_path / name)
    with pytest.raises(ModelError, match=name):
        read_checkpoint(tmp_path / name)
