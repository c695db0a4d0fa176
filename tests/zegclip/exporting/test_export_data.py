"""`zegclip export-data`: reading back what it writes, with other libraries, gives the same class maps."""

import json
import os
from pathlib import Path
from urllib.parse import unquote

import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image
from PIL import Image as PILImage
from pycocotools.coco import COCO

from zegclip.commands.main import main
from zegclip.exporting.formats import tag_of
from zegclip.processing.class_split import read_class_names
from zegclip.processing.datasets import load_pictures, read_sample

NAMES = ["sky", "traffic light", "Ärmel/a", "no", "t-shirt"]
KINDS = ("coco", "colours", "binary")


def draw(folder, split, name, ids, suffix=".png", exif=None):
    """Draw a picture of noise and a mask."""
    ids = np.asarray(ids)
    for kind in ("images", "masks"):
        (folder / kind / split / name).parent.mkdir(parents=True, exist_ok=True)
    pixels = np.random.default_rng(ids.size).integers(0, 256, (*ids.shape, 3), dtype=np.uint8)
    PILImage.fromarray(pixels).save(folder / "images" / split / f"{name}{suffix}", exif=exif or b"")
    dtype = np.uint8 if ids.max() < 256 else np.uint16
    PILImage.fromarray(ids.astype(dtype)).save(folder / "masks" / split / f"{name}.png")


@pytest.fixture
def folder(tmp_path):
    """Splits with pictures of the same names, a subfolder, another format, a turned picture and ignored pixels."""
    folder = tmp_path / "data"
    rng = np.random.default_rng(0)
    draw(folder, "train", "a", rng.choice([0, 1, 2, 3, 4, 255], (12, 17)))
    draw(folder, "train", "b 2", [[2, 2, 2], [4, 4, 0]], suffix=".jpg")
    draw(folder, "train", "city/a-tag-x", rng.choice([0, 3], (9, 5)))
    draw(folder, "val", "a", rng.choice([1, 3, 255], (7, 8)))
    draw(folder, "val", "turned", [[0, 1], [1, 1], [3, 255]])
    exif = PILImage.Exif()
    exif[0x0112] = 6
    PILImage.new("RGB", (3, 2), "red").save(folder / "images" / "val" / "turned.jpg", exif=exif)
    (folder / "images" / "val" / "turned.png").unlink()
    (folder / "classes.txt").write_text("\n".join(NAMES) + "\n", encoding="utf-8")
    return folder


def maps_of(folder, **options):
    """The class maps of a canonical folder, -1 where ignored, by split and upright size, which differ."""
    data, split = load_pictures(str(folder), **options)
    maps = {}
    for name, rows in data.items():
        for index, row in enumerate(rows):
            image, ids = read_sample(row, split, index)
            maps[name, image.size] = np.where(ids == split.ignore_index, -1, ids)
    return maps, list(split.names)


def read_coco(target):
    maps, names = {}, []
    for path in sorted((target / "annotations").iterdir()):
        split = path.stem.removeprefix("instances_")
        coco = COCO(str(path))
        names = [category["name"] for category in coco.loadCats(sorted(coco.getCatIds()))]
        for entry in coco.loadImgs(coco.getImgIds()):
            with PILImage.open(target / "images" / split / entry["file_name"]) as image:
                assert image.size == (entry["width"], entry["height"])
                assert not image.getexif()
            ids = np.full((entry["height"], entry["width"]), -1)
            for annotation in coco.loadAnns(coco.getAnnIds(entry["id"])):
                inside = coco.annToMask(annotation) == 1
                assert (ids[inside] == -1).all()
                assert inside.sum() == annotation["area"]
                ids[inside] = names.index(coco.cats[annotation["category_id"]]["name"])
            maps[split, image.size] = ids
    return maps, names


def read_colours(target):
    comment, *lines = (target / "labelmap.txt").read_text(encoding="utf-8").splitlines()
    assert comment == "# label:color_rgb:parts:actions"
    labels = {line.split(":")[0]: tuple(map(int, line.split(":")[1].split(","))) for line in lines}
    assert len(set(labels.values())) == len(labels) == len(lines)
    assert labels["background"] == (0, 0, 0)
    unlabelled = "ignored" if "ignored" in labels else "background"
    names = [label for label in labels if label != unlabelled]
    maps = {}
    for path in sorted((target / "ImageSets" / "Segmentation").iterdir()):
        for name in path.read_text(encoding="utf-8").splitlines():
            (picture,) = (target / "JPEGImages" / name).parent.glob(f"{Path(name).name}.*")
            pixels = np.asarray(PILImage.open(target / "SegmentationClass" / f"{name}.png")).astype(int)
            objects = np.asarray(PILImage.open(target / "SegmentationObject" / f"{name}.png")).astype(int)
            known = (pixels == np.array(labels[unlabelled])).all(axis=-1)
            ids = np.full(pixels.shape[:2], -1)
            for index, label in enumerate(names):
                inside = (pixels == np.array(labels[label])).all(axis=-1)
                ids[inside] = index
                if inside.any() and label != "background":
                    assert len(np.unique(objects[inside], axis=0)) == 1
            assert ((ids == -1) == known).all()
            maps[path.stem, PILImage.open(picture).size] = ids
    return maps, names


