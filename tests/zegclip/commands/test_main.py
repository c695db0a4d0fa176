import json
import os
import pickle
import struct
import subprocess
import sys
import zlib
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors import safe_open

import zegclip
from zegclip import DeepPromptConfig, ZegClipForSemanticSegmentation, ZegClipProcessor
from zegclip.commands.convert import CLIP_TOKENIZER
from zegclip.commands.main import main
from zegclip.modeling.convert_official_checkpoint import convert
from zegclip.processing.image_reading import load_class_ids

GOLDENS = Path(__file__).parents[2] / "goldens"
NOISE = np.random.default_rng(0).integers(0, 256, (40, 90, 3), dtype=np.uint8)


def picture(path):
    Image.fromarray(NOISE).save(path)


def truncated(path):
    picture(path)
    path.write_bytes(path.read_bytes()[:2000])


def decompression_bomb(path):
    header = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + struct.pack(">I", 0) + b"IDAT")


def fails(capsys, arguments, *reasons):
    """Run a command that must fail with one sentence with these words on stderr."""
    assert main([str(argument) for argument in arguments]) == 1
    output, errors = capsys.readouterr()
    assert "Traceback" not in output + errors
    assert errors.startswith("zegclip: ")
    assert errors.count("\n") == 1
    for reason in reasons:
        assert str(reason) in errors


def succeeds(capsys, *arguments):
    """Run a command that must succeed without a word on stderr, and return its output."""
    assert main([str(argument) for argument in arguments]) == 0
    output, errors = capsys.readouterr()
    assert errors == ""
    return output


@pytest.fixture
def adapter(model, model_folder, processor, tmp_path):
    """An adapter beside its processor, trained on the model of `model_folder`."""
    model.add_adapter(DeepPromptConfig(num_tokens=2))
    model.peft_config["default"].base_model_name_or_path = str(model_folder)
    model.save_pretrained(tmp_path / "adapter")
    processor.save_pretrained(tmp_path / "adapter")
    return tmp_path / "adapter"


def test_one_picture_and_the_same_again(model_folder, tmp_path, capsys):
    picture(tmp_path / "street.png")
    results = tmp_path / "new" / "results"
    command = ["segment", tmp_path / "street.png", "--labels", "cat, tree", "--model", model_folder]
    output = succeeds(capsys, *command, "--output", results)
    assert output.splitlines()[0].split()[0] == "cat"
    assert str(results / "street_overlay.png") in output
    assert {path.name for path in results.iterdir()} == {"street_overlay.png", "street_mask.png", "street.json"}
    again = succeeds(capsys, *command, "--output", results)
    assert again == output + "1 of 1 picture was done before; --overwrite does it again.\n"


def test_the_same_command_again(model_folder, tmp_path, capsys, monkeypatch):
    folder, results = tmp_path / "pictures", tmp_path / "results"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        picture(folder / name)
    command = ["segment", folder, "--labels", "cat, tree", "--model", model_folder, "--output", results]
    succeeds(capsys, *command)

    def done_again(*more):
        before = {path: path.stat().st_ino for path in results.iterdir()}
        output = succeeds(capsys, *command, *more)
        now = {path: path.stat().st_ino for path in results.iterdir()}
        assert before.keys() == now.keys()
        return {path.name[0] for path in now if now[path] != before[path]}, output

    with open(model_folder / "config.json", "ab") as config:
        config.write(b"\n")
    assert done_again()[0] == {"a", "b"}
    assert done_again("--overwrite")[0] == {"a", "b"}
    assert done_again("--threshold", "0.5")[0] == {"a", "b"}
    assert done_again()[0] == {"a", "b"}
    (results / "b_mask.png").write_bytes(b"")
    again, output = done_again()
    assert again == {"b"}
    assert output.splitlines()[1] == "1 of 2 pictures were done before; --overwrite does them again."
    # Where nothing is left to do, the model is not even loaded.
    monkeypatch.delattr("zegclip.segmenting.segmenter.load_segmenter")
    (model_folder / "README.md").write_text("no part of the model")
    assert done_again() == (set(), "2 of 2 pictures were done before; --overwrite does them again.\n")


