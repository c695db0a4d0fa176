"""The deep prompt tuner through PEFT's and transformers' own interfaces."""

import json
import subprocess
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open

from zegclip import DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation


@pytest.fixture
def inputs():
    generator = torch.Generator().manual_seed(0)
    class_embeds = torch.nn.functional.normalize(torch.randn(3, 32, generator=generator), dim=-1)
    return {"pixel_values": torch.randn(2, 3, 32, 40, generator=generator), "class_embeds": class_embeds}


@pytest.fixture
def base_folder(model, tmp_path):
    folder = tmp_path / "base"
    model.save_pretrained(folder)
    return folder


def load_base(folder):
    return ZegClipForSemanticSegmentation.from_pretrained(folder).eval()


def trained(folder, **kwargs):
    """A PEFT model whose trained tensors are all away from their initial values."""
    torch.manual_seed(len(kwargs))
    tuned = get_peft_model(load_base(folder), DeepPromptConfig(**{"num_tokens": 3} | kwargs)).eval()
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter += 0.1 * torch.randn_like(parameter)
    return tuned


def logits(model, inputs):
    with torch.no_grad():
        return model(**inputs).logits


@pytest.mark.parametrize(
    ("num_deep_layers", "layers"),
    [(None, range(0, 4)), (3, range(0, 4)), (1, range(0, 2)), (0, range(0, 1)), (-1, range(3, 4)), (-4, range(0, 4))],
)
def test_prompted_layers(num_deep_layers, layers):
    assert DeepPromptConfig(num_deep_layers=num_deep_layers).prompted_layers(4) == layers


@pytest.mark.parametrize("num_deep_layers", [4, -5])
def test_depths_that_do_not_fit(num_deep_layers):
    with pytest.raises(ValueError, match="does not fit an encoder of 4 layers"):
        DeepPromptConfig(num_deep_layers=num_deep_layers).prompted_layers(4)


@pytest.mark.parametrize(("field", "value"), [("num_tokens", 0), ("dropout", 1.0)])
def test_impossible_values(field, value):
    with pytest.raises(ValueError, match=f"{field} must be"):
        DeepPromptConfig(**{field: value})


@pytest.mark.parametrize("num_deep_layers", [None, 0, -1])
def test_prompts_reach_the_layers_they_should(base_folder, inputs, num_deep_layers):
    tuned = trained(base_folder, num_deep_layers=num_deep_layers)
    encoder = tuned.base_model.model.clip.vision_model.encoder
    lengths = []
    for layer in encoder.base_layer.layers:
        layer.register_forward_pre_hook(lambda _, args: lengths.append(args[0].shape[1]))
    logits(tuned, inputs)
    expected = {None: [24, 24], 0: [24, 24], -1: [21, 24]}[num_deep_layers]
    assert lengths == expected
    assert ("default" in encoder.deep_prompt_norm) == (num_deep_layers != 0)


def test_shallow_prompts_are_carried_and_deep_ones_replaced(base_folder, inputs):
    """Zeroing what a layer does to the prompt slots changes the output only where slots are carried on."""
    results = {}
    for depth in (None, 0):
        tuned = trained(base_folder, num_deep_layers=depth)
        first = tuned.base_model.model.clip.vision_model.encoder.base_layer.layers[0]
        before = logits(tuned, inputs)

        def blank(_module, _args, output):
            output = output.clone()
            output[:, 1:4] = 0
            return output

        first.register_forward_hook(blank)
        results[depth] = torch.equal(before, logits(tuned, inputs))
    assert results == {None: True, 0: False}


@pytest.mark.parametrize("num_deep_layers", [None, 1, 0, -1])
def test_adapter_reloads_bit_identical_in_a_fresh_process(base_folder, inputs, tmp_path, num_deep_layers):
    tuned = trained(base_folder, num_deep_layers=num_deep_layers)
    tuned.save_pretrained(tmp_path / "adapter")
    weights = {name: tensor for name, tensor in tuned.state_dict().items() if ".default" in name}
    torch.save({"inputs": inputs, "logits": logits(tuned, inputs), "weights": weights}, tmp_path / "expected.pt")
    program = """
import sys, torch, zegclip
from peft import PeftModel
base, adapter, expected = sys.argv[1:]
expected = torch.load(expected, weights_only=True)
load = zegclip.ZegClipForSemanticSegmentation.from_pretrained
injected = load(base)
injected.load_adapter(adapter)
models = {
    "PeftModel": PeftModel.from_pretrained(load(base), adapter),
    "PeftModel, low memory": PeftModel.from_pretrained(load(base), adapter, low_cpu_mem_usage=True),
    "load_adapter": injected,
    "adapter folder alone": load(adapter),
}
for title, model in models.items():
    state_dict = {name.removeprefix("base_model.model."): tensor for name, tensor in model.state_dict().items()}
    for name, tensor in expected["weights"].items():
        assert torch.equal(state_dict[name.removeprefix("base_model.model.")], tensor), (title, name)
    # Where the weights lie in memory decides how a matrix product rounds its last bit.
    with torch.no_grad():
        torch.testing.assert_close(model.eval()(**expected["inputs"]).logits, expected["logits"], atol=1e-6, rtol=0)
"""
    arguments = [str(base_folder), str(tmp_path / "adapter"), str(tmp_path / "expected.pt")]
    result = subprocess.run([sys.executable, "-c", program, *arguments], capture_output=True, text=True, check=False)
    assert result.returncode == 0, result.stderr


