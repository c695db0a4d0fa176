"""The deep prompt tuner through PEFT's and transformers' own interfaces."""

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch
from huggingface_hub.errors import StrictDataclassError
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from tiny_models import load, logits, names, pictures, trained
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSemanticSegmentation, AutoProcessor, CLIPModel, pipeline

import zegclip
from zegclip import DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.modeling.model_error import ModelError
from zegclip.modeling.spectral_prompt import resize_filter, spectral_prompt


@pytest.fixture
def inputs():
    return {"pixel_values": pictures(2, 32, 40), "class_embeds": names()}


def encoder_of(tuned):
    return tuned.base_model.model.clip.vision_model.encoder


def sized(model, side):
    """The tiny model for pictures of `side` x `side` patches."""
    config = copy.deepcopy(model.config)
    config.clip_config.vision_config.image_size = 8 * side
    torch.manual_seed(0)
    return ZegClipForSemanticSegmentation(config).eval()


class CountedTransforms(TorchDispatchMode):
    """Notes the shape of each picture that is transformed, there and back."""

    def __init__(self):
        super().__init__()
        self.there, self.back = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        result = func(*args, **(kwargs or {}))
        if func is torch.ops.aten._fft_r2c.default:
            self.there.append(tuple(args[0].shape))
        elif func is torch.ops.aten._fft_c2r.default:
            self.back.append(tuple(result.shape))
        return result


@pytest.mark.parametrize(
    ("num_deep_layers", "layers"),
    [(None, range(4)), (3, range(4)), (1, range(2)), (0, range(1)), (-1, range(3, 4)), (-4, range(4))],
)
def test_prompted_layers(num_deep_layers, layers):
    assert DeepPromptConfig(num_deep_layers=num_deep_layers).prompted_layers(4) == layers


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("num_tokens", -1),
        *(("num_tokens", value) for value in ("ten", True, None)),
        *(("dropout", value) for value in (1.0, -0.1, None)),
        *(("spectral_grid_size", value) for value in (0, -4, True)),
        *(("spectral_layers", value) for value in (0, None, ["0"], [True], "01", [])),
        *(("text_prompt_ids", value) for value in (torch.tensor([0, 5, 1]), [0, 5.0, 1], "051", None, [], [0, 1])),
        ("text_prompt_ids", [0, -5, 1]),
        *(("text_prompts", value) for value in ("all", True)),
        *(("base_fingerprint", value) for value in (5, "hello!!", "AAA=", "AAA!AAA==")),
        *(("num_deep_layers", 2.5), ("text_prompt_init", "zeros")),
    ],
)
def test_impossible_values(field, value):
    fields = {"spectral_prompt": True, "text_prompts": "whole", "text_prompt_ids": [0, 5, 1]}
    with pytest.raises((ModelError, StrictDataclassError), match=field):
        DeepPromptConfig(**fields | {field: value})


@pytest.mark.parametrize(("field", "value"), [("num_tokens", 0), ("dropout", 0), ("spectral_grid_size", 1)])
def test_values_at_a_limit(field, value):
    assert getattr(DeepPromptConfig(**{field: value}), field) == value


def test_filtered_layers():
    assert DeepPromptConfig().filtered_layers(4) == set()
    assert DeepPromptConfig(spectral_layers=[]).filtered_layers(4) == set()
    assert DeepPromptConfig(spectral_prompt=True).filtered_layers(4) == {0, 1}
    assert DeepPromptConfig(spectral_prompt=True, spectral_layers=(3,)).filtered_layers(4) == {3}


def test_layers_that_the_encoder_does_not_have():
    for depth in (4, -5):
        with pytest.raises(ModelError, match=f"num_deep_layers={depth}"):
            DeepPromptConfig(num_deep_layers=depth).prompted_layers(4)
    for layers, missing in (([0, 4], 4), ([-1], -1)):
        with pytest.raises(ModelError, match=rf"spectral_layers .*{missing}"):
            DeepPromptConfig(spectral_prompt=True, spectral_layers=layers).filtered_layers(4)


