"""Finding models and processors: every kind of folder, and what is wrong with a wrong one."""

import json

import pytest
import torch
from PIL import Image
from transformers import CLIPImageProcessorPil

from zegclip import DeepPromptConfig, ZegClipForSemanticSegmentation
from zegclip.loading import check_model_path, load_base, load_model, load_processor
from zegclip.segment import load_segmenter


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
    with pytest.raises(ValueError, match="this folder holds no model"):
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


def cut_weights(folder):
    (folder / "model.safetensors").write_bytes((folder / "model.safetensors").read_bytes()[:5000])


@pytest.mark.parametrize(
    ("edit", "reason"),
    [
        (cut_weights, "cannot be loaded"),
        (lambda folder: (folder / "config.json").write_text("{"), "not a valid JSON"),
        (lambda folder: (folder / "model.safetensors").unlink(), "no file named model.safetensors"),
        (edit_config(num_decoder_layers="three"), "num_decoder_layers"),
        (edit_config(decoder_attention_heads=7), "decoder_attention_heads=7 does not divide"),
        (edit_config(decoder_ffn_dim=128), "sizes"),
        (edit_config(num_decoder_layers=4), r"no weights for decode_head\."),
        (lambda folder: [path.unlink() for path in folder.glob("tokenizer*")], "no tokenizer"),
        (lambda folder: [path.unlink() for path in folder.iterdir()], "holds no model"),
    ],
)
def test_broken_models_raise_one_sentence_that_names_the_folder(model_folder, edit, reason, capfd):
    edit(model_folder)
    with pytest.raises(ValueError, match=reason) as error:
        load_segmenter(model_folder, "cpu")
    assert str(model_folder) in str(error.value)
    assert "LOAD REPORT" not in capfd.readouterr().err


def test_a_plain_clip_is_refused(model, processor, tmp_path):
    model.clip.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="no trained segmentation model"):
        load_model(tmp_path)


@pytest.mark.parametrize("base_is_clip", [False, True])
def test_an_adapter_alone_takes_base_and_processor_from_beside_the_base(model, processor, tmp_path, base_is_clip):
    base = model.clip if base_is_clip else model
    base.save_pretrained(tmp_path / "base")
    processor.save_pretrained(tmp_path / "base")
    model.add_adapter(DeepPromptConfig(num_tokens=2))
    model.peft_config["default"].base_model_name_or_path = str(tmp_path / "base")
    model.save_pretrained(tmp_path / "adapter")
    assert not (tmp_path / "adapter" / "config.json").exists()
    loaded = load_model(tmp_path / "adapter")
    processor_of_base = load_processor(tmp_path / "adapter")
    assert processor_of_base.tokenizer.get_vocab() == processor.tokenizer.get_vocab()
    inputs = processor(images=Image.new("RGB", (50, 40)), text=["cat", "b"], return_tensors="pt")
    with torch.no_grad():
        torch.testing.assert_close(loaded(**inputs).logits, model.eval()(**inputs).logits)
