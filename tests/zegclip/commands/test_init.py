"""`zegclip init` writes a configuration that fits the data and the CLIP, says why, and can be trained as it is."""

import json
import re

import numpy as np
import pytest
import yaml
from PIL import Image
from transformers import CLIPConfig

from zegclip.commands.main import main
from zegclip.processing.class_split import read_class_names
from zegclip.training.arguments import parse_arguments
from zegclip.training.data import load_data
from zegclip.training.propose import METHODS, choose_splits, to_yaml

CLASSES = ["cat", "dog", "tree", "sky"]


def draw_split(folder, split, count, side=32, num_classes=4, values=None):
    """Draw pictures of noise, whose masks have each class in stripes."""
    rng = np.random.default_rng(0)
    values = np.arange(num_classes) if values is None else np.asarray(values)
    ids = values[np.arange(side * (side + 4)) * len(values) // (side * (side + 4))].reshape(side + 4, side)
    for index in range(count):
        for kind, pixels in {
            "images": rng.integers(0, 256, (*ids.shape, 3), dtype=np.uint8),
            "masks": ids.astype(np.uint8 if ids.max() < 256 else np.uint16),
        }.items():
            (folder / kind / split).mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(folder / kind / split / f"{index:04d}.png")


@pytest.fixture
def street(tmp_path, monkeypatch):
    """A folder with two splits in the working directory."""
    monkeypatch.chdir(tmp_path)
    draw_split(tmp_path / "street", "train", 6)
    draw_split(tmp_path / "street", "val", 2)
    (tmp_path / "street" / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return tmp_path / "street"


def make_clip(folder, patch, layers, width=512, side=224):
    """Save the configuration of a CLIP, which is all that is read."""
    vision = {"patch_size": patch, "num_hidden_layers": layers, "image_size": side}
    CLIPConfig(projection_dim=width, vision_config=vision).save_pretrained(folder)
    return folder


def propose(*words, data="street", file="proposed.yaml"):
    """Write a configuration for a folder, and return its fields as they are read for a training."""
    assert main(["init", data, "--output", file, "--overwrite", *map(str, words)]) == 0
    model_args, data_args, training_args = parse_arguments([file, "--use_cpu"])
    return {**vars(model_args), **vars(data_args), **vars(training_args)}


def chosen(fields, *names):
    return [fields[name] for name in names]


def test_it_is_trained_and_evaluated_as_it_says(street, clip_folder, capsys):
    assert main(["init", "street", "--model", str(clip_folder)]) == 0
    output = capsys.readouterr().out
    commands = [line.partition(": zegclip ")[2].split() for line in output.splitlines() if ": zegclip " in line]
    assert commands == [["train", "street.yaml"], ["eval", "street.yaml", "--model", "outputs/street"]]
    written = (street.parent / "street.yaml").read_text(encoding="utf-8")
    assert all(f"#   zegclip {' '.join(command)}\n" in written for command in commands)
    train, evaluate = commands
    small = ["--total_train_batch_size", "2", "--num_prompt_tokens", "2", "--use_cpu"]
    assert main([*train, "--max_steps", "2", *small]) == 0
    assert main([*evaluate, "--use_cpu"]) == 0
    assert list(street.parent.glob("outputs/street/eval_*/results.json"))


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("large", [False, True])
def test_every_field_has_a_comment(street, clip_folder, method, large):
    model = make_clip(street.parent / "large", 16, 12) if large else clip_folder
    propose("--method", method, "--model", model)
    above = ""
    num_fields = 0
    for line in (street.parent / "proposed.yaml").read_text(encoding="utf-8").splitlines():
        assert len(line) < 120
        if line and not line.startswith("#"):
            num_fields += 1
            assert above.startswith("# "), line
        above = line
    assert num_fields > 20


@pytest.mark.parametrize("method", METHODS)
def test_the_embedded_clip_gets_what_it_was_trained_with(street, method):
    names = ("image_size", "crop_size", "window_size", "window_stride", "decoder_ffn_dim", "decoder_attention_heads")
    names += ("out_indices", "decoder_top_k", "decoder_low_frequency_heads", "learning_rate", "num_prompt_tokens")
    fields = propose("--method", method, data=str(enlarge(street, 96)))
    model_args, data_args, training_args = parse_arguments([f"{method}_folder", "--use_cpu"])
    expected = {**vars(model_args), **vars(data_args), **vars(training_args)}
    assert {name: fields[name] for name in names} == {name: expected[name] for name in names} | {
        "decoder_attention_heads": 4
    }
    assert fields["model"] is None


def enlarge(street, side):
    folder = street.parent / f"of_{side}"
    draw_split(folder, "train", 2, side)
    draw_split(folder, "val", 1, side)
    (folder / "classes.txt").write_text("\n".join(CLASSES) + "\n")
    return folder


# The table of docs/training.md.
CLIPS = {
    "B/16": ((16, 12, 512), (512, 512, 512, 426), 16, [7, 11]),
    "8M-16": ((16, 10, 512), (512, 512, 512, 426), 16, [5, 9]),
    "B/32": ((32, 12, 512), (512, 512, 512, 426), 4, [7, 11]),
    "L/14": ((14, 24, 768), (504, 504, 504, 420), 16, [15, 23]),
    "H/14": ((14, 32, 1024), (504, 504, 504, 420), 16, [20, 31]),
}


@pytest.mark.parametrize("name", CLIPS)
def test_sizes_follow_the_clip(street, name):
    clip, sizes, top, layers = CLIPS[name]
    folder = make_clip(street.parent / "clip", *clip)
    fields = propose("--model", folder, "--method", "ldvc", data=str(enlarge(street, 375)))
    assert chosen(fields, "image_size", "crop_size", "window_size", "window_stride") == list(sizes)
    assert chosen(fields, "decoder_top_k", "out_indices", "model") == [top, layers, str(folder)]
    assert fields["double_class_embedding"] is False


def test_sizes_follow_the_pictures(street):
    folder = make_clip(street.parent / "clip", 16, 12)
    expected = {64: 224, 200: 288, 256: 384, 600: 512, 1200: 512}
    for side, image_size in expected.items():
        fields = propose("--model", folder, data=str(enlarge(street, side)))
        assert chosen(fields, "image_size", "crop_size", "window_size") == [image_size] * 3
        written = (street.parent / "proposed.yaml").read_text(encoding="utf-8")
        assert f"median {side}" in " ".join(written.split("\n# "))
        assert ("try 1024" in " ".join(written.split("\n# "))) is (side == 1200)


def test_steps_follow_the_number_of_pictures(street):
    folder = make_clip(street.parent / "clip", 16, 12)
    seen = {}
    # The loader reads file names, and 200 of the masks.
    for count in (6, 1600, 3200):
        data = street.parent / f"many_{count}"
        draw_split(data, "train", 1, 8)
        for index in range(1, count):
            for kind in ("images", "masks"):
                (data / kind / "train" / f"{index:04d}.png").hardlink_to(data / kind / "train" / "0000.png")
        draw_split(data, "val", 2, 8)
        (data / "classes.txt").write_text("\n".join(CLASSES) + "\n")
        fields = propose("--model", folder, data=str(data))
        names = ("max_steps", "total_train_batch_size", "warmup_steps", "eval_steps", "save_steps")
        seen[count] = chosen(fields, *names)
    assert seen[6] == [2000, 6, 150, 200, 200]
    assert seen[1600] == [3000, 16, 225, 300, 300]
    assert seen[3200] == [6000, 16, 450, 600, 600]


def test_one_split_is_used_for_both_with_a_warning(street, capsys):
    for kind in ("images", "masks"):
        for path in (street / kind / "val").iterdir():
            path.unlink()
        (street / kind / "val").rmdir()
    fields = propose()
    assert chosen(fields, "train_split", "eval_split", "num_eval_pictures") == ["train", "train", 6]
    assert "only split" in capsys.readouterr().out
    assert "CAUTION" in (street.parent / "proposed.yaml").read_text(encoding="utf-8")


@pytest.mark.parametrize(
    ("sizes", "expected"),
    [
        ({"train": 3, "validation": 2}, ("train", "validation")),
        ({"test": 9, "train": 3, "validation": 2}, ("train", "validation")),
        ({"test": 2, "train": 3}, ("train", "test")),
        ({"training": 3, "valid": 2}, ("training", "valid")),
        ({"day": 3, "night": 9, "fog": 1}, ("night", "day")),
        ({"train": 3, "validation": 0}, ("train", "train")),
    ],
)
def test_splits_are_found_by_name_or_else_by_size(sizes, expected):
    assert choose_splits(sizes)[:2] == expected


def test_16_bit_masks_with_many_classes(street):
    folder = street.parent / "many"
    for split in ("train", "val"):
        draw_split(folder, split, 2, 40, values=[*range(0, 600, 2), 65535])
    names = {str(value): f"class {value}" for value in range(0, 600, 2)}
    (folder / "id2label.json").write_text(json.dumps(names))
    fields = propose("--unseen", "7", data="many")
    assert len(fields["unseen_classes"]) == 7
    assert set(fields["unseen_classes"]) <= set(names.values())
    written = (street.parent / "proposed.yaml").read_text(encoding="utf-8")
    assert "300 classes" in written
    assert "Mask values that are ignored: 255." in " ".join(written.split("\n# "))


ODD = [
    "no",
    "yes",
    "null",
    "a: b",
    "#x",
    "12:30",
    "1e3",
    "~",
    "- a",
    "[b]",
    "{c}",
    "d, e",
    "'",
    '"',
    "%",
    "é 木",
    "a\nb",
]


def test_names_with_special_characters_are_read_as_they_are(street):
    folder = street.parent / "no: #odd [folder]"
    for split in ("train", "val"):
        draw_split(folder, split, 2, num_classes=len(ODD))
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(ODD))))
    assert read_class_names(folder / "id2label.json")[0] == ODD
    fields = propose("--unseen", "12", data=folder.name)
    assert set(fields["unseen_classes"]) <= set(ODD)
    assert len(fields["unseen_classes"]) == 12
    assert fields["dataset"] == folder.name
    # With the proposal that is a comment by default.
    propose(data=folder.name)
    written = (street.parent / "proposed.yaml").read_text(encoding="utf-8")
    written = written.replace("\nsetting:", "\n#").replace("\n#setting:", "\nsetting:")
    (street.parent / "other.yaml").write_text(written.replace("#unseen_classes", "unseen_classes"), encoding="utf-8")
    _, data_args, _ = parse_arguments(["other.yaml", "--use_cpu"])
    _, split = load_data(data_args, training=True)
    assert len(split.unseen_ids) == 4