def test_the_filter_lies_where_the_encoder_says(base_folder):
    tuned = get_peft_model(load(base_folder), DeepPromptConfig(spectral_prompt=True))
    assert tuned.peft_config["default"].spectral_grid_size == 4
    parameter = encoder_of(tuned).deep_prompt_filter["default"]
    assert parameter.shape == (4, 3, 32, 2)
    assert parameter.requires_grad
    assert 0.8 * 0.02 < parameter.std() < 1.2 * 0.02
    other = get_peft_model(load(base_folder), DeepPromptConfig(spectral_prompt=True, spectral_grid_size=7))
    assert encoder_of(other).deep_prompt_filter["default"].shape == (7, 4, 32, 2)
    plain = get_peft_model(load(base_folder), DeepPromptConfig())
    assert not len(encoder_of(plain).deep_prompt_filter)


@pytest.mark.parametrize("fields", [{}, {"num_deep_layers": 0}, {"num_deep_layers": -1}, {"num_tokens": 0}])
@pytest.mark.parametrize("layers", [[0], [1], [0, 1], [1, 1, 0]])
def test_filtered_layers_get_the_prompt_once(base_folder, inputs, fields, layers):
    """Two transforms for each filtered layer at the grid that the filter was made for, and what the formula says."""
    tuned = trained(base_folder, spectral_prompt=True, spectral_layers=layers, **fields)
    encoder = encoder_of(tuned)
    square = {**inputs, "pixel_values": inputs["pixel_values"][..., :32]}
    with CountedTransforms() as counted:
        after = logits(tuned, square)
    assert counted.there == counted.back == [(2, 4, 4, 32)] * len(set(layers))

    # The same from outside: the encoder without its filter, and hooks that add the prompt.
    weight = encoder.deep_prompt_filter["default"].detach()
    encoder.prompt_configs["default"].spectral_prompt = False
    without = logits(tuned, square)
    assert not torch.allclose(without, after, atol=1e-3)
    for index in set(layers):

        def add(_module, args):
            states = args[0].clone()
            states[:, -16:] += spectral_prompt(states[:, :1], states[:, -16:], weight, (4, 4))
            return (states, *args[1:])

        encoder.base_layer.layers[index].register_forward_pre_hook(add)
    torch.testing.assert_close(logits(tuned, square), after, atol=1e-6, rtol=0)


