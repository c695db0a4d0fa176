"""`zegclip check` reads a whole data set: counts, the report of broken files, and the contact sheet."""

import json
import shutil
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from datasets import DatasetDict, Image
from PIL import Image as PILImage

from zegclip.commands.main import main
from zegclip.drawing.colours import make_colours
from zegclip.picture_world.classes import CLASS_NAMES
from zegclip.picture_world.dataset import export_picture_world
from zegclip.processing.datasets import load_pictures
from zegclip.processing.image_reading import load_class_ids
from zegclip.training.data_report import check_pictures


@pytest.fixture(scope="module")
def world(tmp_path_factory):
    """Two splits of drawn pictures in a folder."""
    folder = tmp_path_factory.mktemp("world")
    export_picture_world(folder / "train", "train", 5)
    export_picture_world(folder / "val", "tuning", 3)
    return folder


def draw_pair(folder, name, mask, size=None):
    """Draw a grey picture and a mask of the given values."""
    for kind in ("images", "masks"):
        (folder / kind).mkdir(parents=True, exist_ok=True)
    mask = np.array(mask, dtype=np.uint8)
    PILImage.new("RGB", size or mask.shape[::-1], (100, 100, 100)).save(folder / "images" / f"{name}.png")
    PILImage.fromarray(mask).save(folder / "masks" / f"{name}.png")


@pytest.fixture
def pictures(tmp_path):
    """Two whole pictures, and three that are broken in different ways."""
    folder = tmp_path / "data"
    draw_pair(folder, "a", [[0, 0, 1], [255, 255, 1]])
    draw_pair(folder, "c", [[0, 0], [0, 0], [0, 0], [0, 2]])
    draw_pair(folder, "b_unknown", [[0, 7]])
    draw_pair(folder, "d_size", [[0, 1]], size=(2, 2))
    draw_pair(folder, "e_cut", np.zeros((90, 90)))
    cut = folder / "images" / "e_cut.png"
    cut.write_bytes(cut.read_bytes()[:60])
    (folder / "classes.txt").write_text("cat\ndog\ntree\nsky\n")
    return folder


def run(*words):
    return main(["check", *map(str, words)])


@pytest.mark.parametrize("workers", [0, 2])
def test_everything_is_counted_and_everything_broken_is_listed(pictures, tmp_path, capsys, workers):
    words = [pictures, "--unseen-classes", "tree", "--ignored-classes", "sky", "--output", tmp_path / "out"]
    assert run(*words, "--workers", workers) == 1
    table = pd.read_csv(tmp_path / "out" / "classes.csv")
    assert table["class"].tolist() == ["cat", "dog", "tree"]
    assert table["training"].tolist() == ["seen", "seen", "unseen"]
    # The mask with an unknown value is whole: what it has of the classes counts.
    assert table["train_pictures"].tolist() == [3, 1, 1]
    assert table["train_pixels"].tolist() == [2 + 7 + 1, 2, 1]

    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["num_broken"] == 3
    found = report["splits"]["train"]
    assert found["pictures"] == 5
    for name, sentence in zip(("b_unknown", "d_size", "e_cut"), found["broken"], strict=True):
        assert f"{name}.png" in sentence
    assert found["ignored_share"] == pytest.approx(2 / 16)
    assert found["width"] == {"min": 2, "median": 2, "max": 3}
    assert found["height"] == {"min": 1, "median": 2, "max": 4}

    assert capsys.readouterr().out.count("broken: ") == 3


def test_a_whole_data_set_passes_with_all_of_its_splits(world, tmp_path):
    assert run(world, "--output", tmp_path / "out", "--workers", 0) == 0
    table = pd.read_csv(tmp_path / "out" / "classes.csv")
    assert table["class"].tolist() == list(CLASS_NAMES)
    for split, name in {"train": "train", "validation": "val"}.items():
        ids = np.stack([load_class_ids(path) for path in sorted((world / name / "masks").iterdir())])
        counts = [(ids == index).sum() for index in range(len(CLASS_NAMES))]
        assert table[f"{split}_pixels"].tolist() == counts
        assert table[f"{split}_pictures"].tolist() == (
            [(ids == index).any(axis=(1, 2)).sum() for index in range(len(CLASS_NAMES))]
        )


def test_the_contact_sheet_shows_pictures_of_every_split_beside_their_classes(world, tmp_path):
    data, split = load_pictures(str(world), unseen=["duck"])
    check_pictures(data, split, tmp_path)
    sheet = np.asarray(PILImage.open(tmp_path / "contact_sheet.png"))
    assert sheet.shape[1] > 3 * 2 * 384
    assert sheet.shape[0] > 3 * 384  # 8 pictures, 3 in a line
    colours = make_colours(len(CLASS_NAMES))
    ids = load_class_ids(next((world / "val" / "masks").iterdir()))
    for index in np.unique(ids):
        assert (sheet == colours[index]).all(axis=-1).any()  # its swatch in a legend


def test_a_contact_sheet_has_at_most_twelve_pictures_spread_over_the_splits(tmp_path, world):
    data, split = load_pictures(str(world))
    many = DatasetDict({"train": data["train"].select([0, 1, 2, 3, 4] * 8), "validation": data["validation"]})
    check_pictures(many, split, tmp_path / "many")
    check_pictures(data, split, tmp_path / "few")
    heights = [PILImage.open(tmp_path / name / "contact_sheet.png").height for name in ("many", "few")]
    assert heights[0] == heights[1]  # 6 of 40 and 3 of 3: three lines, as for 5 and 3


