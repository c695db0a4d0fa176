"""Finding models and processors: every kind of folder, and what is wrong with a wrong one."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from peft import get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil, PreTrainedConfig, pipeline

import zegclip
from zegclip import (
    DeepPromptConfig,
    ZegClipConfig,
    ZegClipForSemanticSegmentation,
    ZegClipImageProcessor,
    ZegClipProcessor,
)
from zegclip.loading import (
    HEAD_FIELDS,
    check_model_path,
    config_of_base,
    load_adapter_into,
    load_base,
    load_model,
    load_processor,
)
from zegclip.modeling.model_error import ModelError
from zegclip.segmenting.segmenter import load_segmenter


def test_an_adapter_on_the_embedded_model_finds_it_where_the_package_is_now(tmp_path):
    model = load_base(zegclip.DEFAULT_MODEL, {})
    model.add_adapter(DeepPromptConfig(num_tokens=2))
    model.save_pretrained(tmp_path)
    path = tmp_path / "adapter_config.json"
    described = json.loads(path.read_text())
    assert described["base_model_name_or_path"] == str(zegclip.DEFAULT_MODEL)
    elsewhere = "/opt/venv/lib/python3.12/site-packages/zegclip/default_model"
    path.write_text(json.dumps(described | {"base_model_name_or_path": elsewhere}))
    assert load_model(tmp_path).peft_config["default"].base_model_name_or_path == str(zegclip.DEFAULT_MODEL)
    assert pipeline("zero-shot-image-segmentation", model=str(tmp_path)).model.config.decode_head_type == "spectral"


@pytest.mark.parametrize(
    "name", ["missing", "a/b/c", "./model", "/model", "~/model", "here/model", "file.pth", "here"]
)
def test_paths_that_are_no_model(tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    (tmp_path / "file.pth").touch()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ModelError, match=Path(name).name):
        check_model_path(name)


@pytest.mark.parametrize("load", [check_model_path, load_model, load_processor, lambda name: load_base(name, {})])
@pytest.mark.parametrize(("name", "reason"), [("owner/name", "cache.*OFFLINE"), ("owner/my name", "no Hub id")])
def test_hub_ids_that_cannot_be_loaded(load, name, reason):
    with pytest.raises(ModelError, match=f"{name}: .*{reason}"):
        load(name)


# What commands print about Hub ids when nobody answers at the Hub's address.
UNREACHABLE = """
import sys, zegclip
from zegclip.commands.main import main
folder, adapter = sys.argv[1:]
for words in [
    ["segment", folder + "/x.png", "--labels", "a", "--model", "owner/name", "--output", folder + "/out"],
    ["train", "--model", "owner/name", "--output_dir", folder + "/run", "--use_cpu"],
    ["train", "--init_adapter", "owner/name", "--output_dir", folder + "/run", "--use_cpu"],
    ["eval", "--model", "owner/name", "--use_cpu"],
    ["eval", "--model", adapter, "--use_cpu"],
    ["export", "owner/name", folder + "/out"],
]:
    assert main(words) == 1, words
