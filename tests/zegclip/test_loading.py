"""Finding models and processors: every kind of folder, and what is wrong with a wrong one."""

import json

import pytest
import torch
from peft import get_peft_model
from PIL import Image
from safetensors.torch import load_file, save_file
from transformers import CLIPImageProcessorPil

from zegclip import DeepPromptConfig, ZegClipConfig, ZegClipForSemanticSegmentation
from zegclip.loading import check_model_path, load_adapter_into, load_base, load_model, load_processor
from zegclip.segmenting.segmenter import load_segmenter


@pytest.mark.parametrize("name", ["missing", "a/b/c", "./model", "/model", "~/model", "here/model"])
def test_paths_that_are_no_model(tmp_path, monkeypatch, name):
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="there is no such model folder"):
        check_model_path(name)


def test_files_and_empty_folders_are_no_model(tmp_path):
    (tmp_path / "file.pth").touch()
    with pytest.raises(ValueError, match="a model is a folder, not a file"):
        check_model_path(tmp_path / "file.pth")
    with pytest.raises(ValueError, match="no model"):
        check_model_path(tmp_path)


def test_a_hub_id_passes():
    assert check_model_path("owner/name") == "owner/name"


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


def test_a_plain_clip_gets_the_papers_picture_settings(model, tokenizer, tmp_path):
    model.clip.save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    CLIPImageProcessorPil().save_pretrained(tmp_path)
    processor = load_processor(tmp_path, ["the {}"], window_size=40)
    assert processor.image_processor.image_mean == (0.485, 0.456, 0.406)
    assert not processor.image_processor.do_center_crop
    assert processor.image_processor.window_size == 40
    assert processor.prompt_templates == ["the {}"]


def edit_config(**fields):
    def edit(folder):
        described = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps(described | fields))

    return edit


def edit_processor(**fields):
    def edit(folder):
        described = json.loads((folder / "processor_config.json").read_text())
        described["image_processor"] |= fields
        (folder / "processor_config.json").write_text(json.dumps(described))

    return edit


def cut(name, length):
    return lambda folder: (folder / name).write_bytes((folder / name).read_bytes()[:length])


def edit_weights(name, value):
    def edit(folder):
        tensors = load_file(folder / "model.safetensors")
        tensors[name].view(-1)[-1] = value
        save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})

    return edit


def drop_a_layer(folder):
    described = json.loads((folder / "config.json").read_text())
    described["clip_config"]["text_config"]["num_hidden_layers"] -= 1
    (folder / "config.json").write_text(json.dumps(described))


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (cut("model.safetensors", 5000), "cannot be loaded"),
        (edit_weights("clip.logit_scale", float("nan")), r"clip\.logit_scale has NaN"),
        (edit_weights("decode_head.query_proj.weight", float("-inf")), r"decode_head\.query_proj\.weight has NaN"),
        (
            drop_a_layer,
            r"weights have clip\.text_model\.encoder\.layers\.1\..*, for which its configuration has no la",
        ),
        (edit_config(num_decoder_layers=2), r"weights have decode_head\.layers\.1\.fc1\.bias, for which"),
        (edit_config(clip_config=3), "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("[]"), r"config\.json: .*an object"),
        (
            lambda folder: (folder / "config.json").write_text("[" * 99_999),
            r"config\.json: this is not a valid JSON file",
        ),
        (
            lambda folder: (folder / "config.json").write_text("9" * 9999),
            r"config\.json: this is not a valid JSON file",
        ),
        (cut("processor_config.json", 300), r"processor_config\.json: this is not a valid JSON file"),
        (cut("tokenizer.json", 300), "this processor cannot be loaded"),
        (edit_processor(window_size="wide"), "this processor cannot be loaded"),
        (edit_processor(window_stride=33), "window_stride must lie between 1 and window_size"),
        (edit_processor(image_mean=[0.5]), "this processor cannot be loaded"),
        (
            edit_processor(size={"shortest_edge": 10**6}),
            "this processor cannot be loaded: A picture of 1x1 pixels would",
        ),
        (lambda folder: (folder / "tokenizer_config.json").write_text("{}"), "this processor cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
        (edit_config(num_decoder_layers="three"), "num_decoder_layers"),
        (edit_config(decoder_attention_heads=7), "decoder_attention_heads=7 does not divide"),
        (edit_config(decoder_ffn_dim=128), "sizes"),
        (edit_config(num_decoder_layers=4), r"no weights for decode_head\."),
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "no tokenizer"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "contains no model"),
    ],
)
def test_broken_models_raise_one_sentence_that_names_the_folder(model_folder, edit, reason, capfd):
    edit(model_folder)
    with pytest.raises(ValueError, match=reason) as error:
        load_segmenter(model_folder, "cpu")
    assert str(model_folder) in str(error.value)
    assert "LOAD REPORT" not in capfd.readouterr().err


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (cut("model.safetensors", 5000), "cannot be loaded"),
        (edit_weights("clip.logit_scale", float("inf")), r"clip\.logit_scale has NaN"),
        (edit_config(clip_config=3), "cannot be loaded"),
        (drop_a_layer, "for which its configuration has no layer"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON"),
    ],
)
def test_a_broken_base_is_refused(model_folder, edit, reason):
    edit(model_folder)
    with pytest.raises(ValueError, match=reason) as error:
        load_base(model_folder, {})
    assert str(model_folder) in str(error.value)


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        ("{", "not a valid JSON"),
        ("[]", "an object"),
        ('{"peft_type": "DEEP_PROMPT", "model_config": [1]}', r"model_config must be an object, not \[1\]"),
        ('{"peft_type": "DEEP_PROMPT", "base_model_name_or_path": 3}', "base_model_name_or_path must be text, not 3"),
        ('{"peft_type": "OTHER"}', "cannot be loaded"),
        ('{"peft_type": "DEEP_PROMPT", "num_tokens": "many"}', "cannot be loaded"),
    ],
)
def test_broken_descriptions_of_adapters(model, model_folder, content, reason):
    tuned = get_peft_model(model, DeepPromptConfig(num_tokens=2))
    tuned.save_pretrained(model_folder)
    (model_folder / "adapter_config.json").write_text(content)
    for load in (load_model, lambda folder: load_adapter_into(tuned, folder)):
        with pytest.raises(ValueError, match=reason) as error:
            load(model_folder)
        assert str(model_folder) in str(error.value)


