"""`zegclip segment`: its arguments, and what it leaves after success and after errors."""

import json
import re
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest

import zegclip
from zegclip.commands.main import main
from zegclip.picture_world.classes import CLASS_NAMES
from zegclip.picture_world.drawing import draw_scene
from zegclip.processing.image_reading import load_class_ids


def truncate(path, noise):
    noise.save(path)
    path.write_bytes(path.read_bytes()[:2000])


def write_decompression_bomb(path, noise):
    header = b"IHDR" + struct.pack(">IIBBBBB", 20000, 20000, 8, 2, 0, 0, 0)
    checksum = struct.pack(">I", zlib.crc32(header))
    path.write_bytes(b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + header + checksum + struct.pack(">I", 0) + b"IDAT")


BROKEN = {
    "bomb.png": write_decompression_bomb,
    "empty.png": lambda path, noise: path.write_bytes(b""),
    "half.jpg": truncate,
    "text.png": lambda path, noise: path.write_text("not a picture"),
}


@pytest.fixture
def segment(model_folder, tmp_path):
    """The command of a picture, whose results go to the folder `results`."""

    def words(path, *more, labels="cat, tree"):
        usual = ["--labels", labels, "--model", model_folder, "--output", tmp_path / "results"]
        return [str(word) for word in ("segment", path, *usual, *more)]

    return words


def test_the_same_command_again(segment, noise, model_folder, tmp_path, succeeds, monkeypatch):
    """Pictures are done again if the model, the settings or a result has changed, and only then."""
    folder, results = tmp_path / "pictures", tmp_path / "results"
    folder.mkdir()
    for name in ("a.png", "b.png"):
        noise.save(folder / name)
    succeeds(*segment(folder))

    def done_again(*more):
        before = {path: path.stat().st_ino for path in results.iterdir()}
        succeeds(*segment(folder, *more))
        now = {path: path.stat().st_ino for path in results.iterdir()}
        assert before.keys() == now.keys()
        return {path.name[0] for path in now if now[path] != before[path]}

    with open(model_folder / "config.json", "ab") as config:
        config.write(b"\n")
    for more in ([], ["--overwrite"], ["--threshold", "0.5"], []):
        assert done_again(*more) == {"a", "b"}
    exact = load_class_ids(results / "a_mask.png")
    assert done_again("--dtype", "bfloat16") == {"a", "b"}
    assert json.loads((results / "a.json").read_text())["model"].endswith(", bfloat16")
    assert (load_class_ids(results / "a_mask.png") == exact).mean() > 0.9
    (results / "b_mask.png").write_bytes(b"")
    assert done_again("--dtype", "bfloat16") == {"b"}
    # Where nothing is left to do, the model is not even loaded.
    monkeypatch.delattr("zegclip.segmenting.segmenter.load_segmenter")
    (model_folder / "README.md").write_text("no part of the model")
    assert done_again("--dtype", "bfloat16") == set()


def test_a_label_that_is_not_there_is_remarked_on(tmp_path, succeeds):
    scenes = [draw_scene(seed) for seed in range(3)]
    for seed, scene in enumerate(scenes):
        scene.image.save(tmp_path / f"{seed}.png")
    words = ["segment", *(tmp_path / f"{seed}.png" for seed in range(3)), "--output", tmp_path / "results"]
    assert "note:" not in succeeds(*words, "--labels", ", ".join(CLASS_NAMES))
    shown = set(np.unique([np.asarray(scene.mask) for scene in scenes]))
    absent = next(name for index, name in enumerate(CLASS_NAMES) if index not in shown)
    for more, count in (([], 1), (["--threshold", "0.2"], 0)):
        printed = succeeds(*words, "--labels", absent, *more)
        assert printed.count("note: the mean score") == count
        # The embedded model is stored with a blend, in which a single label competes.
        assert printed.count("a single label competes") == 1
    unblended = succeeds(*words, "--labels", absent, "--training-free-weight", "0", "--overwrite")
    assert "a single label competes" not in unblended