@pytest.mark.parametrize("value", [*ODD, ODD, "\u2028", 3, 0.0002, True, [0.5, 2.0], []])
def test_values_are_written_on_one_line(value):
    assert len(to_yaml(value).splitlines()) == 1
    assert yaml.safe_load(f"a: {to_yaml(value)}\n") == {"a": value}


def test_classes_are_held_out_where_asked(street, fails, capsys):
    folder = make_clip(street.parent / "clip", 16, 12)
    assert chosen(propose(), "setting", "unseen_classes", "seen_offset") == ["fully_supervised", None, 0.0]
    fields = propose("--unseen", "2", "--model", folder)
    assert chosen(fields, "setting", "seen_offset") == ["inductive", 0.1]
    assert len(fields["unseen_classes"]) == 2
    fields = propose("--unseen", "dog, sky")
    assert chosen(fields, "setting", "unseen_classes") == ["inductive", ["dog", "sky"]]
    capsys.readouterr()
    for words, reason in {"4": "3 of the 4", "0": "--unseen", "dgo": "'dog'", "cat,dog,tree,sky": "no class"}.items():
        fails(["init", "street", "--output", "refused.yaml", "--unseen", words], reason)
    assert not (street.parent / "refused.yaml").exists()


def test_rare_and_absent_classes_and_those_without_meaning_are_not_proposed(street):
    (street / "classes.txt").write_text("cat\nother\ntree\nbackground\nghost\nunicorn\n")
    fields = propose("--unseen", "2")
    assert fields["unseen_classes"] == ["cat", "tree"]