"""


def test_a_hub_that_cannot_be_reached_is_asked_once(model, tmp_path):
    model.add_adapter(DeepPromptConfig(num_tokens=2))
    model.peft_config["default"].base_model_name_or_path = "owner/name"
    model.save_pretrained(tmp_path / "adapter")
    Image.new("RGB", (9, 9)).save(tmp_path / "x.png")
    environment = os.environ | {
        "HF_ENDPOINT": "http://127.0.0.1:9",
        "HF_HUB_OFFLINE": "0",
        "TRANSFORMERS_OFFLINE": "0",
    }
    words = [sys.executable, "-c", UNREACHABLE, tmp_path, tmp_path / "adapter"]
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    lines = done.stderr.splitlines()
    assert len(lines) == 6, done.stderr  # The client has not tried again.
    for line in lines:
        assert "owner/name: " in line
        assert "the Hub cannot be reached" in line


def test_a_clip_without_a_tokenizer(model, tmp_path):
    """Without files, transformers would create one to which all words are the same."""
    model.clip.save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="no tokenizer"):
        load_processor(tmp_path)
    (tmp_path / "tokenizer.json").write_text("{")
    with pytest.raises(ModelError, match="cannot be loaded"):
        load_processor(tmp_path)


def test_the_base_of_every_kind_of_folder(model, processor, tmp_path):
    """Always the same CLIP, with the head that was asked for and without the adapter."""
    model.clip.save_pretrained(tmp_path / "clip")
    model.save_pretrained(tmp_path / "full")
    model.add_adapter(DeepPromptConfig(num_tokens=2))
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "full")
    model.save_pretrained(tmp_path / "adapter")
    model.save_with_base(tmp_path / "both")
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "both")
    model.save_pretrained(tmp_path / "adapter of both")
    for name in ("clip", "full", "adapter", "both", "adapter of both"):
        base = load_base(tmp_path / name, {"decode_head_type": "similarity"})
        assert not hasattr(base, "peft_config"), name
        assert base.config.decode_head_type == "similarity"
        expected = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "full").clip.state_dict()
        for key, tensor in base.clip.state_dict().items():
            assert torch.equal(tensor, expected[key]), (name, key)


def test_the_picture_settings_of_a_plain_clip(model, tokenizer, tmp_path):
    model.clip.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessorPil(image_mean=[0.1, 0.2, 0.3]).save_pretrained(tmp_path)
    to_train = load_processor(tmp_path, ["the {}"], for_training=True, window_size=40)
    assert to_train.image_processor.image_mean == (0.485, 0.456, 0.406)
    assert not to_train.image_processor.do_center_crop
    assert to_train.image_processor.window_size == 40
    assert to_train.prompt_templates == ["the {}"]
    to_segment = load_processor(tmp_path)
    assert to_segment.image_processor.image_mean == (0.1, 0.2, 0.3)
    patch = model.config.clip_config.vision_config.patch_size
    assert (to_segment.image_processor.window_size, to_segment.image_processor.window_stride) == (
        14 * patch,
        7 * patch,
    )
    assert dict(to_segment.image_processor.size)["shortest_edge"] == 21 * patch
    assert len(to_segment.prompt_templates) == 80
    ZegClipProcessor(ZegClipImageProcessor(), tokenizer, ["one {}"]).save_pretrained(tmp_path)
    for loaded in (load_processor(tmp_path).prompt_templates, load_model(tmp_path).config.prompt_templates):
        assert loaded == ["one {}"]


def test_the_templates_are_those_of_the_configuration(model, processor, tmp_path):
    """As in the pipeline: the processor's file, and that of an adapter's base, may have others."""
    model.config.prompt_templates = ["the {}", "one {}"]
    processor.prompt_templates = ["a {}"]
    for part in (model, processor):
        part.save_pretrained(tmp_path / "full")
    assert load_processor(tmp_path / "full").prompt_templates == ["the {}", "one {}"]
    assert load_processor(tmp_path / "full", ["a cat and a {}"]).prompt_templates == ["a cat and a {}"]
    trained = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "full")
    trained.add_adapter(DeepPromptConfig(num_tokens=2))
    trained.config.prompt_templates = ["b {}"]
    trained.save_pretrained(tmp_path / "adapter")
    assert load_processor(tmp_path / "adapter").prompt_templates == ["b {}"]


def edit_json(file, *path, **fields):
    """Change fields of a JSON file, or of an object in it."""

    def edit(folder):
        described = json.loads((folder / file).read_text())
        place = described
        for name in path:
            place = place[name]
        place.update(fields)
        (folder / file).write_text(json.dumps(described))

    return edit


def write(file, text):
    return lambda folder: (folder / file).write_text(text)


def remove(pattern):
    return lambda folder: [path.unlink() for path in folder.glob(pattern)]


def cut(name, length):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


def edit_weights(name, value):
    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors[name].view(-1)[-1] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


CONFIG, PROCESSOR = "config.json", ("processor_config.json", "image_processor")
BROKEN_MODELS = [
    (cut("model.safetensors", 5000), ""),
    (edit_weights("clip.logit_scale", float("nan")), "clip.logit_scale"),
    (edit_json(CONFIG, "clip_config", "text_config", num_hidden_layers=1), "clip.text_model.encoder.layers.1."),
    (edit_json(CONFIG, clip_config=3), ""),
    (write(CONFIG, "{"), "config.json"),
    (write(CONFIG, "[]"), "config.json"),
    (write(CONFIG, "[" * 99_999), "config.json"),
    (write(CONFIG, "9" * 9999), "config.json"),
]
BROKEN_HEADS_AND_PROCESSORS = [
    (edit_weights("decode_head.query_proj.weight", float("-inf")), "decode_head.query_proj.weight"),
    (edit_json(CONFIG, num_decoder_layers=2), "decode_head.layers.1.fc1.bias"),
    (edit_json(CONFIG, num_decoder_layers=4), "decode_head."),
    (edit_json(CONFIG, num_decoder_layers="three"), "num_decoder_layers"),
    (edit_json(CONFIG, decoder_attention_heads=7), "decoder_attention_heads=7"),
    (edit_json(CONFIG, decoder_ffn_dim=128), "sizes"),
    (cut("processor_config.json", 300), "processor_config.json"),
    (cut("tokenizer.json", 300), "processor"),
    (edit_json(*PROCESSOR, window_size="wide"), "processor"),
    (edit_json(*PROCESSOR, window_stride=33), "window_stride"),
    (edit_json(*PROCESSOR, image_mean=[0.5]), "processor"),
    (edit_json(*PROCESSOR, size={"shortest_edge": 10**6}), "processor"),
    (write("tokenizer_config.json", "{}"), "processor"),
    (remove("tokenizer_config.json"), "processor"),
    (remove("tokenizer*"), "tokenizer"),
    (remove("model.safetensors"), "model.safetensors"),
    (remove("*"), "no model"),
]


@pytest.mark.parametrize(
    ("load", "edit", "mentioned"),
    [(load_segmenter, *case) for case in (*BROKEN_MODELS, *BROKEN_HEADS_AND_PROCESSORS)]
    + [(load_base, *case) for case in BROKEN_MODELS],
)
def test_broken_models_raise_one_line_that_names_the_folder(model_folder, load, edit, mentioned, capfd):
    edit(model_folder)
    with pytest.raises(ValueError) as error:  # noqa: PT011
        load(model_folder, "cpu" if load is load_segmenter else {})
    assert str(model_folder) in str(error.value)
    assert mentioned in str(error.value)
    assert "LOAD REPORT" not in capfd.readouterr().err


def spoil_adapter(folder):
    tensors = load_file(folder / "adapter_model.safetensors")
    next(tensor for name, tensor in tensors.items() if "deep_prompt_tokens" in name).view(-1)[0] = float("nan")
    save_file(tensors, folder / "adapter_model.safetensors", metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "mentioned"),
    [
        (write("adapter_config.json", "{"), "JSON"),
        (write("adapter_config.json", "[]"), "object"),
        (edit_json("adapter_config.json", model_config=[1]), "model_config"),
        (edit_json("adapter_config.json", base_model_name_or_path=3), "base_model_name_or_path"),
        (edit_json("adapter_config.json", peft_type="OTHER"), "adapter"),
        (edit_json("adapter_config.json", peft_type="LORA"), "adapter"),  # PEFT would print the module
        (edit_json("adapter_config.json", num_tokens="many"), "adapter"),
        (spoil_adapter, "deep_prompt_tokens"),
    ],
)
def test_broken_adapters(model, model_folder, edit, mentioned):
    tuned = get_peft_model(model, DeepPromptConfig(num_tokens=2))
    tuned.save_pretrained(model_folder)
    edit(model_folder)
    for load in (load_model, lambda folder: load_adapter_into(tuned, folder)):
        with pytest.raises(ValueError, match=mentioned) as error:
            load(model_folder)
        assert str(model_folder) in str(error.value)
        assert len(str(error.value).splitlines()) == 1


@pytest.mark.parametrize("base_is_clip", [False, True])
def test_an_adapter_alone_takes_base_and_processor_from_beside_the_base(model, processor, tmp_path, base_is_clip):
    base = model.clip if base_is_clip else model
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    model.add_adapter(DeepPromptConfig(num_tokens=2))
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    (tmp_path / "adapter" / "config.json").unlink()  # as PEFT saves it
    loaded = load_model(tmp_path / "adapter")
    processor_of_base = load_processor(tmp_path / "adapter")
    assert processor_of_base.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    inputs = processor(images=Image.new("RGB", (50, 40)), text=["cat", "b"], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model.eval()(**inputs).logits)


def test_a_pipeline_prepares_pictures_as_for_the_adapter(model, processor, tmp_path):
    """Also if it is given the model, and the base is a plain CLIP elsewhere, which is used otherwise."""
    model.clip.save_pretrained(tmp_path / "clip")
    processor.tokenizer.save_pretrained(tmp_path / "clip")
    clip = load_base(tmp_path / "clip", {})
    clip.add_adapter(DeepPromptConfig(num_tokens=2))
    clip.save_pretrained(tmp_path / "adapter")
    processor.image_processor.size = {"shortest_edge": 72}
    for own in (False, True):
        if own:
            processor.save_pretrained(tmp_path / "adapter")
        expected = load_processor(tmp_path / "adapter").image_processor
        assert (expected.size["shortest_edge"] == 72) == own
        for given in (str(tmp_path / "adapter"), load_model(tmp_path / "adapter")):
            used = pipeline("zero-shot-image-segmentation", model=given).image_processor
            assert used.to_dict() == expected.to_dict()
    # Its base is elsewhere now.
    base = (tmp_path / "clip").rename(tmp_path / "moved")
    moved = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "adapter", base_model_name_or_path=base)
    used = pipeline("zero-shot-image-segmentation", model=moved).image_processor
    assert used.to_dict() == expected.to_dict()


def test_an_image_processor_that_was_saved_alone(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.tokenizer.save_pretrained(tmp_path)
    processor.image_processor.size = {"shortest_edge": 72}
    processor.image_processor.save_pretrained(tmp_path)
    assert load_processor(tmp_path).image_processor.size == {"shortest_edge": 72}


def test_a_base_without_all_of_its_clip(model, tmp_path):
    """Training on a tower that starts at random would look like any other training."""
    model.clip.save_pretrained(tmp_path / "clip")
    path = tmp_path / "clip" / "model.safetensors"
    tensors = {name: tensor for name, tensor in load_file(path).items() if "text_model.encoder" not in name}
    save_file(tensors, path, metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"not a whole CLIP: \d+ weights are missing, such as clip\.text_model"):
        load_base(tmp_path / "clip", {})


def test_a_head_of_another_kind_takes_nothing_from_the_stored_one(model, tmp_path):
    """The two share names such as `query_proj` and `fc1`."""
    model.save_pretrained(tmp_path)
    sizes = {name: getattr(model.config, name) for name in ("decoder_attention_heads", "decoder_ffn_dim")}
    fields = {"decode_head_type": "spectral", "decoder_low_frequency_heads": 1, **sizes}
    base = load_base(tmp_path, fields)
    other = load_base(tmp_path, fields | {"decoder_ffn_dim": 40})
    assert {len(layer.fc1.weight) for layer in other.decode_head.modules() if hasattr(layer, "fc1")} == {40}
    stored = model.decode_head.state_dict()
    shared = [name for name in base.decode_head.state_dict() if name in stored and "norm" not in name]
    assert "query_proj.weight" in shared
    assert not any(torch.equal(base.decode_head.state_dict()[name], stored[name]) for name in shared)
    assert torch.equal(base.clip.visual_projection.weight, model.clip.visual_projection.weight)
    assert torch.equal(load_base(tmp_path, {}).decode_head.query_proj.weight, stored["query_proj.weight"])


def test_an_adapter_goes_on_in_another_model(model, tmp_path):
    torch.manual_seed(1)
    tuned = get_peft_model(model, DeepPromptConfig(num_tokens=2))
    with torch.no_grad():
        for parameter in tuned.parameters():
            if parameter.requires_grad:
                parameter.add_(torch.randn_like(parameter))
    tuned.save_pretrained(tmp_path / "adapter")
    expected = {name: p.clone() for name, p in tuned.named_parameters() if p.requires_grad}
    fresh = get_peft_model(tuned.unload(), DeepPromptConfig(num_tokens=2))
    load_adapter_into(fresh, tmp_path / "adapter")
    trainable = {name: p for name, p in fresh.named_parameters() if p.requires_grad}
    assert trainable.keys() == expected.keys()
    assert all(torch.equal(p, expected[name]) for name, p in trainable.items())


PROMPTS = {"num_tokens": 0, "text_prompts": "whole", "text_prompt_ids": [0, 5, 1]}


@pytest.mark.parametrize(
    ("stored", "other", "head", "mentioned"),
    [
        ({"num_tokens": 2}, {"num_tokens": 3}, {}, r"deep_prompt_tokens is \(2, 2, 32\)"),
        ({"num_tokens": 2}, {"num_tokens": 2, "num_deep_layers": 0}, {}, "num_deep_layers"),
        ({"num_tokens": 2}, {"num_tokens": 0, "spectral_prompt": True, "spectral_grid_size": 4}, {}, "deep_prompt"),
        # With tensors of the right sizes, which would be read as the states of other words or another head.
        (PROMPTS, PROMPTS | {"text_prompt_ids": [0, 6, 1]}, {}, "text_prompt_ids"),
        ({"num_tokens": 2}, {"num_tokens": 2}, {"descriptor": ["text", "product"]}, "descriptor"),
    ],
)  # fmt: skip
def test_adapters_that_do_not_fit(model, tmp_path, stored, other, head, mentioned):
    get_peft_model(model, DeepPromptConfig(**stored)).save_pretrained(tmp_path / "adapter")
    config = ZegClipConfig.from_dict(model.config.to_dict() | head)
    fresh = get_peft_model(ZegClipForSemanticSegmentation(config), DeepPromptConfig(**other))
    with pytest.raises(ValueError, match=mentioned):
        load_adapter_into(fresh, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("stored", "other"),
    [
        ({"num_deep_layers": None}, {"num_deep_layers": 1}),
        ({"num_deep_layers": 1}, {"num_deep_layers": -2}),
        ({"spectral_layers": [0]}, {"spectral_layers": [0, 1]}),  # without a spectral prompt
        ({"spectral_prompt": True, "spectral_layers": [1, 0]}, {"spectral_prompt": True, "spectral_grid_size": 4}),
        (PROMPTS, PROMPTS | {"text_prompt_ids": (0, 5, 1), "num_deep_layers": 0}),
    ],
)
def test_adapters_fit_whose_fields_mean_the_same(model, tmp_path, stored, other):
    """The vision tower has two layers of 4x4 patches."""
    get_peft_model(model, DeepPromptConfig(**{"num_tokens": 2} | stored)).save_pretrained(tmp_path / "adapter")
    fresh = get_peft_model(ZegClipForSemanticSegmentation(model.config), DeepPromptConfig(**{"num_tokens": 2} | other))
    load_adapter_into(fresh, tmp_path / "adapter")


@pytest.mark.parametrize("place", ["empty", "nowhere", "empty/nowhere", "broken"])
def test_places_without_an_adapter(model, tmp_path, monkeypatch, place):
    (tmp_path / "empty").mkdir()
    DeepPromptConfig(num_tokens=2).save_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "adapter_model.safetensors").write_bytes(b"not one")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=place):
        load_adapter_into(get_peft_model(model, DeepPromptConfig(num_tokens=2)), place)


def test_a_lack_of_memory_is_no_broken_model(model, processor, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)

    def refuse(*arguments, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(ZegClipForSemanticSegmentation, "from_pretrained", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        load_model(tmp_path)


@pytest.mark.parametrize("kind", ["bert", "clipseg"])
def test_a_model_of_another_type_is_named(kind, tmp_path):
    (tmp_path / "config.json").write_text(json.dumps({"model_type": kind}))
    with pytest.raises(ModelError, match=kind):
        load_model(tmp_path)


def test_another_head_has_the_settings_of_its_own_method_alone(model_folder):
    """Losses and sizes of the head that a model was trained with are not taken over for a head of another type."""
    trained = {"decode_head_type": "spectral", "decoder_low_frequency_heads": 1, "decoder_ffn_dim": 24}
    trained |= {"ssim_weight": 1.0, "dice_weight": 0.0, "training_free_weight": 0.1}
    stored = ZegClipConfig.from_dict(ZegClipConfig.from_pretrained(model_folder).to_dict() | trained)
    other = config_of_base(stored, {"decode_head_type": "zegclip", "decoder_attention_heads": 2})
    usual = ZegClipConfig()
    for name in HEAD_FIELDS - {"decoder_attention_heads"}:
        assert getattr(other, name) == getattr(usual, name)
    assert other.decoder_attention_heads == 2
    assert other.clip_config.to_dict() == stored.clip_config.to_dict()
    # What is neither of heads nor of their training.
    kept = {"clip_config", "dense_attention", "naclip_sigma", "similarity_scale", "decode_head_type"}
    kept |= {"prompt_templates", "prompt_input_ids", "seen_class_names", "vocabulary", "semantic_loss_ignore_index"}
    own = ZegClipConfig.__dataclass_fields__.keys() - PreTrainedConfig.__dataclass_fields__.keys()
    assert own == HEAD_FIELDS | kept | {"training_free_weight"}
    same = config_of_base(stored, {"decoder_attention_heads": 2})
    assert other.training_free_weight == same.training_free_weight == 0  # what was chosen for another training
    assert (same.ssim_weight, same.dice_weight, same.decoder_ffn_dim) == (1.0, 0.0, 24)