@pytest.mark.parametrize("size", [(32, 40), (40, 24), (33, 50), (48, 48), (8, 8), (8, 72)])
def test_the_filter_is_resized_to_any_picture(base_folder, size):
    tuned = trained(base_folder, spectral_prompt=True)
    grid = (-(-size[0] // 8), -(-size[1] // 8))
    inputs = {"pixel_values": torch.randn(2, 3, *size), "class_embeds": torch.randn(3, 32)}
    actual = logits(tuned, inputs)
    assert actual.shape[-2:] == grid
    assert actual.isfinite().all()
    if grid[0] == grid[1]:  # filters are made for square grids
        filters = encoder_of(tuned).deep_prompt_filter
        filters["default"] = torch.nn.Parameter(resize_filter(filters["default"].detach(), grid))
        torch.testing.assert_close(logits(tuned, inputs), actual, atol=1e-6, rtol=0)
    with CountedTransforms() as counted:
        encoder_of(tuned).prompt_configs["default"].spectral_prompt = False
        assert not torch.equal(logits(tuned, inputs), actual)
    assert not counted.there + counted.back


def test_a_plain_clip_gets_spectral_prompts_on_square_pictures(model):
    fields = {"num_tokens": 3, "spectral_prompt": True, "modules_to_save": None}
    whole = get_peft_model(copy.deepcopy(model), DeepPromptConfig(**fields)).eval()
    plain = get_peft_model(CLIPModel(model.clip.config), DeepPromptConfig(**fields)).eval()
    weights = {name.replace(".model.clip.", ".model."): tensor for name, tensor in whole.state_dict().items()}
    missing, _ = plain.load_state_dict(weights, strict=False)
    assert not missing
    pixel_values = torch.randn(2, 3, 32, 32)
    with torch.no_grad():
        expected = whole.base_model.model.get_image_embeds(pixel_values)[2].last_hidden_state
        actual = plain.base_model.model.vision_model(pixel_values).last_hidden_state
        torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)
        wide = torch.randn(2, 3, 16, 72)  # 18 patches: no other square either
        for size in ((16, 72), (16, 32), (48, 48)):
            with pytest.raises(ValueError, match="pass patch_grid"):
                plain.base_model.model.vision_model(torch.randn(2, 3, *size), interpolate_pos_encoding=True)
        plain.base_model.model.vision_model(wide, interpolate_pos_encoding=True, patch_grid=(2, 9))


@pytest.mark.parametrize(("side", "host_side"), [(6, 4), (4, 6)])
def test_the_filter_keeps_its_grid_on_a_clip_of_another_size(model, tmp_path, side, host_side):
    """Two CLIPs that differ in nothing but the size that they are configured for see the same with one adapter."""
    sized(model, side).save_pretrained(tmp_path / "base")
    tuned = trained(tmp_path / "base", spectral_prompt=True)
    tuned.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["spectral_grid_size"] == side

    host = sized(model, host_side)
    base = load(tmp_path / "base")
    weights = base.state_dict()
    name = "clip.vision_model.embeddings.position_embedding.weight"
    pixels = 8 * host_side
    weights[name] = base.clip.vision_model.embeddings.interpolate_pos_encoding(torch.empty(1), pixels, pixels)[0]
    host.load_state_dict(weights)
    inputs = {"pixel_values": torch.randn(2, 3, pixels, pixels), "class_embeds": torch.randn(3, 32)}
    injected = copy.deepcopy(host)
    injected.load_adapter(tmp_path / "adapter")
    for loaded in (
        PeftModel.from_pretrained(copy.deepcopy(host), tmp_path / "adapter"),
        PeftModel.from_pretrained(copy.deepcopy(host), tmp_path / "adapter", low_cpu_mem_usage=True),
        injected,
    ):
        torch.testing.assert_close(logits(loaded.eval(), inputs), logits(tuned, inputs), atol=1e-6, rtol=0)
        assert loaded.peft_config["default"].spectral_grid_size == side


@pytest.mark.parametrize(("num_deep_layers", "expected"), [(None, [24, 24]), (0, [24, 24]), (-1, [21, 24])])
def test_prompts_reach_the_layers_they_should(base_folder, inputs, num_deep_layers, expected):
    tuned = trained(base_folder, num_deep_layers=num_deep_layers)
    lengths = []
    for layer in encoder_of(tuned).base_layer.layers:
        layer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    logits(tuned, inputs)
    assert lengths == expected
    assert ("default" in encoder_of(tuned).deep_prompt_norm) == (num_deep_layers != 0)


@pytest.mark.parametrize(("num_deep_layers", "carried"), [(None, False), (0, True)])
def test_shallow_prompts_are_carried_and_deep_ones_replaced(base_folder, inputs, num_deep_layers, carried):
    """Zeroing what a layer does to the prompt slots changes the output only where slots are carried on."""
    tuned = trained(base_folder, num_deep_layers=num_deep_layers)
    before = logits(tuned, inputs)

    def blank(_module, _args, output):
        output = output.clone()
        output[:, 1:4] = 0
        return output

    encoder_of(tuned).base_layer.layers[0].register_forward_hook(blank)
    assert torch.equal(before, logits(tuned, inputs)) != carried


def test_adapter_reloads_bit_identical_in_a_fresh_process(base_folder, processor, tmp_path):
    text = {"text_prompt_ids": processor.text_prompt_ids()}
    kinds = {
        "deep": {"num_deep_layers": None},
        "one deep": {"num_deep_layers": 1, "spectral_prompt": True},
        "shallow": {"num_deep_layers": 0, "spectral_prompt": True, "spectral_layers": [1], "spectral_grid_size": 3},
        "last": {"num_deep_layers": -1},
        "head alone": {"num_tokens": 0},
        "whole": {"text_prompts": "whole", **text},
        "words": {"text_prompts": "words", "num_tokens": 0, "spectral_prompt": True, **text},
    }
    inputs = {"pixel_values": pictures(2, 32, 40), **processor(text=["cat", "a tree"], return_tensors="pt")}
    expected = {}
    for kind, fields in kinds.items():
        tuned = trained(base_folder, **fields)
        tuned.save_pretrained(tmp_path / kind)
        weights = {name: tensor for name, tensor in tuned.state_dict().items() if ".default" in name}
        for part, stored in (
            ("deep_prompt_filter", "spectral_prompt" in fields),
            ("text_model", "text_prompts" in fields),
            ("vision_model.encoder.deep_prompt_tokens", fields.get("num_tokens") != 0),
        ):
            assert any(part in name for name in weights) == stored, kind
        expected[kind] = {"logits": logits(tuned, inputs), "weights": weights}
    torch.save({"inputs": dict(inputs), "expected": expected}, tmp_path / "expected.pt")
    program = """
import sys, torch, zegclip
from peft import PeftModel
base, folder = sys.argv[1:]
stored = torch.load(f"{folder}/expected.pt", weights_only=True)
load = zegclip.ZegClipForSemanticSegmentation.from_pretrained
for kind, expected in stored["expected"].items():
    adapter = f"{folder}/{kind}"
    injected = load(base)
    injected.load_adapter(adapter)
    models = {
        "PeftModel": PeftModel.from_pretrained(load(base), adapter),
        "PeftModel, low memory": PeftModel.from_pretrained(load(base), adapter, low_cpu_mem_usage=True),
        "load_adapter": injected,
        "adapter folder alone": load(adapter),
        "device map": load(adapter, device_map="cpu"),
    }
    for title, model in models.items():
        state_dict = {name.removeprefix("base_model.model."): tensor for name, tensor in model.state_dict().items()}
        for name, tensor in expected["weights"].items():
            assert torch.equal(state_dict[name.removeprefix("base_model.model.")], tensor), (kind, title, name)
        # Where the weights lie in memory decides how a matrix product rounds its last bit.
        with torch.no_grad():
            actual = model.eval()(**stored["inputs"]).logits
        torch.testing.assert_close(actual, expected["logits"], atol=1e-6, rtol=0, msg=f"{kind}, {title}")
"""
    arguments = [sys.executable, "-c", program, str(base_folder), str(tmp_path)]
    result = subprocess.run(arguments, capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


@pytest.mark.parametrize("kind", ["zegclip", "consensus"])
def test_adapter_alone_brings_its_decode_head(model, inputs, tmp_path, kind):
    """An adapter trained on a plain CLIP knows its head's sizes, which the CLIP's configuration does not."""
    model.clip.save_pretrained(tmp_path / "clip")
    fields = {"num_decoder_layers": 2, "out_indices": [1, 0], "decoder_ffn_dim": 64, "decoder_attention_heads": 2}
    config = ZegClipConfig(clip_config=model.config.clip_config, decode_head_type=kind, **fields)
    base = load(tmp_path / "clip", config=config)
    tuned = get_peft_model(base, DeepPromptConfig(num_tokens=2)).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    assert "clip_config" not in json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["model_config"]
    again = load(tmp_path / "adapter")
    assert again.config.describe_head() == config.describe_head()
    assert type(again.decode_head.original_module) is type(tuned.base_model.model.decode_head.original_module)
    torch.testing.assert_close(logits(again, inputs), logits(tuned, inputs), atol=1e-6, rtol=0)


@pytest.mark.parametrize("kind", ["full", "both", "adapter", "adapter of both"])
def test_every_kind_of_folder_opens_everywhere(model, processor, inputs, tmp_path, kind):
    """Full model, base and adapter, adapter alone, and an adapter whose base has another adapter beside it."""
    folders = {name: tmp_path / name for name in ("full", "both", "adapter", "adapter of both")}
    model.save_pretrained(folders["full"])
    expected = logits(model, inputs)
    if kind != "full":
        tuned = trained(folders["full"])
        tuned.save_pretrained(folders["adapter"])
        tuned.config.save_pretrained(folders["adapter"])
        if kind != "adapter":
            load(folders["adapter"]).save_with_base(folders["both"])
        if kind == "adapter of both":
            tuned = trained(folders["full"], num_tokens=2)
            tuned.peft_config["default"].base_model_name_or_path = str(folders["both"])
            tuned.save_pretrained(folders[kind])
            tuned.config.save_pretrained(folders[kind])
        expected = logits(tuned if kind != "both" else load(folders["adapter"]), inputs)
    processor.save_pretrained(folders[kind])
    loaded = {
        "class": load(folders[kind]),
        "AutoModelForSemanticSegmentation": AutoModelForSemanticSegmentation.from_pretrained(folders[kind]),
        "pipeline": pipeline("zero-shot-image-segmentation", model=str(folders[kind])).model,
    }
    for name, other in loaded.items():
        torch.testing.assert_close(logits(other.eval(), inputs), expected, atol=1e-6, rtol=0, msg=f"{kind}, {name}")
    assert AutoProcessor.from_pretrained(folders[kind]).prompt_templates == processor.prompt_templates


def test_what_a_head_does_not_read_keeps_no_adapter_away(base_folder, inputs, tmp_path):
    tuned = trained(base_folder)
    tuned.save_pretrained(tmp_path / "adapter")
    other = load(base_folder)
    other.config.decoder_window_size = 2  # of spectral heads
    other.load_adapter(tmp_path / "adapter")
    assert torch.equal(logits(other.eval(), inputs), logits(tuned, inputs))


def test_an_adapter_brings_a_head_of_another_kind(model, base_folder, inputs, tmp_path, capfd):
    config = copy.deepcopy(model.config)
    config.descriptor, config.num_decoder_layers = ["text"], 2
    other = ZegClipForSemanticSegmentation(config)
    other.clip.load_state_dict(model.clip.state_dict())
    tuned = get_peft_model(other, DeepPromptConfig(num_tokens=2)).eval()
    tuned.peft_config["default"].base_model_name_or_path = str(base_folder)  # whose head has descriptor and 3 layers
    tuned.save_pretrained(tmp_path / "adapter")
    capfd.readouterr()
    loaded = load(tmp_path / "adapter")
    assert "LOAD REPORT" not in capfd.readouterr().err
    torch.testing.assert_close(logits(loaded, inputs), logits(tuned, inputs), atol=1e-6, rtol=0)


def test_a_missing_base_is_named(base_folder, tmp_path):
    trained(base_folder).save_pretrained(tmp_path / "adapter")
    shutil.rmtree(base_folder)
    with pytest.raises(ValueError, match=str(base_folder)):
        load(tmp_path / "adapter")


def test_a_base_with_other_sizes_is_refused(model, base_folder, tmp_path):
    trained(base_folder).save_pretrained(tmp_path / "adapter")
    config = copy.deepcopy(model.config)
    config.clip_config.vision_config.image_size = 48
    config.save_pretrained(base_folder)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):  # as transformers does for any model
        ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter")


def test_a_peft_model_does_not_save_half_of_itself(base_folder, tmp_path):
    with pytest.raises(ValueError, match="adapter"):
        trained(base_folder).save_with_base(tmp_path / "both")


def test_adapters_are_not_mixed(base_folder, processor, inputs):
    config = DeepPromptConfig(num_tokens=2, text_prompts="whole", text_prompt_ids=processor.text_prompt_ids())
    tuned = trained(base_folder, config)
    tuned.add_adapter("other", config)
    clip = tuned.base_model.model.clip
    for tower in (clip.vision_model, clip.text_model):
        tower.encoder.set_adapter(["default", "other"])
    with pytest.raises(ModelError, match=r"default.*other"):
        clip.vision_model(inputs["pixel_values"], interpolate_pos_encoding=True)
    with pytest.raises(ModelError, match=r"default.*other"):
        tuned.get_class_embeds(**processor(text=["cat"], return_tensors="pt"))


@pytest.mark.parametrize("num_tokens", [3, 0])
def test_merging_is_refused_and_unloading_removes_the_prompts(base_folder, processor, inputs, num_tokens):
    ids = processor.text_prompt_ids()
    tuned = trained(base_folder, num_tokens=num_tokens, text_prompts="whole", text_prompt_ids=ids)
    for merge in (tuned.merge_and_unload, tuned.merge_adapter):
        with pytest.raises(ValueError, match="merged"):
            merge()
    plain, base = tuned.unload(), load(base_folder)
    assert not any("deep_prompt_" in name or "base_layer" in name for name in plain.state_dict())
    text = dict(processor(text=["cat", "b"], return_tensors="pt"))
    with torch.no_grad():
        assert torch.equal(plain.get_class_embeds(**text), base.get_class_embeds(**text))
        pair = (model.get_image_embeds(inputs["pixel_values"])[1] for model in (plain, base))
        assert torch.equal(*pair)
        plain.clip.get_text_features(text["input_ids"])


@pytest.mark.parametrize("num_deep_layers", [None, 0, -1])
def test_initial_tokens_fill_their_interval(base_folder, num_deep_layers):
    tuned = get_peft_model(load(base_folder), DeepPromptConfig(num_tokens=50, num_deep_layers=num_deep_layers))
    bound = (6 / (3 * 8 * 8 + 32)) ** 0.5  # of Xavier's initialisation for a patch's pixels and the tower's width
    for layer in encoder_of(tuned).deep_prompt_tokens["default"]:
        assert 0.95 * bound < layer.max() <= bound
        assert 0.95 * bound < -layer.min() <= bound


def test_adapter_of_the_full_size_model_is_small(tmp_path):
    """Only what is trained is saved: 8,039,168 numbers for ViT-B/16 and 10 prompts."""
    clip_config = {"text_config": {"num_hidden_layers": 1}, "vision_config": {"image_size": 512, "patch_size": 16}}
    model = ZegClipForSemanticSegmentation(ZegClipConfig(clip_config=clip_config))
    get_peft_model(model, DeepPromptConfig(num_tokens=10)).save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    assert sum(torch.Size(shape).numel() for shape in shapes) == 8_039_168
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 33_000_000


PLACES = {"clip": "cpu", "decode_head": "cpu"}
TOWER = {"clip.text_model": "cpu", "clip.visual_projection": "cpu", "clip.text_projection": "cpu"}
VISION = {f"clip.vision_model.{name}": "cpu" for name in ("embeddings", "pre_layrnorm", "post_layernorm")}
APART = TOWER | VISION | {"clip.logit_scale": "cpu", "decode_head": "cpu"}


@pytest.mark.parametrize(
    ("places", "named"),
    [
        (PLACES | {"clip": "disk"}, r"clip\.vision_model\.encoder"),
        (APART | {"clip.vision_model.encoder": "disk"}, r"clip\.vision_model\.encoder"),
        (PLACES | {"decode_head": "disk"}, "decode_head"),
    ],
    ids=["with the whole CLIP", "alone", "decode head"],
)
def test_what_an_adapter_replaces_is_not_offloaded(base_folder, tmp_path, places, named):
    """Its prompts and weights would be loaded somewhere else, and others used."""
    get_peft_model(load(base_folder), DeepPromptConfig(num_tokens=2)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=named):
        load(tmp_path / "adapter", device_map=places, offload_folder=tmp_path / "disk")


def test_single_layers_may_be_offloaded(base_folder, inputs, tmp_path):
    tuned = trained(base_folder)
    tuned.save_pretrained(tmp_path / "adapter")
    layers = {f"clip.vision_model.encoder.layers.{i}": "disk" if i else "cpu" for i in range(2)}
    placed = load(tmp_path / "adapter", device_map=APART | layers, offload_folder=tmp_path / "disk")
    torch.testing.assert_close(logits(placed, inputs), logits(tuned, inputs), atol=1e-6, rtol=0)


def test_template_tokens_of_another_clip(base_folder):
    with pytest.raises(ValueError, match="text_prompt_ids"):
        get_peft_model(load(base_folder), DeepPromptConfig(text_prompts="words", text_prompt_ids=[0, 99999, 1]))


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["get_peft_model", "add_adapter", "load_adapter", "PeftModel", "no autocast"])
def test_what_an_adapter_trains_is_in_float32_on_any_base(base_folder, processor, tmp_path, dtype, way):
    ids = processor.text_prompt_ids()
    fields = {"num_tokens": 3, "spectral_prompt": True, "text_prompts": "words", "text_prompt_ids": ids}
    tuned = trained(base_folder, **fields)
    tuned.save_pretrained(tmp_path / "adapter")
    exact = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    model = base = load(base_folder, dtype=dtype)
    if way == "get_peft_model":
        model = get_peft_model(base, DeepPromptConfig(**fields))
    elif way == "add_adapter":
        base.add_adapter(DeepPromptConfig(**fields))
    elif way == "load_adapter":
        base.load_adapter(tmp_path / "adapter", is_trainable=True)
    else:
        options = {"autocast_adapter_dtype": False} if way == "no autocast" else {}
        model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True, **options)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(parameters) == len(exact)
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if name.endswith("visual_projection.weight")} == {dtype}
    if way in ("PeftModel", "no autocast"):
        for name, p in parameters.items():  # not by way of half precision
            assert torch.equal(p, exact[name]), name
    text = processor(text=["cat", "b"], return_tensors="pt")
    output = model(pixel_values=pictures(1).to(dtype), **text, labels=torch.zeros(1, 32, 32, dtype=torch.long))
    assert output.logits.dtype == dtype
    output.loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in parameters.values())


