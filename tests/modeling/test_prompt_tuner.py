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
from torch.utils._python_dispatch import TorchDispatchMode
from transformers import AutoModelForSemanticSegmentation, AutoProcessor, CLIPModel, pipeline

from zegclip import DEFAULT_MODEL, DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.modeling.model_error import ModelError
from zegclip.modeling.spectral_prompt import resize_filter, spectral_prompt


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


def encoder_of(tuned):
    return tuned.base_model.model.clip.vision_model.encoder


def sized(model, side, low_heads=None):
    """The tiny model for pictures of `side` x `side` patches; with `low_heads`, SPT-SEG's decode head."""
    config = copy.deepcopy(model.config)
    config.clip_config.vision_config.image_size = 8 * side
    if low_heads:
        fields = {
            "decode_head_type": "spectral",
            "decoder_attention_heads": 4,
            "decoder_low_frequency_heads": low_heads,
        }
        config = ZegClipConfig(clip_config=config.clip_config, decoder_ffn_dim=64, **fields)
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
    [(None, range(0, 4)), (3, range(0, 4)), (1, range(0, 2)), (0, range(0, 1)), (-1, range(3, 4)), (-4, range(0, 4))],
)
def test_prompted_layers(num_deep_layers, layers):
    assert DeepPromptConfig(num_deep_layers=num_deep_layers).prompted_layers(4) == layers


@pytest.mark.parametrize("num_deep_layers", [4, -5])
def test_depths_that_do_not_fit(num_deep_layers):
    with pytest.raises(ValueError, match="does not fit an encoder of 4 layers"):
        DeepPromptConfig(num_deep_layers=num_deep_layers).prompted_layers(4)


@pytest.mark.parametrize(
    ("field", "value"), [("num_tokens", -1), ("dropout", 1.0), ("spectral_grid_size", 0), ("spectral_grid_size", -4)]
)
def test_impossible_values(field, value):
    with pytest.raises(ModelError, match=field):
        DeepPromptConfig(**{field: value})


def test_filtered_layers():
    assert DeepPromptConfig().filtered_layers(4) == set()
    assert DeepPromptConfig(spectral_layers=[]).filtered_layers(4) == set()
    assert DeepPromptConfig(spectral_prompt=True).filtered_layers(4) == {0, 1}
    assert DeepPromptConfig(spectral_prompt=True, spectral_layers=(3,)).filtered_layers(4) == {3}
    with pytest.raises(ValueError, match="spectral_layers is empty"):
        DeepPromptConfig(spectral_prompt=True, spectral_layers=[])


@pytest.mark.parametrize(
    ("field", "value"),
    [
        *(("spectral_layers", value) for value in (0, None, ["0"], [True], "01")),
        *(("text_prompt_ids", value) for value in (torch.tensor([0, 5, 1]), [0, 5.0, 1], "051")),
        *(("text_prompts", value) for value in ("all", True)),
        *(("num_tokens", value) for value in ("ten", True, None)),
        *(("num_deep_layers", 2.5), ("dropout", None), ("spectral_grid_size", True), ("text_prompt_init", "zeros")),
        ("base_fingerprint", 5),
    ],
)
def test_values_of_a_wrong_type(field, value):
    with pytest.raises(StrictDataclassError, match=field):
        DeepPromptConfig(**{field: value})


@pytest.mark.parametrize(("layers", "named"), [([0, 4], 4), ([-1], -1)])
def test_filtered_layers_that_are_not_there(layers, named):
    with pytest.raises(ValueError, match=f"names layer {named}, but the encoder has 0 to 3"):
        DeepPromptConfig(spectral_prompt=True, spectral_layers=layers).filtered_layers(4)


def test_the_filter_lies_where_the_encoder_says(base_folder):
    tuned = get_peft_model(load_base(base_folder), DeepPromptConfig(spectral_prompt=True))
    assert tuned.peft_config["default"].spectral_grid_size == 4
    parameter = encoder_of(tuned).deep_prompt_filter["default"]
    assert parameter.shape == (4, 3, 32, 2)
    assert parameter.requires_grad
    assert 0.8 * 0.02 < parameter.std() < 1.2 * 0.02
    other = get_peft_model(load_base(base_folder), DeepPromptConfig(spectral_prompt=True, spectral_grid_size=7))
    assert encoder_of(other).deep_prompt_filter["default"].shape == (7, 4, 32, 2)
    plain = get_peft_model(load_base(base_folder), DeepPromptConfig())
    assert not len(encoder_of(plain).deep_prompt_filter)