def test_half_precision_is_another_result_of_nearly_the_same_masks(model_folder, tmp_path, capsys):
    picture(tmp_path / "a.png")
    command = ["segment", tmp_path / "a.png", "--labels", "cat, tree", "--model", model_folder, "--output", tmp_path]
    succeeds(capsys, *command)
    exact = load_class_ids(tmp_path / "a_mask.png")
    assert "done before" not in succeeds(capsys, *command, "--dtype", "bfloat16")
    assert json.loads((tmp_path / "a.json").read_text())["model"].endswith(", bfloat16")
    assert (load_class_ids(tmp_path / "a_mask.png") == exact).mean() > 0.9
    assert "done before" in succeeds(capsys, *command, "--dtype", "bfloat16")


def test_a_mixed_folder(model_folder, tmp_path, capsys):
    folder = tmp_path / "pictures"
    folder.mkdir()
    picture(folder / "good.png")
    picture(folder / "good.jpg")
    Image.new("RGB", (1, 1)).save(folder / "dot.png")
    (folder / "empty.png").write_bytes(b"")
    (folder / "text.png").write_text("not a picture")
    truncated(folder / "half.jpg")
    decompression_bomb(folder / "bomb.png")
    arguments = ["segment", folder, tmp_path / "missing.png", "--labels", "cat,tree", "--model", model_folder]
    assert main([*map(str, arguments), "--output", str(tmp_path / "results")]) == 1
    output, errors = capsys.readouterr()
    assert "3 pictures segmented" in output
    lines = errors.splitlines()
    assert lines[0] == "zegclip: 5 of 8 pictures could not be segmented:"
    bad = ["bomb.png", "empty.png", "half.jpg", "text.png", "missing.png"]
    assert len(lines) == 6
    for line, name, reason in zip(
        lines[1:], bad, ["decompression", "empty", "truncated", "not a picture", "no picture"]
    ):
        assert line.startswith("zegclip: ")
        assert name in line
        assert reason in line
    assert {path.name for path in (tmp_path / "results").iterdir()} == {
        f"{stem}{end}" for stem in ("dot", "good", "good_2") for end in ("_overlay.png", "_mask.png", ".json")
    }
    assert load_class_ids(tmp_path / "results" / "dot_mask.png").shape == (1, 1)


@pytest.mark.parametrize(
    ("write", "reason"),
    [
        (lambda path: path.write_bytes(b""), "empty"),
        (truncated, "truncated"),
        (lambda path: path.write_text("not a picture"), "not a picture"),
        (decompression_bomb, "decompression"),
        (lambda path: None, "no picture"),
    ],
)
def test_a_bad_picture(model_folder, tmp_path, capsys, write, reason):
    path = tmp_path / "picture.jpg"
    write(path)
    arguments = ["segment", path, "--labels", "cat", "--model", model_folder, "--output", tmp_path / "results"]
    fails(capsys, arguments, path, reason)
    assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    ("changes", "reason"),
    [
        ({"--labels": ""}, "empty"),
        ({"--labels": " "}, "empty"),
        ({"--labels": "cat, tree,cat"}, "'cat'"),
        ({"--labels": "cat,,tree"}, "blank"),
        ({"--labels": "cat,\udcff"}, "Unicode"),
        ({"--labels": "cat, " + "b" * 100}, "too long"),
        ({"--model": "no/such/model"}, "no/such/model"),
        ({"--model": "nobody/nothing"}, "nobody/nothing"),
        ({"--model": "picture.png"}, "picture.png"),
        ({"--model": "empty"}, "empty"),
        ({"PICTURE": "empty"}, "empty"),
        ({"--output": "picture.png"}, "picture.png"),
        ({"--output": "picture.png/results"}, "picture.png"),
        ({"--output": "pictures", "PICTURE": "pictures"}, "pictures"),
        ({"--window-stride": "1000"}, "window_stride"),
        ({"--device": "toaster"}, "'toaster'"),
    ],
)
def test_bad_arguments(model_folder, tmp_path, monkeypatch, capsys, changes, reason):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("pictures").mkdir()
    picture(Path("picture.png"))
    picture(Path("pictures/picture.png"))
    before = sorted(tmp_path.rglob("*"))
    arguments = {
        "PICTURE": "picture.png", "--labels": "cat, tree", "--model": str(model_folder), "--output": "results"
    } | changes  # fmt: skip
    fails(capsys, ["segment", arguments.pop("PICTURE"), *sum(arguments.items(), ())], reason)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "reason"),
    [
        (b"cat\n\n", None),
        ("\ufeffcat\r\ndrzewo, wysokie\r\n".encode(), None),
        (b"cat\nb\x0ccat\n", None),
        (b"", "empty"),
        (b"cat\ncat", "'cat'"),
        (b"\xff\xfe\x00", "UTF-8"),
        (None, "No such file"),
    ],
)
def test_labels_file(model_folder, tmp_path, capsys, content, reason):
    picture(tmp_path / "picture.png")
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content)
    arguments = ["segment", tmp_path / "picture.png", "--labels-file", path, "--model", model_folder]
    arguments += ["--output", tmp_path / "results"]
    if reason is None:
        assert succeeds(capsys, *arguments).startswith("  cat")
    else:
        fails(capsys, arguments, path, reason)
        assert not (tmp_path / "results").exists()


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["segment", "a.png"],
        ["segment", "--labels", "cat"],
        ["segment", "a.png", "--labels", "cat", "--labels-file", "b.txt"],
        ["segment", "a.png", "--labels", "cat", "--threshold", "nan"],
        ["segment", "a.png", "--labels", "cat", "--threshold", "much"],
        ["segment", "a.png", "--labels", "cat", "--window-size", "0"],
        ["demo", "--seed", "-1"],
        ["check", "there", "--workers", "-1"],
        ["convert", "a.pth"],
        ["convert", "a.pth", "b", "--method", "other"],
        ["fly"],
    ],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: zegclip" in capsys.readouterr().err