def read_binary(target):
    [file] = [path for name in ("classes.txt", "id2label.json") if (path := target / name).exists()]
    names = [name if isinstance(name, str) else name[0] for name in read_class_names(file)[0]]
    maps = {}
    for split in sorted(path.name for path in (target / "images").iterdir()):
        for picture in filter(Path.is_file, (target / "images" / split).rglob("*")):
            with PILImage.open(picture) as image:
                size = image.size
            ids = np.full(size[::-1], -1)
            place = target / "masks" / split / picture.parent.relative_to(target / "images" / split)
            for path in place.glob("*.png"):
                name, tag = path.stem.removesuffix("-0").rsplit("-tag-", 1)
                if name == picture.stem:
                    mask = np.asarray(PILImage.open(path))
                    assert set(np.unique(mask)) <= {0, 255}
                    ids[mask == 255] = names.index(unquote(tag))
            maps[split, size] = ids
    return maps, names


READERS = {"coco": read_coco, "colours": read_colours, "binary": read_binary}


def assert_same(found, expected):
    (maps, names), (expected_maps, expected_names) = found, expected
    assert names == expected_names
    assert maps.keys() == expected_maps.keys()
    for key, ids in expected_maps.items():
        assert (maps[key] == ids).all()


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_written_is_the_data_set(folder, tmp_path, kind, capsys):
    assert main(["export-data", str(folder), str(tmp_path / "out"), "--to", kind]) == 0
    assert_same(READERS[kind](tmp_path / "out"), maps_of(folder))
    assert "ignored" in capsys.readouterr().out
    copies = {path.read_bytes() for path in (tmp_path / "out").rglob("*.jpg")}
    assert copies == {(folder / "images" / "train" / "b 2.jpg").read_bytes()}
    assert not list(tmp_path.glob(".zegclip-*"))


@pytest.mark.parametrize("kind", KINDS)
def test_more_classes_than_an_8_bit_mask_holds(tmp_path, kind):
    """With values that are not the positions of the classes, and 255 as one of them."""
    folder = tmp_path / "data"
    values = [*range(0, 600, 2), 255]
    draw(folder, "train", "a", np.array([*values, 65535] * 4).reshape(4, -1))
    names = {str(value): f"class {value}" for value in values}
    (folder / "id2label.json").write_text(json.dumps(names))
    assert main(["export-data", str(folder), str(tmp_path / "out"), "--to", kind]) == 0
    assert_same(READERS[kind](tmp_path / "out"), maps_of(folder))


def test_a_class_background_differs_from_ignored_pixels(tmp_path):
    folder = tmp_path / "data"
    draw(folder, "train", "a", [[0, 1, 2, 255, 0]])
    (folder / "classes.txt").write_text("cat\nbackground\ndog\n")
    assert main(["export-data", str(folder), str(tmp_path / "out"), "--to", "colours"]) == 0
    assert_same(read_colours(tmp_path / "out"), maps_of(folder))


def test_pictures_of_a_table_are_written_with_their_format(tmp_path):
    place = tmp_path / "loose"
    draw(place, "train", "a", [[0, 1, 255]], suffix=".jpg")
    files = [{"bytes": next((place / kind).rglob("*.*")).read_bytes(), "path": None} for kind in ("images", "masks")]
    features = Features({"image": Image(decode=False), "mask": Image(decode=False)})
    rows = Dataset.from_dict({"image": [files[0]] * 2, "mask": [files[1]] * 2}, features=features)
    DatasetDict(train=rows).save_to_disk(tmp_path / "saved")
    (tmp_path / "saved" / "classes.txt").write_text("cat\ndog\n")
    assert main(["export-data", str(tmp_path / "saved"), str(tmp_path / "out"), "--to", "coco"]) == 0
    written = sorted(path.name for path in (tmp_path / "out" / "images" / "train").iterdir())
    assert written == ["000000.jpg", "000001.jpg"]
    assert_same(read_coco(tmp_path / "out"), maps_of(tmp_path / "saved"))