@pytest.mark.parametrize("num_deep_layers", [None, 0, -1])
@pytest.mark.parametrize("layers", [[0], [1], [0, 1], [1, 1, 0]])
def test_filtered_layers_get_the_prompt_once(base_folder, inputs, num_deep_layers, layers):
    """Two transforms for each filtered layer at the grid that the filter was made for, and what the formula says."""
    fields = {"num_deep_layers": num_deep_layers, "spectral_prompt": True, "spectral_layers": layers}
    tuned = trained(base_folder, **fields)
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


def test_a_wrapped_encoder_is_told_the_grid(base_folder, inputs):
    """2x8 patches are as many as 4x4."""
    tuned = trained(base_folder, spectral_prompt=True)
    pixel_values = torch.randn(1, 3, 16, 64)
    expected = logits(tuned, {**inputs, "pixel_values": pixel_values})
    vision = tuned.base_model.model.clip.vision_model
    vision.encoder = torch.compile(vision.encoder, backend="eager")
    actual = logits(tuned, {**inputs, "pixel_values": pixel_values})
    torch.testing.assert_close(actual, expected, atol=1e-6, rtol=0)


@pytest.mark.parametrize(("side", "host_side"), [(6, 4), (4, 6)])
def test_the_filter_keeps_its_grid_on_a_clip_of_another_size(model, tmp_path, side, host_side):
    """Two CLIPs that differ in nothing but the size that they are configured for see the same with one adapter."""
    sized(model, side).save_pretrained(tmp_path / "base")
    tuned = trained(tmp_path / "base", spectral_prompt=True)
    tuned.save_pretrained(tmp_path / "adapter")
    assert json.loads((tmp_path / "adapter" / "adapter_config.json").read_text())["spectral_grid_size"] == side

    host = sized(model, host_side)
    base = load_base(tmp_path / "base")
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


def test_adapters_from_before_spectral_prompts_load(base_folder, inputs, tmp_path):
    tuned = trained(base_folder)
    tuned.save_pretrained(tmp_path / "adapter")
    path = tmp_path / "adapter" / "adapter_config.json"
    described = json.loads(path.read_text())
    for name in ("spectral_prompt", "spectral_layers", "spectral_grid_size"):
        del described[name]
    for name in ("decoder_window_size", "decoder_low_frequency_heads", "ssim_weight", "ssim_of_probabilities"):
        del described["model_config"][name]
    path.write_text(json.dumps(described))
    injected = load_base(base_folder)
    injected.load_adapter(tmp_path / "adapter")
    loaded = (
        PeftModel.from_pretrained(load_base(base_folder), tmp_path / "adapter"),
        injected,
        ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter"),
    )
    for other in loaded:
        assert torch.equal(logits(other.eval(), inputs), logits(tuned, inputs))
        assert not other.peft_config["default"].spectral_prompt


def test_the_default_model_has_no_filter():
    default = ZegClipForSemanticSegmentation.from_pretrained(DEFAULT_MODEL)
    assert not any("deep_prompt_filter" in name for name in default.state_dict())
    assert default.config.ssim_weight == 0


@pytest.fixture
def spt_seg(model, tmp_path):
    """The whole of SPT-SEG, trained tensors away from their initial values, dropout off."""
    base = sized(model, 4, low_heads=3)
    base.config.decoder_dropout, base.config.dice_weight, base.config.ssim_weight = 0.0, 0.0, 1.0
    with torch.no_grad():
        for name, parameter in base.decode_head.named_parameters():
            if ".low_proj." in name:
                parameter *= 0.1  # what patches have in common would put all of them on the same side of the gate
    base.save_pretrained(tmp_path / "spt_base")
    tuned = trained(tmp_path / "spt_base", spectral_prompt=True, dropout=0.0)
    tuned.save_pretrained(tmp_path / "spt_seg")
    trainable = load_base(tmp_path / "spt_base")
    trainable.load_adapter(tmp_path / "spt_seg", is_trainable=True)
    return trainable.eval()