def test_void_is_ignored_unless_asked(street, capsys):
    (street / "classes.txt").write_text("cat\nVoid\ntree\nsky\n")
    fields = propose()
    assert fields["ignored_classes"] == ["Void"]
    assert "Void" in capsys.readouterr().out
    assert propose("--ignored-classes")["ignored_classes"] is None
    assert propose("--ignored-classes", "sky", "cat")["ignored_classes"] == ["sky", "cat"]


def test_words_that_the_embedded_clip_cannot_know_are_named(street, clip_folder, capsys):
    (street / "classes.txt").write_text("cat\nforklift\ntree\nsky\n")
    propose()
    assert "'forklift'" in capsys.readouterr().out
    propose("--model", clip_folder)
    assert "forklift" not in capsys.readouterr().out


def test_the_output_folder_is_never_that_of_the_data(street):
    (street.parent / "outputs").mkdir()
    street.rename(street.parent / "outputs" / "street")
    assert main(["init", "outputs/street"]) == 0
    _, data_args, training_args = parse_arguments(["street.yaml", "--use_cpu"])
    assert [data_args.dataset, training_args.output_dir] == ["outputs/street", "outputs/street_trained"]


def test_broken_files_are_named_and_nothing_is_written_without_a_whole_one(street, fails, capsys):
    draw_split(street, "train", 1, values=[9])
    propose()
    assert re.search(r"note: .*zegclip check.*value 9", capsys.readouterr().out)
    for path in (street / "masks").rglob("*.png"):
        path.write_bytes(b"")
    fails(["init", "street"], "No picture can be used", ".png")
    assert not (street.parent / "street.yaml").exists()


def test_an_existing_file_is_kept(street, fails):
    (street.parent / "street.yaml").write_text("mine")
    fails(["init", "street"], "street.yaml", "--overwrite")
    fails(["init", "street", "--output", "street"], "folder")
    assert (street.parent / "street.yaml").read_text() == "mine"
    assert main(["init", "street", "--overwrite"]) == 0
    assert "dataset: street" in (street.parent / "street.yaml").read_text()
    assert main(["init", "street/", "--method", "ldvc"]) == 0
    fields = parse_arguments(["street_ldvc.yaml", "--use_cpu"])
    assert fields[2].output_dir == "outputs/street_ldvc"