def test_the_class_embedding_is_added_twice_where_the_adapter_says_so(base_folder, inputs):
    """As by a table whose first row holds it too, which is how official checkpoints are converted."""
    doubled = trained(base_folder, double_class_embedding=True)
    folded = trained(base_folder, double_class_embedding=True)
    folded.peft_config["default"].double_class_embedding = False
    plain = logits(folded, inputs)
    with torch.no_grad():
        embeddings = folded.base_model.model.clip.vision_model.embeddings
        embeddings.position_embedding.weight[0] += embeddings.class_embedding
    for size in ((32, 32), (32, 40)):  # with the table as it is, and resized
        sized_inputs = inputs | {"pixel_values": torch.randn(1, 3, *size)}
        torch.testing.assert_close(logits(doubled, sized_inputs), logits(folded, sized_inputs))
    assert not torch.allclose(logits(doubled, inputs), plain)
    assert torch.equal(logits(copy.deepcopy(doubled), inputs), logits(doubled, inputs))
    with doubled.disable_adapter():
        assert torch.equal(logits(doubled, inputs), logits(load(base_folder), inputs))


def test_a_tower_of_its_own_cannot_double_the_class_embedding(base_folder):
    clip = CLIPModel.from_pretrained(base_folder)
    with pytest.raises(ValueError, match="double_class_embedding"):
        get_peft_model(clip, DeepPromptConfig(double_class_embedding=True, modules_to_save=None))