def test_gradient_checkpointing_changes_nothing_in_spt_seg(spt_seg, inputs):
    labels = torch.randint(3, (2, 32, 40), generator=torch.Generator().manual_seed(2))
    gradients = []
    for checkpointing in (False, True):
        other = copy.deepcopy(spt_seg)
        if checkpointing:
            other.gradient_checkpointing_enable()
        other.train()
        output = other(**inputs, labels=labels)
        assert output.loss_dict.keys() == {"loss_focal", "loss_ssim"}
        output.loss.backward()
        gradients.append({name: p.grad for name, p in other.named_parameters() if p.requires_grad})
    assert gradients[0].keys() == gradients[1].keys()
    assert any("deep_prompt_filter" in name for name in gradients[0])
    for name, gradient in gradients[0].items():
        assert gradient.any(), name
        torch.testing.assert_close(gradients[1][name], gradient, msg=name)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_spt_seg_in_half_precision(spt_seg, inputs, dtype):
    exact = logits(spt_seg, inputs)
    spt_seg.to(dtype)
    half = logits(spt_seg, inputs | {"pixel_values": inputs["pixel_values"].to(dtype)})
    assert half.dtype == dtype
    assert (half.float() - exact).abs().max() < 0.1 * exact.abs().max()


def test_spt_seg_learns_under_autocast(spt_seg, inputs):
    labels = torch.randint(3, (2, 32, 40), generator=torch.Generator().manual_seed(2))
    exact = logits(spt_seg, inputs)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = spt_seg(**inputs, labels=labels)
    output.loss.backward()
    assert (output.logits.float() - exact).abs().max() < 0.1 * exact.abs().max()
    parameter = spt_seg.clip.vision_model.encoder.deep_prompt_filter["default"]
    assert parameter.grad.isfinite().all()
    assert parameter.grad.any()


@pytest.mark.slow
def test_spt_seg_compiles_with_any_number_of_names_and_any_size(spt_seg):
    torch._dynamo.reset()
    compiled = torch.compile(spt_seg, backend="aot_eager", dynamic=True, fullgraph=True)
    for count, size in ((3, (32, 40)), (5, (48, 24))):  # 2 would be taken for the batch
        inputs = {"pixel_values": torch.randn(2, 3, *size), "class_embeds": torch.randn(count, 32)}
        torch.testing.assert_close(logits(compiled, inputs), logits(spt_seg, inputs), atol=1e-5, rtol=0)


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


@pytest.mark.parametrize(
    "fields",
    [
        {"num_deep_layers": None},
        {"num_deep_layers": 1, "spectral_prompt": True},
        {"num_deep_layers": 0, "spectral_prompt": True, "spectral_layers": [1], "spectral_grid_size": 3},
        {"num_deep_layers": -1},
    ],
)
def test_adapter_reloads_bit_identical_in_a_fresh_process(base_folder, inputs, tmp_path, fields):
    tuned = trained(base_folder, **fields)
    tuned.save_pretrained(tmp_path / "adapter")
    weights = {name: tensor for name, tensor in tuned.state_dict().items() if ".default" in name}
    assert any("deep_prompt_filter" in name for name in weights) == ("spectral_prompt" in fields)
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


def test_what_a_head_does_not_read_keeps_no_adapter_away(model, base_folder, inputs, tmp_path):
    tuned = trained(base_folder)
    tuned.save_pretrained(tmp_path / "adapter")
    other = load_base(base_folder)
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
    loaded = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter").eval()
    assert "LOAD REPORT" not in capfd.readouterr().err
    torch.testing.assert_close(logits(loaded, inputs), logits(tuned, inputs), atol=1e-6, rtol=0)


def test_fields_can_be_given_with_an_adapter(base_folder, tmp_path):
    tuned = trained(base_folder)
    tuned.config.id2label = {0: "cat", 1: "dog"}
    tuned.save_pretrained(tmp_path / "adapter")
    loaded = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter", focal_weight=7.0)
    assert loaded.config.focal_weight == 7.0
    assert loaded.config.id2label == {0: "cat", 1: "dog"}


def test_a_missing_base_is_named(base_folder, tmp_path):
    trained(base_folder).save_pretrained(tmp_path / "adapter")
    shutil.rmtree(base_folder)
    with pytest.raises(ValueError, match=f"the base model of this adapter, '{base_folder}', is not there"):
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


@pytest.mark.parametrize("spectral", [False, True])
def test_disabled_adapter_is_the_base(base_folder, inputs, spectral):
    expected = logits(load_base(base_folder), inputs)
    tuned = trained(base_folder, spectral_prompt=spectral)
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


