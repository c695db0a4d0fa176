"""The deep prompt tuner through PEFT's and transformers' own interfaces."""

import copy
import json
import shutil
import subprocess
import sys

import pytest
import torch
from peft import PeftModel, get_peft_model
from safetensors import safe_open
from transformers import AutoModelForSemanticSegmentation, AutoProcessor, pipeline

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
            load_base(folders["adapter"]).save_with_base(folders["both"])
        if kind == "adapter of both":
            tuned = trained(folders["full"], num_tokens=2)
            tuned.peft_config["default"].base_model_name_or_path = str(folders["both"])
            tuned.save_pretrained(folders[kind])
            tuned.config.save_pretrained(folders[kind])
        expected = logits(tuned if kind != "both" else load_base(folders["adapter"]), inputs)
    processor.save_pretrained(folders[kind])
    loaded = {
        "class": ZegClipForSemanticSegmentation.from_pretrained(folders[kind]),
        "AutoModelForSemanticSegmentation": AutoModelForSemanticSegmentation.from_pretrained(folders[kind]),
        "pipeline": pipeline("zero-shot-image-segmentation", model=str(folders[kind])).model,
    }
    for name, other in loaded.items():
        torch.testing.assert_close(logits(other.eval(), inputs), expected, atol=1e-6, rtol=0, msg=f"{kind}, {name}")
    assert AutoProcessor.from_pretrained(folders[kind]).prompt_templates == processor.prompt_templates


def test_an_adapter_on_another_head_is_refused(model, base_folder, tmp_path):
    trained(base_folder).save_pretrained(tmp_path / "adapter")
    config = copy.deepcopy(model.config)
    config.decoder_attention_heads = 4
    other = ZegClipForSemanticSegmentation(config)
    with pytest.raises(ValueError, match="trained with decoder_attention_heads=2, but this model has 4"):
        PeftModel.from_pretrained(other, tmp_path / "adapter")
    with pytest.raises(ValueError, match="trained with decoder_attention_heads=2, but this model has 4"):
        other.load_adapter(tmp_path / "adapter")


def test_an_adapter_brings_a_head_of_another_kind(model, base_folder, inputs, tmp_path):
    config = copy.deepcopy(model.config)
    config.descriptor, config.num_decoder_layers = ["text"], 2
    other = ZegClipForSemanticSegmentation(config)
    other.clip.load_state_dict(model.clip.state_dict())
    tuned = get_peft_model(other, DeepPromptConfig(num_tokens=2)).eval()
    tuned.peft_config["default"].base_model_name_or_path = str(base_folder)  # whose head has descriptor and 3 layers
    tuned.save_pretrained(tmp_path / "adapter")
    loaded = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter").eval()
    torch.testing.assert_close(logits(loaded, inputs), logits(tuned, inputs), atol=1e-6, rtol=0)


def test_fields_can_be_given_with_an_adapter(base_folder, tmp_path):
    tuned = trained(base_folder)
    tuned.config.id2label = {0: "cat", 1: "dog"}
    tuned.base_model.peft_config["default"].model_config["id2label"] = {0: "cat", 1: "dog"}
    tuned.save_pretrained(tmp_path / "adapter")
    loaded = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter", focal_weight=7.0)
    assert loaded.config.focal_weight == 7.0
    assert loaded.config.id2label == {0: "cat", 1: "dog"}


def test_a_missing_base_is_named(base_folder, tmp_path):
    trained(base_folder).save_pretrained(tmp_path / "adapter")
    shutil.rmtree(base_folder)
    with pytest.raises(ValueError, match=f"the base model of this adapter, {base_folder}, is not there"):
        ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter")


def test_a_base_with_other_sizes_is_refused(model, base_folder, tmp_path):
    trained(base_folder).save_pretrained(tmp_path / "adapter")
    config = copy.deepcopy(model.config)
    config.clip_config.vision_config.image_size = 48
    config.save_pretrained(base_folder)
    with pytest.raises(RuntimeError, match="ignore_mismatched_sizes"):  # as transformers does for any model
        ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter")


def test_what_came_from_one_folder_is_saved_to_one_folder(base_folder, inputs, tmp_path):
    trained(base_folder).save_pretrained(tmp_path / "adapter")
    load_base(tmp_path / "adapter").save_with_base(tmp_path / "both")
    both = load_base(tmp_path / "both")
    both.save_pretrained(tmp_path / "again")
    assert torch.equal(logits(load_base(tmp_path / "again"), inputs), logits(both, inputs))
    # An adapter whose base is elsewhere stays an adapter.
    load_base(tmp_path / "adapter").save_pretrained(tmp_path / "alone")
    assert not (tmp_path / "alone" / "model.safetensors").exists()


def test_a_peft_model_does_not_save_half_of_itself(base_folder, tmp_path):
    with pytest.raises(ValueError, match="There is no adapter to save beside the base"):
        trained(base_folder).save_with_base(tmp_path / "both")


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