def test_a_data_set_without_one_readable_picture(pictures, tmp_path):
    for name in ("a", "b_unknown", "c"):
        (pictures / "masks" / f"{name}.png").write_bytes(b"no picture")
    assert run(pictures, "--output", tmp_path / "out", "--workers", 0) == 1
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["splits"]["train"]["width"] is None
    assert report["splits"]["train"]["ignored_share"] is None
    assert sorted(path.name for path in (tmp_path / "out").iterdir()) == ["classes.csv", "report.json"]


@pytest.mark.parametrize(("value", "size", "num_lines"), [(0, (3, 3), 21), (9, None, 1)])
def test_many_broken_files_are_cut_short_on_the_screen_alone(tmp_path, capsys, value, size, num_lines):
    """Those of the wrong size after the first 20; those with the same unknown value are one line."""
    for index in range(25):
        draw_pair(tmp_path / "data", f"{index:02d}", [[0, value]], size=size)
    (tmp_path / "data" / "classes.txt").write_text("cat\n")
    assert run(tmp_path / "data", "--output", tmp_path / "out", "--workers", 0) == 1
    assert capsys.readouterr().out.count("broken: ") == num_lines
    report = json.loads((tmp_path / "out" / "report.json").read_text())
    assert report["num_broken"] == len(report["splits"]["train"]["broken"]) == 25


def test_remarks_are_printed_and_in_the_report(tmp_path, capsys):
    """What a training would print of the data, too (test_survey.py)."""
    draw_pair(tmp_path / "data", "a", [[0, 1, 255], [0, 1, 255]])
    (tmp_path / "data" / "classes.txt").write_text("cat\ndog\ntree\n")
    assert run(tmp_path / "data", "--output", tmp_path / "out", "--workers", 0) == 0
    (remark,) = json.loads((tmp_path / "out" / "report.json").read_text())["remarks"]
    assert "tree" in remark
    assert f"note: {remark}" in capsys.readouterr().out


@pytest.mark.parametrize("workers", [0, 2])
def test_pictures_that_are_in_two_splits_are_a_remark(world, tmp_path, workers):
    """Not those of the same name, but those of the same bytes."""
    data, split = load_pictures(str(world))
    remarks = check_pictures(data, split, tmp_path / "apart", num_workers=workers)["remarks"]
    assert not [remark for remark in remarks if "also in" in remark]
    names = {kind: sorted((world / kind / "images").iterdir()) for kind in ("train", "val")}
    assert names["train"][0].name == names["val"][0].name
    for kind, numbers in {"train": (0, 1, 2), "val": (0,)}.items():
        for number in numbers:
            image = PILImage.open(names[kind][number])
            draw_pair(tmp_path / "data" / kind, f"{number}", np.zeros(image.size[::-1]))
            shutil.copy(names[kind][number], tmp_path / "data" / kind / "images" / f"{number}.png")
    for number in (1, 2):
        for kind in ("images", "masks"):
            (tmp_path / "data" / "val" / kind / f"copy_{number}.png").symlink_to(
                tmp_path / "data" / "train" / kind / f"{number}.png"
            )
    (tmp_path / "data" / "classes.txt").write_text("cat\n")
    data, split = load_pictures(str(tmp_path / "data"))
    (remark,) = check_pictures(data, split, tmp_path / "out", num_workers=workers)["remarks"]
    assert "2 pictures of validation are also in train" in remark
    assert "copy_1.png" in remark


def test_what_differs_from_the_papers_is_a_remark(tmp_path):
    root = tmp_path / "coco"
    for kind, suffix, mode in (("images", ".jpg", "RGB"), ("annotations", "_labelTrainIds.png", "L")):
        (root / kind / "val2017").mkdir(parents=True)
        PILImage.new(mode, (4, 4)).save(root / kind / "val2017" / f"000000000139{suffix}")
    assert run("coco_stuff", "--data-dir", root, "--output", tmp_path / "out", "--workers", 0) == 0
    train, validation, classes = json.loads((tmp_path / "out" / "report.json").read_text())["remarks"]
    assert "118287" in train
    assert "5000" in validation
    assert "bicycle" in classes


def test_embedded_pictures_are_called_by_their_number(pictures, tmp_path, capsys):
    data, split = load_pictures(str(pictures))
    rows = data["train"].cast_column("image", Image(decode=False))
    embedded = rows.map(
        lambda row: {"image": {"bytes": Path(row["image"]["path"]).read_bytes(), "path": None}}, features=rows.features
    )
    report = check_pictures(DatasetDict({"test": embedded}), split, tmp_path / "out")
    assert any("picture 4 is truncated" in sentence for sentence in report["splits"]["test"]["broken"])


def test_arguments_that_do_not_fit(world, tmp_path, capsys):
    (tmp_path / "file").write_text("")
    for words, mentioned in (
        (["--output", tmp_path / "file"], str(tmp_path / "file")),
        (["--unseen-classes", "dack", "--output", tmp_path / "out"], "'dack'"),
    ):
        assert run(world, *words) == 1
        assert mentioned in capsys.readouterr().err
    assert not (tmp_path / "out").exists()