@pytest.mark.parametrize(
    ("first_fields", "second_fields"),
    [
        ({}, {"num_tokens": 5, "num_deep_layers": 0}),
        ({"spectral_prompt": True}, {"num_tokens": 5, "num_deep_layers": 0}),
        ({"num_deep_layers": -1}, {"spectral_prompt": True, "spectral_layers": [1]}),
        ({"spectral_prompt": True}, {"spectral_prompt": True, "spectral_layers": [0], "spectral_grid_size": 5}),
    ],
)
def test_two_adapters_on_one_clip(base_folder, inputs, tmp_path, first_fields, second_fields):
    first, second = trained(base_folder, **first_fields), trained(base_folder, **second_fields)
    first.save_pretrained(tmp_path / "first")
    second.save_pretrained(tmp_path / "second")
    both = PeftModel.from_pretrained(load_base(base_folder), tmp_path / "first", adapter_name="first").eval()
    both.load_adapter(tmp_path / "second", adapter_name="second")
    for name, alone in (("second", second), ("first", first)):
        both.set_adapter(name)
        assert torch.equal(logits(both, inputs), logits(alone, inputs)), name
    both.delete_adapter("second")
    assert torch.equal(logits(both, inputs), logits(first, inputs))
    assert not any(".second" in name for name in both.state_dict())


def test_an_injected_filter_is_switched_and_deleted(base_folder, inputs, tmp_path):
    adapters = {"plain": trained(base_folder), "spectral": trained(base_folder, spectral_prompt=True)}
    injected = load_base(base_folder)
    for name, tuned in adapters.items():
        tuned.save_pretrained(tmp_path / name)
        injected.load_adapter(tmp_path / name, adapter_name=name)
    for name in ("plain", "spectral", "plain"):
        injected.set_adapter(name)
        assert torch.equal(logits(injected.eval(), inputs), logits(adapters[name], inputs)), name
    injected.delete_adapter("spectral")
    assert torch.equal(logits(injected, inputs), logits(adapters["plain"], inputs))
    assert not any("deep_prompt_filter" in name for name in injected.state_dict())


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


@pytest.mark.parametrize("spectral", [False, True])
def test_prompts_apply_to_a_half_precision_base(base_folder, inputs, spectral):
    base = ZegClipForSemanticSegmentation.from_pretrained(base_folder, dtype=torch.bfloat16)
    tuned = get_peft_model(base, DeepPromptConfig(spectral_prompt=spectral)).eval()
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


PLACES = {"clip": "cpu", "decode_head": "cpu"}
TOWER = {"clip.text_model": "cpu", "clip.visual_projection": "cpu", "clip.text_projection": "cpu"}
VISION = {f"clip.vision_model.{name}": "cpu" for name in ("embeddings", "pre_layrnorm", "post_layernorm")}
APART = TOWER | VISION | {"clip.logit_scale": "cpu", "decode_head": "cpu"}


@pytest.mark.parametrize(
    "places",
    [PLACES | {"clip": "disk"}, APART | {"clip.vision_model.encoder": "disk"}],
    ids=["with the whole CLIP", "alone"],
)
def test_an_offloaded_encoder_gets_no_adapter(base_folder, tmp_path, places):
    """Its prompts would be loaded somewhere else, and others used."""
    get_peft_model(load_base(base_folder), DeepPromptConfig(num_tokens=2)).save_pretrained(tmp_path / "adapter")
    with pytest.raises(ValueError, match=r"map the layers of clip\.vision_model\.encoder one by one"):
        ZegClipForSemanticSegmentation.from_pretrained(
            tmp_path / "adapter", device_map=places, offload_folder=tmp_path / "disk"
        )


def test_single_layers_may_be_offloaded(base_folder, inputs, tmp_path):
    tuned = get_peft_model(load_base(base_folder), DeepPromptConfig(num_tokens=2)).eval()
    tuned.save_pretrained(tmp_path / "adapter")
    layers = {f"clip.vision_model.encoder.layers.{i}": "disk" if i else "cpu" for i in range(2)}
    placed = ZegClipForSemanticSegmentation.from_pretrained(
        tmp_path / "adapter", device_map=APART | layers, offload_folder=tmp_path / "disk"
    )
    with torch.no_grad():
        torch.testing.assert_close(placed.eval()(**inputs).logits, tuned(**inputs).logits, atol=1e-6, rtol=0)