def test_the_weight_of_a_blend_is_that_of_the_adapter_it_was_chosen_for(model, tmp_path):
    untouched = copy.deepcopy(model)
    model.add_adapter(DeepPromptConfig(num_tokens=2), "first")
    model.config.training_free_weight = 0.1
    model.add_adapter(DeepPromptConfig(num_tokens=2), "second")
    assert model.config.training_free_weight == 0
    model.set_adapter("first")
    assert model.config.training_free_weight == 0.1
    model.set_adapter("second")
    assert model.config.training_free_weight == 0

    model.set_adapter("first")
    model.save_pretrained(tmp_path / "first")
    model.add_adapter(DeepPromptConfig.from_pretrained(tmp_path / "first"), "third")
    assert model.config.training_free_weight == 0

    wrapped = get_peft_model(copy.deepcopy(untouched), DeepPromptConfig(num_tokens=2), "first")
    wrapped.base_model.model.config.training_free_weight = 0.1
    wrapped.add_adapter("second", DeepPromptConfig(num_tokens=2))
    wrapped.set_adapter("second")
    assert wrapped.base_model.model.config.training_free_weight == 0
    wrapped.set_adapter("first")
    assert wrapped.base_model.model.config.training_free_weight == 0.1

    # One that was stored before there was such a weight, on a base that has one.
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    for name in ("adapter_config.json", "adapter_model.safetensors"):
        shutil.copy(zegclip.DEFAULT_MODEL / name, adapter)
    described = json.loads((adapter / "adapter_config.json").read_text())
    assert described["model_config"].pop("training_free_weight") > 0
    described["base_model_name_or_path"] = str(zegclip.DEFAULT_MODEL)
    (adapter / "adapter_config.json").write_text(json.dumps(described))
    assert ZegClipConfig.from_pretrained(zegclip.DEFAULT_MODEL).training_free_weight > 0
    for cls in (ZegClipConfig, ZegClipForSemanticSegmentation, AutoModelForSemanticSegmentation):
        loaded = cls.from_pretrained(adapter)
        assert getattr(loaded, "config", loaded).training_free_weight == 0