@pytest.mark.parametrize("written", ['{"0": "no", "5": ["km/h", "sofa"]}', "no\nsofa/couch\n"])
def test_other_names_of_a_class_and_slashes_are_kept(tmp_path, written):
    folder = tmp_path / "data"
    draw(folder, "train", "a", [[0, 0]])
    file = "id2label.json" if written.startswith("{") else "classes.txt"
    (folder / file).write_text(written)
    expected, _ = read_class_names(folder / file)
    for kind in ("binary", "coco"):
        assert main(["export-data", str(folder), str(tmp_path / kind), "--to", kind]) == 0
    assert read_class_names(tmp_path / "binary" / file)[0] == expected
    content = json.loads((tmp_path / "coco" / "annotations" / "instances_train.json").read_text())
    assert [category.get("synonyms", category["name"]) for category in content["categories"]] == expected


@pytest.mark.parametrize("kind", KINDS)
def test_predictions_are_exported_with_their_pictures(model_folder, tmp_path, kind):
    pictures, masks = tmp_path / "pictures", tmp_path / "predicted"
    pictures.mkdir()
    rng = np.random.default_rng(0)
    for name, size in {"a": (40, 60), "b": (50, 45)}.items():
        PILImage.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)).save(pictures / f"{name}.png")
    words = ["segment", pictures, "--labels", "cat, dog, tree", "--model", model_folder, "--output", masks]
    assert main([*map(str, words), "--threshold", "0.5", "--device", "cpu"]) == 0
    assert main(["export-data", str(masks), str(tmp_path / "out"), "--to", kind]) == 0
    maps, names = READERS[kind](tmp_path / "out")
    assert names == ["cat", "dog", "tree"]
    for name, size in {"a": (60, 40), "b": (45, 50)}.items():
        predicted = np.asarray(PILImage.open(masks / f"{name}_mask.png")).astype(int)
        assert (maps["train", size] == np.where(predicted == 255, -1, predicted)).all()


def test_predictions_inside_of_a_data_set_are_not_taken_for_it(folder, tmp_path, capsys):
    PILImage.new("L", (2, 2)).save(folder / "a_mask.png")
    (folder / "a.json").write_text(json.dumps({"image": "x.png", "labels": [{"label": "cat"}]}))
    assert main(["export-data", str(folder), str(tmp_path / "out"), "--to", "coco"]) == 1
    assert "results of zegclip segment as well" in capsys.readouterr().err


def test_the_other_names_of_a_predicted_class_are_kept(model_folder, tmp_path, capsys):
    PILImage.new("RGB", (9, 9), "red").save(tmp_path / "a.png")
    words = ["segment", tmp_path / "a.png", "--labels", "cat/kitten, dog", "--model", model_folder]
    assert main([*map(str, words), "--output", str(tmp_path / "masks"), "--device", "cpu"]) == 0
    words = ["export-data", str(tmp_path / "masks"), str(tmp_path / "out"), "--to", "coco"]
    assert main([*words, "--classes-file", "names.txt"]) == 1
    assert "--classes-file" in capsys.readouterr().err
    assert main(words) == 0
    [file] = (tmp_path / "out").rglob("*.json")
    names = {row["name"]: row.get("synonyms") for row in json.loads(file.read_text())["categories"]}
    assert names == {"cat": ["cat", "kitten"], "dog": None}


def test_pictures_that_have_changed_since_they_were_segmented_are_named(model_folder, tmp_path):
    picture = tmp_path / "a.png"
    PILImage.new("RGB", (9, 9), "red").save(picture)
    words = ["segment", picture, "--labels", "cat, dog", "--model", model_folder, "--output", tmp_path / "masks"]
    assert main([*map(str, words), "--device", "cpu"]) == 0
    PILImage.new("RGB", (9, 9), "blue").save(picture)
    with pytest.warns(UserWarning, match="were changed"):
        assert main(["export-data", str(tmp_path / "masks"), str(tmp_path / "out"), "--to", "coco"]) == 0


def test_predictions_of_several_settings_or_without_masks_are_named(model_folder, tmp_path):
    for name in "abc":
        PILImage.new("RGB", (9, 9), "red").save(tmp_path / f"{name}.png")

    def segment(name, *more):
        words = ["segment", tmp_path / f"{name}.png", "--labels", "cat, dog", "--model", model_folder]
        assert main([*map(str, words), "--output", str(tmp_path / "masks"), "--device", "cpu", *more]) == 0

    segment("a")
    segment("b", "--format", "geojson")
    PILImage.new("L", (9, 9)).save(tmp_path / "masks" / "mine_mask.png")
    words = ["export-data", str(tmp_path / "masks")]
    with pytest.warns(UserWarning, match=r"1 pictures have no mask.*b\.json"):
        assert main([*words, str(tmp_path / "out"), "--to", "coco"]) == 0
    segment("b")
    segment("c", "--threshold", "0.3")
    with pytest.warns(UserWarning, match="2 different models or settings"):
        assert main([*words, str(tmp_path / "both"), "--to", "coco"]) == 0


