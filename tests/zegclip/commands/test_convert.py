"""`zegclip convert`: official checkpoints become model folders, hostile ones are never run."""

import os
import pickle
from pathlib import Path

import pytest
import torch
from safetensors import safe_open

from zegclip import ZegClipForSemanticSegmentation, ZegClipProcessor
from zegclip.commands.convert import CLIP_TOKENIZER
from zegclip.commands.main import main
from zegclip.modeling.convert_official_checkpoint import convert

GOLDENS = Path(__file__).parents[2] / "goldens"


def test_with_a_tokenizer(checkpoint, official, tokenizer, picture, tmp_path, succeeds, fails):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    output = tmp_path / "new" / "converted"
    succeeds("convert", checkpoint, output, "--tokenizer", tmp_path / "tokenizer")
    assert [path.name for path in output.parent.iterdir()] == ["converted"]
    ours, expected = ZegClipForSemanticSegmentation.from_pretrained(output), convert(official, method="zegclip")
    inputs = {"pixel_values": torch.randn(1, 3, 64, 64), "input_ids": torch.tensor([[77, 3, 5, 78], [77, 6, 78, 78]])}
    with torch.no_grad():
        assert torch.equal(ours(**inputs).logits, expected(**inputs).logits)
    # 8 positions are too few for the usual template.
    segment = ["segment", picture, "--labels", "a, b", "--output", tmp_path / "results"]
    fails([*segment, "--model", output], "too long")


def test_spt_seg(checkpoint, tmp_path, succeeds, fails):
    with safe_open(GOLDENS / "spt_c_grid6_transductive.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("state_dict.")]  # noqa: SIM118
        official = {name.removeprefix("state_dict."): file.get_tensor(name) for name in names}
    path, output = tmp_path / "spt_seg.pth", tmp_path / "converted"
    torch.save({"state_dict": official}, path)
    fails(["convert", path, output], path, "spt-seg")
    fails(["convert", checkpoint, output, "--method", "spt-seg"], checkpoint, "zegclip")
    assert not output.exists()
    succeeds("convert", path, output, "--method", "spt-seg")
    ours, expected = ZegClipForSemanticSegmentation.from_pretrained(output), convert(official, method="spt-seg")
    stored = ours.state_dict()
    for name, tensor in expected.state_dict().items():
        assert torch.equal(stored[name], tensor) or ".original_module." in name, name
    pixels, names = torch.randn(1, 3, 96, 96), torch.nn.functional.normalize(torch.randn(4, 32), dim=-1)
    with torch.no_grad():
        logits = expected(pixel_values=pixels, class_embeds=names).logits
        # Where the weights lie in memory decides how a matrix product rounds its last bit.
        actual = ours(pixel_values=pixels, class_embeds=names).logits
        torch.testing.assert_close(actual, logits, atol=1e-5, rtol=0)


def test_without_a_tokenizer_the_output_tells_how_to_add_one(
    checkpoint, tokenizer, picture, tmp_path, succeeds, fails
):
    output = tmp_path / "converted"
    assert f"save_pretrained('{output}')" in succeeds("convert", checkpoint, output, "--dtype", "float16")
    assert ZegClipForSemanticSegmentation.from_pretrained(output).dtype == torch.float16
    segment = ["segment", picture, "--labels", "a, b", "--model", output, "--output", tmp_path / "results"]
    fails(segment, "no tokenizer")
    tokenizer.model_max_length = 8
    tokenizer.save_pretrained(output)
    fails(segment, "too long")


def test_the_tokenizer_that_was_downloaded_before_is_found(checkpoint, tokenizer, tmp_path, succeeds, monkeypatch):
    cached = tmp_path / "cache" / "snapshot" / "tokenizer_config.json"
    tokenizer.save_pretrained(cached.parent)
    asked = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: asked.append(names) or str(cached))
    succeeds("convert", checkpoint, tmp_path / "converted")
    assert asked == [(CLIP_TOKENIZER, "tokenizer_config.json")]
    stored = ZegClipProcessor.from_pretrained(tmp_path / "converted").tokenizer
    assert stored.get_vocab() == tokenizer.get_vocab()
    assert stored.model_max_length == 8
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(cached.parent)
    succeeds("convert", checkpoint, tmp_path / "unfit")
    assert not (tmp_path / "unfit" / "tokenizer.json").exists()


@pytest.mark.parametrize("name", ["tokenizer", "missing"])
def test_a_tokenizer_that_does_not_fit_is_refused(checkpoint, tokenizer, tmp_path, fails, name):
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    fails(["convert", checkpoint, tmp_path / "out", "--tokenizer", tmp_path / name], tmp_path / name)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "mentioned"),
    [
        (b"", "template"),
        (b"\n \n", "template"),
        (b"a photo of a cat\n", "{}"),
        (b"# of the paper\na photo of a {}\n", "# of the paper"),
        (b"\xff\xfe\x00", "UTF-8"),
        ("a {}".encode("utf-16-le"), "UTF-8"),
        (None, "directory"),
    ],
)
def test_a_file_of_templates_that_is_none_is_named(checkpoint, tmp_path, capsys, fails, content, mentioned):
    path = tmp_path / "templates.txt"
    if content is None:
        path.mkdir()
    else:
        path.write_bytes(content)
    words = ["convert", str(checkpoint), str(tmp_path / "out"), "--templates-file", str(path)]
    fails(words, path, mentioned)
    assert main(words) == 1
    complaint = capsys.readouterr().err.lower()
    assert "class name" not in complaint.replace("for the class name", "")
    assert str(checkpoint) not in complaint
    assert not (tmp_path / "out").exists()


def test_a_file_of_templates(checkpoint, tmp_path, succeeds):
    (tmp_path / "templates.txt").write_bytes("\ufeffa {}\r\n\r\nthe {}\n".encode())
    succeeds("convert", checkpoint, tmp_path / "out", "--templates-file", tmp_path / "templates.txt")
    converted = ZegClipForSemanticSegmentation.from_pretrained(tmp_path / "out")
    assert converted.config.prompt_templates == ["a {}", "the {}"]


def test_a_checkpoint_that_cannot_be_converted_is_named(official, tmp_path, fails):
    """What makes it one is in tests/modeling/test_convert_official_checkpoint.py."""
    path = tmp_path / "other.pth"
    torch.save({name: tensor for name, tensor in official.items() if name != "backbone.proj"}, path)
    for place, mentioned in ((path, "backbone.proj"), (tmp_path / "missing.pth", "missing.pth")):
        fails(["convert", place, tmp_path / "out"], place, mentioned)
        assert not (tmp_path / "out").exists()


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


@pytest.mark.parametrize("zipped", [True, False])
def test_a_hostile_pickle_is_never_run(official, tmp_path, fails, zipped):
    path, marker = tmp_path / "hostile.pth", tmp_path / "marker"
    content = {"state_dict": official, "meta": Hostile(marker)}
    if zipped:
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    fails(["convert", path, tmp_path / "out"], path)
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    torch.load(path, weights_only=False) if zipped else pickle.loads(path.read_bytes())
    assert marker.exists()  # so the file is as hostile as it should be