def test_help_waits_for_no_library_that_takes_seconds():
    code = "import sys; from zegclip.commands.main import build_parser; build_parser(); print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "numpy", "PIL", "yaml"} & set(imported)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--version"], f"zegclip {zegclip.__version__}\n"),
        *(([*words, "--help"], "usage: zegclip") for words in ([], ["segment"], ["push"], ["train"], ["eval"])),
    ],
)
def test_help_and_version(words, expected, capsys):
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 0
    assert expected in capsys.readouterr().out


def test_ctrl_c(monkeypatch, tmp_path, model_folder, capsys):
    picture(tmp_path / "picture.png")

    def interrupt(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr("zegclip.segmenting.segmenter.overlay", interrupt)
    arguments = ["segment", tmp_path / "picture.png", "--labels", "cat", "--model", model_folder]
    assert main([*map(str, arguments), "--output", str(tmp_path / "results")]) == 130
    assert capsys.readouterr().err.startswith("zegclip: interrupted.")
    assert list((tmp_path / "results").iterdir()) == []


def test_default_model_and_words_that_it_cannot_know(model, model_folder, tmp_path, monkeypatch, capsys):
    model.config.vocabulary = ["a", "photo", "of", "red", "tree", "cat"]
    model.save_pretrained(model_folder)
    monkeypatch.setattr(zegclip, "DEFAULT_MODEL", model_folder)
    monkeypatch.chdir(tmp_path)
    picture(tmp_path / "picture.png")
    output = succeeds(capsys, "segment", "picture.png", "--labels", "Red cat, tree")
    assert output.startswith("Without --model: the embedded default model, offline")
    assert Path("zegclip-output/picture_overlay.png").is_file()
    assert main(["segment", "picture.png", "--labels", "cat,red zebra,moon"]) == 0
    _, errors = capsys.readouterr()
    assert errors.count("\n") == 1
    assert errors.startswith("zegclip: warning: the embedded model cannot know 'red zebra', 'moon'")
    assert "a, photo, of, red, tree, cat" in errors
    assert "--model" in errors


def test_convert_with_a_tokenizer(checkpoint, official, tokenizer, tmp_path, capsys):
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    output = tmp_path / "new" / "converted"
    message = succeeds(capsys, "convert", checkpoint, output, "--tokenizer", tmp_path / "tokenizer")
    assert message == f"{checkpoint}: converted to {output}.\n"
    assert [path.name for path in output.parent.iterdir()] == ["converted"]
    ours, expected = ZegClipForSemanticSegmentation.from_pretrained(output), convert(official, method="zegclip")
    pixels, ids = torch.randn(1, 3, 64, 64), torch.tensor([[77, 3, 5, 78], [77, 6, 78, 78]])
    with torch.no_grad():
        assert torch.equal(
            ours(pixel_values=pixels, input_ids=ids).logits, expected(pixel_values=pixels, input_ids=ids).logits
        )
    picture(tmp_path / "picture.png")
    segment = ["segment", tmp_path / "picture.png", "--labels", "a, b", "--output", tmp_path / "results"]
    # 8 positions are too few for the usual template.
    fails(capsys, [*segment, "--model", output], "too long")


def test_convert_spt_seg(checkpoint, tmp_path, capsys):
    with safe_open(GOLDENS / "spt_c_grid6_transductive.safetensors", "pt") as file:
        names = [name for name in file.keys() if name.startswith("state_dict.")]  # noqa: SIM118
        official = {name.removeprefix("state_dict."): file.get_tensor(name) for name in names}
    path, output = tmp_path / "spt_seg.pth", tmp_path / "converted"
    torch.save({"state_dict": official}, path)
    fails(capsys, ["convert", path, output], path, "its method is 'spt-seg'")
    fails(capsys, ["convert", checkpoint, output, "--method", "spt-seg"], checkpoint, "is 'zegclip'")
    assert not output.exists()
    message = succeeds(capsys, "convert", path, output, "--method", "spt-seg")
    assert message.startswith(f"{path}: converted to {output}.\n")
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


def test_convert_without_a_tokenizer_says_how_to_add_one(checkpoint, tokenizer, tmp_path, capsys):
    output = tmp_path / "converted"
    message = succeeds(capsys, "convert", checkpoint, output, "--dtype", "float16")
    assert "still needs a CLIP tokenizer" in message.splitlines()[1]
    assert f"save_pretrained('{output}')" in message
    assert ZegClipForSemanticSegmentation.from_pretrained(output).dtype == torch.float16
    picture(tmp_path / "picture.png")
    segment = ["segment", tmp_path / "picture.png", "--labels", "a, b", "--model", output]
    fails(capsys, [*segment, "--output", tmp_path / "results"], "no tokenizer")
    tokenizer.model_max_length = 8
    tokenizer.save_pretrained(output)
    fails(capsys, [*segment, "--output", tmp_path / "results"], "too long")


def test_convert_finds_the_tokenizer_that_was_downloaded_before(checkpoint, tokenizer, tmp_path, capsys, monkeypatch):
    cached = tmp_path / "cache" / "snapshot" / "tokenizer_config.json"
    tokenizer.save_pretrained(cached.parent)
    asked = []
    monkeypatch.setattr("huggingface_hub.try_to_load_from_cache", lambda *names: asked.append(names) or str(cached))
    succeeds(capsys, "convert", checkpoint, tmp_path / "converted")
    assert asked == [(CLIP_TOKENIZER, "tokenizer_config.json")]
    stored = ZegClipProcessor.from_pretrained(tmp_path / "converted").tokenizer
    assert stored.get_vocab() == tokenizer.get_vocab()
    assert stored.model_max_length == 8
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(cached.parent)
    assert "still needs" in succeeds(capsys, "convert", checkpoint, tmp_path / "unfit")


def test_convert_refuses_a_tokenizer_that_does_not_fit(checkpoint, tokenizer, tmp_path, capsys):
    tokenizer.add_tokens(["extra"])
    tokenizer.save_pretrained(tmp_path / "tokenizer")
    for name, reason in (("tokenizer", "tokens"), ("missing", "tokenizer")):
        fails(
            capsys, ["convert", checkpoint, tmp_path / "out", "--tokenizer", tmp_path / name], tmp_path / name, reason
        )
        assert not (tmp_path / "out").exists()


class Hostile:
    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return os.mkdir, (str(self.marker),)


def load_fearlessly(path):
    return torch.load(path, weights_only=False)


def dump_pickle(content, path):
    path.write_bytes(pickle.dumps(content, protocol=2))


def load_pickle(path):
    return pickle.loads(path.read_bytes())


@pytest.mark.parametrize(("save", "load"), [(torch.save, load_fearlessly), (dump_pickle, load_pickle)])
def test_a_hostile_pickle_is_never_run(official, tmp_path, capsys, save, load):
    path, marker = tmp_path / "hostile.pth", tmp_path / "marker"
    save({"state_dict": official, "meta": Hostile(marker)}, path)
    fails(capsys, ["convert", path, tmp_path / "out"], path, "plain tensors")
    assert not marker.exists()
    assert not (tmp_path / "out").exists()
    load(path)
    assert marker.exists()  # so the file is as hostile as it should be


def without(official, *names):
    return {name: tensor for name, tensor in official.items() if name not in names}


@pytest.mark.parametrize(
    ("change", "reason"),
    [
        (lambda official: without(official, "decode_head.q_proj.weight"), "decode_head.q_proj.weight"),
        (lambda official: without(official, "backbone.proj"), "backbone.proj"),
        (lambda official: official | {"decode_head.other": torch.zeros(1)}, "decode_head.other"),
        (
            lambda official: official | {"decode_head.q_proj.bias": torch.zeros(7)},
            "size mismatch",
        ),
        (lambda official: [1, 2], "state dict"),
    ],
)
def test_another_checkpoint(official, tmp_path, capsys, change, reason):
    path = tmp_path / "other.pth"
    torch.save(change(official), path)
    fails(capsys, ["convert", path, tmp_path / "out"], path, reason)
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize(
    ("content", "reason"), [(None, "no such checkpoint"), (b"", "not a checkpoint"), (b"text", "not a checkpoint")]
)
def test_a_broken_checkpoint(tmp_path, capsys, content, reason):
    path = tmp_path / "broken.pth"
    if content is not None:
        path.write_bytes(content)
    fails(capsys, ["convert", path, tmp_path / "out"], path, reason)


def test_bundle(adapter, model, model_folder, processor, tmp_path, capsys):
    output = tmp_path / "bundled"
    output.mkdir()
    assert str(output) in succeeds(capsys, "bundle", adapter, output)
    for path in model_folder.iterdir():
        path.unlink()
    inputs = processor(images=Image.fromarray(NOISE), text=["cat", "tree"], return_tensors="pt")
    with torch.no_grad():
        ours = ZegClipForSemanticSegmentation.from_pretrained(output)(**inputs).logits
        assert torch.equal(ours, model.eval()(**inputs).logits)
    picture(tmp_path / "picture.png")
    segment = ["segment", tmp_path / "picture.png", "--labels", "cat, tree", "--model", output]
    succeeds(capsys, *segment, "--output", tmp_path / "results")


def test_bundle_needs_an_adapter(model_folder, tmp_path, capsys):
    fails(capsys, ["bundle", model_folder, tmp_path / "out"], model_folder, "adapter")
    fails(capsys, ["bundle", tmp_path / "missing", tmp_path / "out"], tmp_path / "missing", "model")
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("command", ["convert", "bundle"])
def test_nothing_is_replaced(checkpoint, adapter, tmp_path, capsys, command):
    source = checkpoint if command == "convert" else adapter
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "precious.txt").write_text("keep me")
    for output in (tmp_path / "out", tmp_path / "out" / "precious.txt"):
        fails(capsys, [command, source, output], output, "exists")
    assert (tmp_path / "out" / "precious.txt").read_text() == "keep me"


@pytest.mark.parametrize("command", ["convert", "bundle"])
def test_an_interrupted_command_leaves_no_folder(checkpoint, adapter, tmp_path, monkeypatch, command):
    def fail(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("zegclip.ZegClipProcessor.save_pretrained", fail)
    monkeypatch.setattr("zegclip.ZegClipImageProcessor.save_pretrained", fail)
    before = sorted(tmp_path.iterdir())
    assert main([command, str(checkpoint if command == "convert" else adapter), str(tmp_path / "out")]) == 1
    assert sorted(tmp_path.iterdir()) == before