def test_predictions_of_a_picture_whose_name_is_no_text(model_folder, tmp_path, capsys):
    picture = tmp_path / os.fsdecode(b"\xff.png")
    PILImage.new("RGB", (9, 9), "red").save(picture, format="png")
    words = ["segment", picture, "--labels", "cat, dog", "--model", model_folder, "--output", tmp_path / "masks"]
    assert main([*map(str, words), "--device", "cpu"]) == 0
    assert main(["export-data", str(tmp_path / "masks"), str(tmp_path / "out"), "--to", "coco"]) == 1
    assert "not UTF-8" in capsys.readouterr().err


def test_predictions_of_several_lists_of_labels_are_refused(tmp_path, capsys):
    for name, label in {"a": "cat", "b": "dog"}.items():
        PILImage.new("L", (2, 2)).save(tmp_path / f"{name}_mask.png")
        (tmp_path / f"{name}.json").write_text(json.dumps({"image": "x.png", "labels": [{"label": label}]}))
    assert main(["export-data", str(tmp_path), str(tmp_path / "out"), "--to", "coco"]) == 1
    assert "same labels" in capsys.readouterr().err
    assert not (tmp_path / "out").exists()


@pytest.mark.parametrize("kind", KINDS)
def test_broken_pictures_are_listed_and_the_others_written(folder, tmp_path, kind, capsys):
    expected = maps_of(folder)
    for name in ("cut", "other", "size"):
        draw(folder, "train", name, np.full((30, 30), 9 if name == "other" else 0))
    cut = folder / "images" / "train" / "cut.png"
    cut.write_bytes(cut.read_bytes()[:200])
    PILImage.new("RGB", (3, 3)).save(folder / "images" / "train" / "size.png")
    assert main(["export-data", str(folder), str(tmp_path / "out"), "--to", kind]) == 1
    errors = [line for line in capsys.readouterr().err.splitlines() if line.startswith("broken: ")]
    assert len(errors) == 3
    assert all(any(f"{name}.png" in line for line in errors) for name in ("cut", "other", "size"))
    assert_same(READERS[kind](tmp_path / "out"), expected)


@pytest.mark.parametrize(
    ("kind", "names", "reason"),
    [("colours", ["a: b", "c"], "'a: b'"), ("colours", ["a", "#x"], "'#x'"), ("binary", ["Cat", "cat"], "'Cat'")],
)
def test_names_that_a_format_cannot_hold_are_refused(tmp_path, kind, names, reason, capsys):
    folder = tmp_path / "data"
    draw(folder, "train", "a", [[0, 1]])
    (folder / "id2label.json").write_text(json.dumps(dict(enumerate(names))))
    assert main(["export-data", str(folder), str(tmp_path / "out"), "--to", kind]) == 1
    assert reason in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [folder]
    assert main(["export-data", str(folder), str(tmp_path / "out"), "--to", "coco"]) == 0
    assert_same(read_coco(tmp_path / "out"), maps_of(folder))


def test_nothing_is_left_of_an_export_that_fails(folder, tmp_path, capsys):
    for picture in (folder / "images").rglob("*.*"):
        picture.write_bytes(b"")
    assert main(["export-data", str(folder), str(tmp_path / "out"), "--to", "coco"]) == 1
    assert "No picture could be exported" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == [folder]
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    assert main(["export-data", str(folder), str(tmp_path / "out"), "--to", "coco"]) == 1
    assert "exists already" in capsys.readouterr().err


@pytest.mark.parametrize(
    "name", ["a/b", "a\\b:c*?", "100 %", "%2F", "x-tag-y", "tag-x", "t-shirt", "Ä 木", "..", '"<|>']
)
def test_a_tag_can_be_part_of_a_file_name_and_is_read_again(name):
    tag = tag_of(name)
    assert unquote(tag) == name
    assert not set(tag) & set('/\\:*?"<>|')
    for stem in ("a", "a-tag", "a-tag-b"):
        found, read = f"{stem}-tag-{tag}-0".removesuffix("-0").rsplit("-tag-", 1)
        assert (found, unquote(read)) == (stem, name)