def test_an_adapter_that_is_not_finite(model, model_folder):
    tuned = get_peft_model(model, DeepPromptConfig(num_tokens=2))
    with torch.no_grad():
        tuned.base_model.model.clip.vision_model.encoder.deep_prompt_tokens["default"][0, 0, 0] = float("nan")
    tuned.save_pretrained(model_folder)
    with pytest.raises(ValueError, match=r"deep_prompt_tokens.* has NaN"):
        load_model(model_folder)
    with pytest.raises(ValueError, match=r"deep_prompt_tokens.* has NaN"):
        load_adapter_into(tuned, model_folder)


def test_a_plain_clip_is_refused(model, processor, tmp_path):
    model.clip.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="not a trained segmentation model"):
        load_model(tmp_path)


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
    fields = {"decode_head_type": "spectral", "decoder_low_frequency_heads": 1}
    base = load_base(tmp_path, fields)
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


def test_adapters_that_do_not_fit(model, tmp_path):
    tuned = get_peft_model(model, DeepPromptConfig(num_tokens=2))
    tuned.save_pretrained(tmp_path / "adapter")
    other = get_peft_model(tuned.unload(), DeepPromptConfig(num_tokens=3))
    with pytest.raises(ValueError, match=r"deep_prompt_tokens is \(2, 2, 32\), the model\'s is \(2, 3, 32\)"):
        load_adapter_into(other, tmp_path / "adapter")
    shallow = get_peft_model(other.unload(), DeepPromptConfig(num_tokens=2, num_deep_layers=0))
    with pytest.raises(ValueError, match="num_deep_layers is None, the model's is 0"):
        load_adapter_into(shallow, tmp_path / "adapter")
    bare = get_peft_model(shallow.unload(), DeepPromptConfig(num_tokens=0, spectral_prompt=True, spectral_grid_size=4))
    with pytest.raises(ValueError, match=r"deep_prompt.* missing"):
        load_adapter_into(bare, tmp_path / "adapter")


def test_an_adapter_for_another_template_does_not_fit(model, tmp_path):
    """Its tensors have the right sizes, and would be read as the states of other words."""
    one, other = ({"text_prompts": "whole", "text_prompt_ids": [0, word, 1]} for word in (5, 6))
    tuned = get_peft_model(model, DeepPromptConfig(num_tokens=0, **one))
    tuned.save_pretrained(tmp_path / "adapter")
    fresh = get_peft_model(tuned.unload(), DeepPromptConfig(num_tokens=0, **other))
    with pytest.raises(ValueError, match=r"text_prompt_ids is \[0, 5, 1\], the model's is \[0, 6, 1\]"):
        load_adapter_into(fresh, tmp_path / "adapter")


def test_an_adapter_with_another_head_of_the_same_sizes_does_not_fit(model, tmp_path):
    get_peft_model(model, DeepPromptConfig(num_tokens=2)).save_pretrained(tmp_path / "adapter")
    config = ZegClipConfig.from_dict(model.config.to_dict() | {"descriptor": ["text", "product"]})
    fresh = get_peft_model(ZegClipForSemanticSegmentation(config), DeepPromptConfig(num_tokens=2))
    with pytest.raises(ValueError, match=r"descriptor is \['product', 'text'\], the model's is \['t"):
        load_adapter_into(fresh, tmp_path / "adapter")


@pytest.mark.parametrize(
    ("place", "message"),
    [
        ("empty", "there is no adapter"),
        ("nowhere", "there is no such adapter folder"),
        ("empty/nowhere", "there is no such adapter folder"),
        ("broken", "this adapter cannot be loaded"),
    ],
)
def test_places_without_an_adapter(model, tmp_path, monkeypatch, place, message):
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    DeepPromptConfig(num_tokens=2).save_pretrained(tmp_path / "broken")
    (tmp_path / "broken" / "adapter_model.safetensors").write_bytes(b"not one")
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=message):
        load_adapter_into(get_peft_model(model, DeepPromptConfig(num_tokens=2)), place)


def test_a_processor_that_lacks_a_file_is_not_replaced_by_another(model, processor, tmp_path):
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    (tmp_path / "tokenizer_config.json").unlink()
    with pytest.raises(ValueError, match="this processor cannot be loaded") as error:
        load_processor(tmp_path)
    assert str(tmp_path) in str(error.value)


def test_a_lack_of_memory_is_no_broken_model(model, processor, tmp_path, monkeypatch):
    model.save_pretrained(tmp_path)

    def refuse(*arguments, **kwargs):
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(ZegClipForSemanticSegmentation, "from_pretrained", refuse)
    with pytest.raises(torch.OutOfMemoryError):
        load_model(tmp_path)
