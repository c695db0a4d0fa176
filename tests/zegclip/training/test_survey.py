"""What is printed about a data set before training: mistakes that reading alone does not show."""

import re
import shutil

import numpy as np
import pytest
import torch
from PIL import Image

from zegclip.processing.class_split import ClassSplit
from zegclip.training import survey
from zegclip.training.arguments import DataArguments
from zegclip.training.data import load_data
from zegclip.training.survey import Sample, Survey, remark_on_data

RED, BLUE = (255, 0, 0), (0, 0, 255)


def draw(folder, index, mask, palette=None, orientation=None, size=None, suffix=".jpg", mask_orientation=None):
    """Draw a picture as it is stored, and its mask."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)

    def exif(value):
        described = Image.Exif()
        if value is not None:
            described[0x0112] = value
        return described

    values = Image.fromarray(np.array(mask, dtype=np.uint8))
    if palette is not None:
        values = values.convert("P") if values.mode == "P" else Image.frombytes("P", values.size, values.tobytes())
        values.putpalette([part for colour in palette for part in colour])
    values.save(folder / "masks" / f"{index:03d}.png", exif=exif(mask_orientation))
    picture = Image.new("RGB", size or values.size, "grey")
    picture.save(folder / "images" / f"{index:03d}{suffix}", exif=exif(orientation))


def look(folder, capsys, classes="sky\ngrass", **fields):
    """Return what is printed about the pictures of a folder, with paths relative to it."""
    (folder / "classes.txt").write_text(classes)
    arguments = DataArguments(
        **{"dataset": str(folder), "eval_split": "train", "setting": "fully_supervised"} | fields
    )
    data, split = load_data(arguments, training=True)
    del data["validation"]
    try:
        remark_on_data(data, split, arguments)
    except ValueError as error:
        print(f"error: {error}")
    return capsys.readouterr().out.replace(str(folder), "").splitlines()


def test_nothing_is_printed_about_a_good_data_set(tmp_path, capsys):
    for index in range(3):
        mask = np.zeros((8, 8))
        mask[4:] = 1
        mask[0] = 255
        draw(tmp_path, index, mask, orientation=1 if index else None)
    assert look(tmp_path, capsys) == []


def test_pixels_of_all_values_of_a_class_are_counted():
    survey = Survey("train", ClassSplit(("background", "cat"), (0, 1), merged_values={7: 0, 8: 0}), total=1)
    survey.add(0, Sample(size=(10, 1), values=np.array([0, 1, 7, 8]), counts=np.array([1, 2, 3, 4])))
    assert (survey.pixels.tolist(), survey.pictures.tolist()) == ([8, 2], [1, 1])
    assert not survey.broken


def test_many_ignored_pixels_are_reported_few_are_not(tmp_path, capsys):
    draw(tmp_path, 0, [[0, 1, 255, 255]])
    draw(tmp_path, 1, [[0, 1, 0, 1]])
    assert look(tmp_path, capsys) == []
    draw(tmp_path, 1, [[0, 1, 0, 255]])
    (line,) = look(tmp_path, capsys)
    assert re.search(r"train: value 255,.*37\.5 %.* 2 of 2", line)
    for index in range(2):  # masks of 0 and 255
        draw(tmp_path, index, [[0, 255]] * 2)
    (line,) = look(tmp_path, capsys)
    assert re.search(r"no pixel of grass.* 255.*50\.0 %.* 2 of 2", line)
    for index in range(2):  # ignored by choice
        draw(tmp_path, index, [[0, 1, 2, 2]])
    assert look(tmp_path, capsys, classes="sky\ngrass\nsoil", ignored_classes=["soil"]) == []


@pytest.mark.parametrize(
    ("setting", "expected"), [("inductive", "no pixel of c."), ("fully_supervised", "no pixel of c, d.")]
)
def test_classes_without_a_pixel_are_those_that_the_setting_trains_on(tmp_path, capsys, setting, expected):
    draw(tmp_path, 0, [[0, 1]])
    unseen = {"unseen_classes": ["d"]} if setting == "inductive" else {}
    (line,) = look(tmp_path, capsys, classes="a\nb\nc\nd", setting=setting, **unseen)
    assert line.endswith(expected)


def test_a_value_without_a_name_is_one_error_for_all_masks(tmp_path, capsys):
    for index in range(20):
        draw(tmp_path, index, [[0, 1, 1, 11 if index else 0]])
    (line,) = look(tmp_path, capsys)
    assert line.startswith("error: train: value 11 occurs in 19 of 20 masks, 23.8 %")
    assert "/masks/001.png" in line
    (line,) = look(tmp_path, capsys, skip_bad_samples=True)
    assert line.startswith("note: train: value 11 occurs in 19 of 20 masks")


@pytest.mark.parametrize(
    ("values", "mentioned"), [((7, 8, 9, 20), "7 to 9 and 20"), (range(2, 250, 2), "124 between 2 and 248")]
)
def test_many_values_without_a_name_are_one_line(tmp_path, capsys, values, mentioned):
    draw(tmp_path, 0, [[0, 1, *values]])
    (line,) = look(tmp_path, capsys)
    assert mentioned in line


def test_what_else_is_broken_is_an_error_before_the_first_step(tmp_path, capsys):
    for index in range(3):
        draw(tmp_path, index, [[0, 1]], size=(3, 3) if index else None)
    (line,) = look(tmp_path, capsys)
    assert line.startswith("error: /masks/001.png has 2x1 pixels")
    assert look(tmp_path, capsys, skip_bad_samples=True) == []


def test_palettes_that_differ(tmp_path, capsys):
    """Masks of colours that were quantised file by file have different indices for a colour."""
    for index in range(4):
        colours = [RED, BLUE] if index else [BLUE, RED]
        draw(tmp_path, index, [[0, 1]], palette=colours)
    (line,) = look(tmp_path, capsys)
    assert re.search(r"index 0 .*\(255, 0, 0\) in 3 of 4 masks.*\(0, 0, 255\) in /masks/000\.png", line)


@pytest.mark.parametrize("other", [None, [(0, 0, 0), (1, 1, 1)], [RED, BLUE, (9, 9, 9)]])
def test_palettes_that_agree(tmp_path, capsys, other):
    """Masks with and without a palette, grey palettes, and colours of unused indices."""
    draw(tmp_path, 0, [[0, 1]], palette=[RED, BLUE])
    draw(tmp_path, 1, [[0, 1]], palette=other)
    assert look(tmp_path, capsys) == []


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".tif"])
@pytest.mark.parametrize("orientation", [1, 2, 3, 4, 5, 6, 7, 8])
def test_turns_that_sizes_do_not_show(tmp_path, capsys, orientation, suffix):
    draw(tmp_path / "square", 0, [[0, 1]] * 2, orientation=orientation, suffix=suffix)
    lines = look(tmp_path / "square", capsys)
    assert len(lines) == (orientation > 1)
    for line in lines:
        assert line.startswith("note: train: 1 of 1 pictures")
        assert f"/images/000{suffix}" in line
    # Both are turned.
    draw(tmp_path / "both", 0, [[0, 1]] * 2, orientation=orientation, suffix=suffix, mask_orientation=orientation)
    assert look(tmp_path / "both", capsys) == []
    # Drawn over the upright or over the stored picture: sizes tell.
    stored = (2, 3) if orientation >= 5 else (3, 2)
    draw(tmp_path / "upright", 0, [[0, 1, 1]] * 2, orientation=orientation, suffix=suffix, size=stored)
    assert len(look(tmp_path / "upright", capsys)) == (1 < orientation < 5)
    if orientation >= 5:
        draw(tmp_path / "stored", 0, [[0, 1, 1]] * 2, orientation=orientation, suffix=suffix)
        (line,) = look(tmp_path / "stored", capsys)
        assert line.startswith("error: ")
        assert "EXIF orientation" in line


def test_of_a_large_data_set_some_masks_are_read_evenly_spread(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr("zegclip.training.survey.MOST_LOOKED_AT", 4)
    for index in range(9):
        draw(tmp_path, index, [[0, 1 if index == 8 else 0]])
    assert look(tmp_path, capsys) == ["note: train has no pixel of grass (4 of 9 read)."]


def test_random_numbers_stay_where_they_are(tmp_path):
    draw(tmp_path, 0, [[0, 1]])
    (tmp_path / "classes.txt").write_text("a\nb")
    arguments = DataArguments(dataset=str(tmp_path), eval_split="train", setting="fully_supervised")
    before = torch.get_rng_state()
    for workers in (0, 1):
        remark_on_data(*load_data(arguments, training=True), arguments, workers)
    assert torch.equal(torch.get_rng_state(), before)


def test_the_picture_world_is_exact(capsys):
    arguments = DataArguments(num_train_pictures=1, num_eval_pictures=1)
    remark_on_data(*load_data(arguments, training=True), arguments)
    assert capsys.readouterr().out == ""


def test_the_evaluation_split_is_read_too(tmp_path, capsys):
    draw(tmp_path / "train", 0, [[0, 1]])
    shutil.copytree(tmp_path / "train", tmp_path / "val")
    draw(tmp_path / "val", 0, [[0, 9]])
    (tmp_path / "classes.txt").write_text("a\nb")
    arguments = DataArguments(dataset=str(tmp_path), setting="fully_supervised")
    data, split = load_data(arguments, training=True)
    with pytest.raises(ValueError, match=r"validation: value 9 occurs in 1 of 1 masks"):
        remark_on_data(data, split, arguments)


@pytest.mark.parametrize("setting", ["inductive", "fully_supervised"])
def test_masks_without_a_class_to_train_on_are_refused(tmp_path, capsys, monkeypatch, setting):
    draw(tmp_path, 0, [[255, 255]])
    draw(tmp_path, 1, [[1, 255]] if setting == "inductive" else [[255, 255]])
    (tmp_path / "classes.txt").write_text("a\nb")
    unseen = ["b"] if setting == "inductive" else None
    arguments = DataArguments(dataset=str(tmp_path), eval_split="train", setting=setting, unseen_classes=unseen)
    data, split = load_data(arguments, training=True)
    with pytest.raises(ValueError, match="no pixel of any mask has a class to train on"):
        remark_on_data(data, split, arguments)
    monkeypatch.setattr(survey, "MOST_LOOKED_AT", 1)  # A sample proves nothing.
    remark_on_data(data, split, arguments)
    assert "1 of 2 read" in capsys.readouterr().out


def test_a_benchmark_that_is_not_whole(tmp_path, capsys):
    for kind, suffix, mode in (("images", ".jpg", "RGB"), ("annotations", "_labelTrainIds.png", "L")):
        (tmp_path / kind / "val2017").mkdir(parents=True)
        for number in (139, 285):
            Image.new(mode, (4, 4)).save(tmp_path / kind / "val2017" / f"{number:012d}{suffix}")
    for limit in (None, 1):
        arguments = DataArguments("coco_stuff", str(tmp_path), num_eval_pictures=limit)
        remark_on_data(*load_data(arguments, training=False), arguments)
        assert ("5000" in capsys.readouterr().out) == (limit is None)