@pytest.mark.parametrize(
    ("labels", "said"),
    [
        ("boat; pear", True),
        ("boat\uff0cpear", True),
        ("boat, pear", False),
        ("boat/pear", False),
        ("boat\npear", False),
    ],
)
def test_a_label_that_looks_like_several_is_remarked_on(model_folder, picture, tmp_path, succeeds, labels, said):
    words = ["segment", picture, "--model", model_folder, "--output", tmp_path / "results"]
    assert ("is one label" in succeeds(*words, "--labels", labels)) == said
    (tmp_path / "labels.txt").write_text("sky\nboat, pear")
    assert "note: 'boat, pear' is one label" in succeeds(*words, "--labels-file", tmp_path / "labels.txt")


def test_results_of_other_pictures_stay(segment, noise, tmp_path, succeeds):
    """Pictures of the same name in several runs, whose results go to one folder; each run can be resumed."""
    results = tmp_path / "results"
    paths = {name: tmp_path / name / "x.png" for name in "abc"}
    for seed, path in enumerate(paths.values(), start=1):
        path.parent.mkdir()
        noise.rotate(90 * seed).save(path)
    results.mkdir()
    (results / "x_2.json").write_text('{"imagePath": "x_2.png", "shapes": []}')  # of another program
    owners = {}
    for name in "aba":
        succeeds(*segment(paths[name]))
        now = {path.name: path.read_bytes() for path in results.iterdir()}
        assert {file: content for file, content in now.items() if file in owners} == owners
        owners = now
    assert json.loads(owners["x.json"])["image"] == str(paths["a"])
    assert json.loads(owners["x_3.json"])["image"] == str(paths["b"])
    command, *words = segment(paths["c"])
    assert "2 of 3" in succeeds(command, paths["b"], paths["a"], *words)
    assert json.loads((results / "x_4.json").read_text())["image"] == str(paths["c"])
    succeeds(*segment(paths["b"], "--overwrite"))
    assert {path.name for path in results.glob("*.json")} == {"x.json", "x_2.json", "x_3.json", "x_4.json"}
    (results / "x.json").write_bytes(b"")  # as after a power failure
    succeeds(*segment(paths["a"]))
    assert json.loads((results / "x.json").read_text())["image"] == str(paths["a"])


@pytest.mark.parametrize("good", [["good.jpg", "good.png"], []])
def test_broken_pictures_are_listed_and_the_others_segmented(segment, noise, tmp_path, capsys, good):
    folder, results = tmp_path / "pictures", tmp_path / "results"
    folder.mkdir()
    for name in good:
        noise.save(folder / name)
    for name, write in BROKEN.items():
        write(folder / name, noise)
    command, *words = segment(folder)
    assert main([command, str(tmp_path / "missing.png"), *words]) == 1
    lines = capsys.readouterr().err.splitlines()[1:]
    for line, name in zip(lines, ["missing.png", *BROKEN], strict=True):
        assert line.startswith("zegclip: ")
        assert name in line
    if good:
        assert {path.name for path in results.iterdir()} == {
            f"{stem}{end}" for stem in ("good", "good_2") for end in ("_overlay.png", "_mask.png", ".json")
        }
    else:
        assert not results.exists()


@pytest.mark.parametrize(
    ("changes", "mentioned"),
    [
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
        ({"--output": "pictures", "PICTURE": "pictures/picture.png"}, "pictures"),
        ({"PICTURE": "http://[bad/x.png"}, "bad"),
        ({"--window-stride": "1000"}, "window_stride"),
        ({"--device": "toaster"}, "'toaster'"),
    ],
)
def test_bad_arguments(model_folder, noise, picture, tmp_path, monkeypatch, fails, changes, mentioned):
    monkeypatch.chdir(tmp_path)
    Path("empty").mkdir()
    Path("pictures").mkdir()
    noise.save("pictures/picture.png")
    before = sorted(tmp_path.rglob("*"))
    arguments = {
        "PICTURE": "picture.png", "--labels": "cat, tree", "--model": str(model_folder), "--output": "results"
    } | changes  # fmt: skip
    fails(["segment", arguments.pop("PICTURE"), *sum(arguments.items(), ())], mentioned)
    assert sorted(tmp_path.rglob("*")) == before