def test_adapter_alone_brings_its_decode_head(model, inputs, tmp_path):
    """An adapter trained on a plain CLIP knows its head's sizes, which the CLIP's configuration does not."""
    model.clip.save_pretrained(tmp_path / "clip")
    config = model.config
    base = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "clip", config=config)
    tuned = get_peft_model(base, DeepPromptConfig(num_tokens=2)).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    assert "clip_config" not in json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["model_config"]
    again = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter").eval()
    assert again.config.decoder_ffn_dim == config.decoder_ffn_dim
    assert torch.equal(logits(again, inputs), logits(tuned, inputs))


def test_base_and_adapter_in_one_folder(base_folder, inputs, tmp_path):
    trained(base_folder).save_pretrained(tmp_path / "adapter")
    injected = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter").eval()
    injected.save_with_base(tmp_path / "both")
    for name in ("config.json", "adapter_config.json"):
        assert str(tmp_path) not in (tmp_path / "both" / name).read_text()
    again = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "both").eval()
    assert torch.equal(logits(again, inputs), logits(injected, inputs))


def test_disabled_adapter_is_the_base(base_folder, inputs):
    expected = logits(load_base(base_folder), inputs)
    tuned = trained(base_folder)
    assert not torch.equal(logits(tuned, inputs), expected)
    with tuned.disable_adapter():
        assert torch.equal(logits(tuned, inputs), expected)


def test_enable_adapters_restores_the_decode_head(base_folder, inputs, tmp_path):
    trained(base_folder).save_pretrained(tmp_path / "adapter")
    model = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter").eval()
    expected = logits(model, inputs)
    model.disable_adapters()
    assert torch.equal(logits(model, inputs), logits(load_base(base_folder), inputs))
    model.enable_adapters()
    assert torch.equal(logits(model, inputs), expected)


def test_two_adapters_on_one_clip(base_folder, inputs, tmp_path):
    first, second = trained(base_folder), trained(base_folder, num_tokens=5, num_deep_layers=0)
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    both = PeftModel.from_pretrained(load_base(base_folder), tmp_path / "first", adapter_name="first").eval()
    both.load_adapter(tmp_path / "second", adapter_name="second")
    for name, alone in (("second", second), ("first", first)):
        both.set_adapter(name)
        assert torch.equal(logits(both, inputs), logits(alone, inputs)), name
    both.delete_adapter("second")
    assert torch.equal(logits(both, inputs), logits(first, inputs))


def test_adapters_are_not_mixed(base_folder, inputs):
    tuned = trained(base_folder)
    tuned.add_adapter("other", DeepPromptConfig(num_tokens=2))
    tuned.base_model.model.clip.vision_model.encoder.set_adapter(["default", "other"])
    with pytest.raises(ValueError, match="activate one adapter"):
        tuned.base_model.model.clip.vision_model(inputs["pixel_values"], interpolate_pos_encoding=True)


def test_merging_is_refused_and_unloading_removes_the_prompts(base_folder):
    tuned = trained(base_folder)
    with pytest.raises(ValueError, match="cannot be merged"):
        tuned.merge_and_unload()
    with pytest.raises(ValueError, match="cannot be merged"):
        tuned.merge_adapter()
    plain = tuned.unload()
    assert not any("deep_prompt_" in name for name in plain.state_dict())


def test_prompts_apply_to_a_half_precision_base(base_folder, inputs):
    tuned = get_peft_model(
        ZegClipForSemanticSegmentation.from_pretrained(base_folder, dtype=torch.bfloat16), DeepPromptConfig()
    ).eval()
    output = tuned(inputs["pixel_values"].bfloat16(), class_embeds=inputs["class_embeds"])
    assert output.logits.dtype == torch.bfloat16


def test_initial_tokens_fill_their_interval(base_folder):
    tuned = get_peft_model(load_base(base_folder), DeepPromptConfig(num_tokens=50))
    tokens = tuned.base_model.model.clip.vision_model.encoder.deep_prompt_tokens["default"]
    bound = (6 / (3 * 8 * 8 + 32)) ** 0.5
    assert 0.95 * bound < tokens.abs().max() <= bound


def test_adapter_of_the_full_size_model_is_small(tmp_path):
    """Only what is trained is saved: 8,039,168 numbers for ViT-B/16 and 10 prompts."""
    clip_config = {"text_config": {"num_hidden_layers": 1}, "vision_config": {"image_size": 512, "patch_size": 16}}
    model = ZegClipForSemanticSegmentation(ZegClipConfig(clip_config=clip_config))
    get_peft_model(model, DeepPromptConfig(num_tokens=10)).save_pretrained(tmp_path)
    with safe_open(tmp_path / "adapter_model.safetensors", "pt") as file:
        shapes = [file.get_slice(name).get_shape() for name in file.keys()]  # noqa: SIM118
    assert sum(torch.Size(shape).numel() for shape in shapes) == 8_039_168
    assert sum(path.stat().st_size for path in tmp_path.iterdir()) <= 33_000_000