@pytest.mark.parametrize(
    ("target_modules", "text_prompts"),
    [(r".*vision_model\.encoder", "whole"), (r".*(vision|text)_model\.encoder", None), (["encoder"], None)],
)
def test_text_prompts_and_target_modules_must_agree(base_folder, target_modules, text_prompts):
    config = DeepPromptConfig(
        target_modules=target_modules, text_prompts=text_prompts, text_prompt_ids=[0, 5, 1] if text_prompts else None
    )
    with pytest.raises(ValueError, match="does not fit text_prompts"):
        get_peft_model(load_base(base_folder), config)


def test_template_tokens_of_another_clip(base_folder):
    with pytest.raises(ValueError, match="are not of this CLIP, which has"):
        get_peft_model(load_base(base_folder), DeepPromptConfig(text_prompts="words", text_prompt_ids=[0, 99999, 1]))


@pytest.mark.parametrize("ids", [None, [], [0, 1], [0, -5, 1]])
def test_text_prompts_need_the_ids_of_a_template(ids):
    with pytest.raises(ModelError, match="text_prompt_ids"):
        DeepPromptConfig(text_prompts="whole", text_prompt_ids=ids)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
@pytest.mark.parametrize("way", ["get_peft_model", "add_adapter", "load_adapter", "PeftModel", "no autocast"])
def test_what_an_adapter_trains_is_in_float32_on_any_base(base_folder, tmp_path, dtype, way):
    tuned = trained(base_folder)
    tuned.save_pretrained(tmp_path / "adapter")
    exact = {name: p for name, p in tuned.named_parameters() if p.requires_grad}
    base = ZegClipForSemanticSegmentation.from_pretrained(base_folder, dtype=dtype)
    if way == "get_peft_model":
        model = get_peft_model(base, DeepPromptConfig())
    elif way == "PeftModel":
        model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True)
    elif way == "no autocast":
        model = PeftModel.from_pretrained(base, tmp_path / "adapter", is_trainable=True, autocast_adapter_dtype=False)
    else:
        model = base
        if way == "add_adapter":
            base.add_adapter(DeepPromptConfig())
        else:
            base.load_adapter(tmp_path / "adapter", is_trainable=True)
    parameters = {name: p for name, p in model.named_parameters() if p.requires_grad}
    assert len(parameters) == len(exact)
    assert {p.dtype for p in parameters.values()} == {torch.float32}
    assert {p.dtype for name, p in model.named_parameters() if name.endswith("visual_projection.weight")} == {dtype}
    if "adapter" not in way and way != "get_peft_model":
        for name, p in parameters.items():  # not by way of half precision
            assert torch.equal(p, exact[name]), name
    output = model(pixel_values=torch.zeros(1, 3, 32, 32, dtype=dtype), class_embeds=torch.randn(3, 32),
                   labels=torch.zeros(1, 32, 32, dtype=torch.long))  # fmt: skip
    output.loss.backward()
    assert all(p.grad is not None and p.grad.dtype == torch.float32 for p in parameters.values())


def test_the_class_embedding_is_added_twice_where_the_adapter_says_so(base_folder, inputs, tmp_path):
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

    with doubled.disable_adapter():
        assert torch.equal(logits(doubled, inputs), logits(load_base(base_folder), inputs))
    doubled.save_pretrained(tmp_path / "doubled")
    trained(base_folder).save_pretrained(tmp_path / "plain")
    model = load_base(base_folder)
    for name in ("doubled", "plain"):
        model.load_adapter(tmp_path / name, name)
    for name in ("doubled", "plain", "doubled"):
        model.set_adapter(name)
        alone = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / name).eval()
        assert torch.equal(logits(model, inputs), logits(alone, inputs)), name
    model.disable_adapters()
    assert torch.equal(logits(model, inputs), logits(load_base(base_folder), inputs))
    copied = copy.deepcopy(doubled)
    assert torch.equal(logits(copied, inputs), logits(doubled, inputs))


def test_a_tower_of_its_own_cannot_double_the_class_embedding(base_folder):
    clip = CLIPModel.from_pretrained(base_folder)
    with pytest.raises(ValueError, match="double_class_embedding needs"):
        get_peft_model(clip, DeepPromptConfig(double_class_embedding=True, modules_to_save=None))