@pytest.mark.parametrize(
    ("content", "mentioned"),
    [
        (b"cat\n\n", None),
        ("\ufeffcat\r\ndrzewo, wysokie\r\n".encode(), None),
        (b"cat\nb\x0ccat\n", None),
        (b"", "empty"),
        (b"cat\ncat", "'cat'"),
        (b"\xff\xfe\x00", "UTF-8"),
        ("cat".encode("utf-16-le"), "UTF-8"),
        (b"# animals\ncat\n", "# animals"),
        (None, "labels.txt"),
    ],
)
def test_labels_file(model_folder, picture, tmp_path, succeeds, fails, content, mentioned):
    path = tmp_path / "labels.txt"
    if content is not None:
        path.write_bytes(content)
    arguments = ["segment", picture, "--labels-file", path, "--model", model_folder, "--output", tmp_path / "results"]
    if mentioned is None:
        assert re.search("^  cat ", succeeds(*arguments), re.MULTILINE)
    else:
        fails(arguments, path, mentioned)
        assert not (tmp_path / "results").exists()


def test_default_model_and_words_that_it_cannot_know(model, model_folder, picture, monkeypatch, succeeds, capsys):
    model.config.vocabulary = ["a", "photo", "of", "red", "tree", "cat"]
    model.save_pretrained(model_folder)
    monkeypatch.setattr(zegclip, "DEFAULT_MODEL", model_folder)
    monkeypatch.chdir(picture.parent)
    assert "default model" in succeeds("segment", "picture.png", "--labels", "Red cat, tree")
    assert Path("zegclip-output/picture_overlay.png").is_file()
    assert main(["segment", "picture.png", "--labels", "cat,red zebra,moon"]) == 0
    errors = capsys.readouterr().err
    assert errors.startswith("zegclip: warning: ")
    assert errors.count("\n") == 1
    assert "'red zebra', 'moon'" in errors
    assert main(["segment", "picture.png", "--labels", "cat", "--background-words", "tree, lagoon"]) == 0
    assert "'lagoon'" in capsys.readouterr().err


def test_a_plain_clip_segments_without_training(model, processor, noise, tmp_path, succeeds, capsys):
    model.clip.save_pretrained(tmp_path / "clip")
    processor.save_pretrained(tmp_path / "clip")
    capsys.readouterr()
    noise.save(tmp_path / "a.png")

    def segment(*more, labels="cat/kitten, tree"):
        words = ["segment", tmp_path / "a.png", "--model", tmp_path / "clip", "--output", tmp_path / "out", *more]
        printed = succeeds(*map(str, words), "--labels", labels)
        return printed, json.loads((tmp_path / "out" / "a.json").read_text())

    printed, record = segment()
    assert "without training" in printed
    assert [row["label"] for row in record["labels"]] == ["cat", "tree"]
    assert sum(row["share"] for row in record["labels"]) == pytest.approx(1, abs=1e-5)
    printed, other = segment(labels="cat/dog, tree")
    assert "done before" not in printed
    assert other["labels"] != record["labels"]
    _, record = segment("--background-words", "sky/cloud, sea", "--refine", labels="cat")
    assert record["settings"] == {"background": ["sky", "cloud", "sea"], "refine": True}
    assert "done before" in segment("--background-words", "sky, cloud, sea", "--refine", labels="cat")[0]


def test_json_as_a_file_of_labels_is_refused(segment, noise, tmp_path, capsys):
    noise.save(tmp_path / "a.png")
    (tmp_path / "labels.json").write_text('{"0": ["cat", "kitten"]}')
    words = segment(tmp_path / "a.png", "--labels-file", tmp_path / "labels.json")
    at = words.index("--labels")
    assert main(words[:at] + words[at + 2 :]) == 1
    assert "labels.json" in capsys.readouterr().err
