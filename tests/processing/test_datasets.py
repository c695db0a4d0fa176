"""Small data sets in every supported layout: the pictures, masks and classes that are read, and what is refused."""

import json
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import Dataset, DatasetDict, Features, Image, Value
from datasets.table import embed_table_storage
from PIL import Image as PILImage

from zegclip.processing.benchmarks import benchmark_split, read_class_lists
from zegclip.processing.class_split import ClassSplit, read_class_names, split_classes
from zegclip.processing.datasets import FEATURES, load_folder, load_pictures, read_sample
from zegclip.processing.input_error import InputError

SIZE = (8, 6)
SPLIT = ClassSplit(names=("a", "b", "c"), seen_ids=(0, 1, 2))


def draw_picture(path, size=SIZE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path))).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    PILImage.fromarray(noise).save(path, **options)


def draw_mask(path, values=(0, 1, 2, 255), size=SIZE, dtype=np.uint8, **options):
    """Draw columns of the values; 8-bit ones with a palette whose colours are not the values."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.resize(np.array(values, dtype=dtype), size[0])
    mask = PILImage.fromarray(np.repeat(row[None], size[1], axis=0))
    if dtype == np.uint8:
        mask.putpalette(list(range(255, -1, -1)) * 3)
    mask.save(path, **options)


def draw_pairs(folder, *names):
    for name in names:
        draw_picture(folder / "images" / f"{name}.jpg")
        draw_mask(folder / "masks" / f"{name}.png")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def paths_of(data, column="image"):
    return [Path(row[column]["path"]) for row in data]


def stems_of(data):
    return {name: [path.stem for path in paths_of(rows)] for name, rows in data.items()}


def tables(num_rows=3):
    """Rows with embedded files, as `push_to_hub` writes them, and other columns."""
    rows = {"picture": [], "label": [], "remark": ["x"] * num_rows}
    for index in range(num_rows):
        rows["picture"].append(PILImage.new("RGB", SIZE, (index, 0, 0)))
        mask = PILImage.fromarray(np.full(SIZE[::-1], index, dtype=np.uint8))
        mask.putpalette(list(range(256)) * 3)
        rows["label"].append(mask)
    features = Features({"picture": Image(), "label": Image(), "remark": Value("string")})
    return Dataset.from_dict(rows, features=features)


def assert_tables(data, split=SPLIT):
    for index, row in enumerate(data):
        image, labels = read_sample(row, split)
        assert image.getpixel((0, 0)) == (index, 0, 0)
        assert (labels == index).all()


# Benchmarks


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOC2012"
    for stem in ("2007_b", "2007_a", "2008_s", "2008_r", "2009_v"):
        draw_picture(root / "JPEGImages" / f"{stem}.jpg")
        # SBD's folder often has masks of VOC's own pictures as well; VOC's are the ones to take.
        draw_mask(root / "SegmentationClassAug" / f"{stem}.png", (0, 2))
        if not stem.startswith("2008"):
            draw_mask(root / "SegmentationClass" / f"{stem}.png", (0, 1, 20, 255))
    for part, stems in {"train": "2007_b\n2007_a\n", "aug": "2008_s\n2008_r\n2007_a\n\n", "val": "2009_v\n"}.items():
        write(root / "ImageSets" / "Segmentation" / f"{part}.txt", stems)
    return root


COCO_UNSEEN = (19, 23, 28, 29, 36, 51, 76, 88, 94, 112, 133, 136, 137, 157, 160)
CONTEXT_UNSEEN = (1, 7, 8, 15, 20, 25, 32, 34, 49, 55)


@pytest.mark.parametrize(
    ("name", "num_classes", "unseen_ids", "values"),
    [
        ("voc", 20, (15, 16, 17, 18, 19), {0: 255, 1: 0, 16: 15, 20: 19, 255: 255}),
        ("coco_stuff", 171, COCO_UNSEEN, {0: 0, 170: 170, 255: 255}),
        ("pascal_context_59", 59, tuple(i - 1 for i in CONTEXT_UNSEEN), {0: 255, 1: 0, 59: 58, 255: 255}),
        ("pascal_context_60", 60, CONTEXT_UNSEEN, {0: 0, 1: 1, 59: 59, 255: 255}),
        ("voc20", 20, (), {0: 255, 1: 0, 20: 19, 255: 255}),
        ("voc21", 21, (), {0: 0, 1: 1, 20: 20, 255: 255}),
        ("coco_stuff171", 171, (), {0: 0, 170: 170, 255: 255}),
        ("coco_object", 81, (), {0: 0, 80: 80, 255: 255}),
        ("ade20k", 150, (), {0: 255, 1: 0, 150: 149}),
        ("cityscapes", 19, (), {0: 0, 18: 18, 255: 255}),
    ],
)
def test_benchmarks_have_the_papers_classes_and_templates(name, num_classes, unseen_ids, values):
    split = benchmark_split(name)
    assert (len(split.names), split.unseen_ids) == (num_classes, unseen_ids)
    assert len(split.seen_ids) + len(unseen_ids) == num_classes
    assert split.labels_of(np.array(list(values))).tolist() == list(values.values())
    assert {split.names[index] for index in unseen_ids} == set(read_class_lists()[name]["unseen_names"])
    assert [len(templates) for templates in read_class_lists()["templates"].values()] == [1, 15]


def test_voc(voc, monkeypatch):
    data, split = load_pictures("voc", data_dir=voc)
    assert all(rows.features == FEATURES for rows in data.values())
    assert stems_of(data) == {"train": ["2007_b", "2007_a", "2008_s", "2008_r"], "validation": ["2009_v"]}
    folders = [path.parent.name for path in paths_of(data["train"], "mask")]
    assert folders == ["SegmentationClass"] * 2 + ["SegmentationClassAug"] * 2
    assert split == benchmark_split("voc")
    assert read_sample(data["train"][0], split)[1][0, :4].tolist() == [255, 0, 19, 255]
    monkeypatch.setenv("HOME", str(voc.parent))
    assert len(load_pictures("voc", data_dir="~/VOC2012")[0]["train"]) == 4
    aug = voc / "ImageSets" / "Segmentation" / "aug.txt"
    aug.write_text(
        "".join(f"/JPEGImages/{stem}.jpg /SegmentationClassAug/{stem}.png\n" for stem in ("2008_s", "2008_r"))
    )
    assert stems_of(load_pictures("voc", data_dir=voc)[0]) == stems_of(data)
    aug.unlink()
    assert load_pictures("voc", data_dir=voc, splits=["validation"])[0].keys() == {"validation"}


def test_coco_stuff(tmp_path):
    stems = [f"{number:012d}" for number in (9, 30, 34, 64, 110, 581921)]
    for part, names in {"train2017": stems[::-1], "val2017": ("000000000139",)}.items():
        for stem in names:
            draw_picture(tmp_path / "images" / part / f"{stem}.jpg")
            draw_mask(tmp_path / "annotations" / part / f"{stem}_labelTrainIds.png", (0, 170, 255))
            draw_mask(tmp_path / "annotations" / part / f"{stem}.png", (7, 181))  # the masks before conversion
    write(tmp_path / "images" / "train2017" / "notes.txt", "not a picture")
    write(tmp_path / "images" / "train2017" / "._000000000030.jpg", "written by macOS")
    data, split = load_pictures("coco_stuff", data_dir=tmp_path)
    assert stems_of(data) == {"train": stems, "validation": ["000000000139"]}
    assert read_sample(data["validation"][0], split)[1][0, :3].tolist() == [0, 170, 255]
    for path in (tmp_path / "annotations" / "train2017").glob("*_labelTrainIds.png"):  # not converted
        path.unlink()
    with pytest.raises(InputError, match=r"000000000009_labelTrainIds\.png .*coco_stuff164k\.py"):
        load_pictures("coco_stuff", data_dir=tmp_path)
    shutil.rmtree(tmp_path / "images" / "train2017")
    assert load_pictures("coco_stuff", data_dir=tmp_path)[0].keys() == {"validation"}
    with pytest.raises(InputError, match=r"images/train2017"):
        load_pictures("coco_stuff", data_dir=tmp_path, splits=["train", "validation"])


def test_pascal_context(tmp_path):
    for stem in ("2008_b", "2008_a", "2010_v", "2010_unused"):
        draw_picture(tmp_path / "JPEGImages" / f"{stem}.jpg")
        draw_mask(tmp_path / "SegmentationClassContext" / f"{stem}.png", (0, 1, 59))
    for part, stems in {"train": "2008_b\n2008_a\n", "val": "2010_v\n"}.items():
        write(tmp_path / "ImageSets" / "SegmentationContext" / f"{part}.txt", stems)
    for name, expected in {"pascal_context_59": [255, 0, 58], "pascal_context_60": [0, 1, 59]}.items():
        data, split = load_pictures(name, data_dir=tmp_path)
        assert stems_of(data) == {"train": ["2008_b", "2008_a"], "validation": ["2010_v"]}
        assert read_sample(data["train"][0], split)[1][0, :3].tolist() == expected


def test_ade20k(tmp_path):
    for part, stems in {
        "training": ("ADE_train_00000002", "ADE_train_00000001"),
        "validation": ("ADE_val_1",),
    }.items():
        for stem in stems:
            draw_picture(tmp_path / "images" / part / f"{stem}.jpg")
            draw_mask(tmp_path / "annotations" / part / f"{stem}.png", (0, 1, 150))
    data, split = load_pictures("ade20k", data_dir=tmp_path)
    assert stems_of(data) == {"train": ["ADE_train_00000001", "ADE_train_00000002"], "validation": ["ADE_val_1"]}
    assert read_sample(data["train"][0], split)[1][0, :3].tolist() == [255, 0, 149]
    assert (split.names[0], split.names[149]) == ("wall", "flag")
    shutil.rmtree(tmp_path / "annotations")
    with pytest.raises(InputError, match="ADEChallengeData2016"):
        load_pictures("ade20k", data_dir=tmp_path)


# Of the 34 classes that Cityscapes labels, the 19 that are evaluated, in their order.
CITYSCAPES_IDS = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33]


def test_cityscapes(tmp_path):
    stems = {"train": ["aachen/aachen_000000_000019", "ulm/ulm_000001_000019"], "val": ["lindau/lindau_000000_000019"]}
    for part, names in stems.items():
        for name in names:
            draw_picture(tmp_path / "leftImg8bit" / part / f"{name}_leftImg8bit.png")
            mask = tmp_path / "gtFine" / part / name
            draw_mask(mask.with_name(f"{mask.name}_gtFine_labelIds.png"), range(34), size=(34, 4))
            draw_picture(mask.with_name(f"{mask.name}_gtFine_color.png"))
    for image in tmp_path.rglob("*_leftImg8bit.png"):
        draw_picture(image, size=(34, 4))
    data, split = load_pictures("cityscapes", data_dir=tmp_path)
    found = [f"{path.parent.name}/{path.name.removesuffix('_leftImg8bit.png')}" for path in paths_of(data["train"])]
    assert found == stems["train"]
    assert len(data["validation"]) == 1
    labels = read_sample(data["train"][0], split)[1][0].tolist()
    assert [labels.index(index) for index in range(19)] == CITYSCAPES_IDS
    assert labels.count(255) == 34 - 19
    assert (split.names[0], split.names[11], split.names[18]) == ("road", "person", "bicycle")

    for mask in list(tmp_path.rglob("*_labelIds.png")):
        draw_mask(mask.with_name(mask.name.replace("labelIds", "labelTrainIds")), (*range(19), 255), size=(34, 4))
    data, split = load_pictures("cityscapes", data_dir=tmp_path)
    assert read_sample(data["validation"][0], split)[1][0, :20].tolist() == [*range(19), 255]
    next(tmp_path.rglob("ulm*_labelTrainIds.png")).unlink()
    with pytest.raises(InputError, match=r"labelTrainIds.png and .*labelIds.png"):
        load_pictures("cityscapes", data_dir=tmp_path)


def test_things_of_coco_stuff_have_a_background(tmp_path):
    """Stuff and pixels without a label belong to it, as nothing else is in masks drawn from instances."""
    image, mask = (tmp_path / folder / "val2017" / "000000000139" for folder in ("images", "annotations"))
    draw_picture(image.with_suffix(".jpg"))
    draw_mask(mask.with_name(f"{mask.name}_labelTrainIds.png"), (0, 79, 80, 170, 255))
    data, split = load_pictures("coco_object", data_dir=tmp_path, splits=["validation"])
    assert read_sample(data["validation"][0], split)[1][0, :5].tolist() == [1, 80, 0, 0, 0]
    assert (split.names[0], split.names[1], split.names[80]) == ("background", "person", "toothbrush")
    without = load_pictures("coco_object", data_dir=tmp_path, splits=["validation"], ignored=["background"])[1]
    assert read_sample(data["validation"][0], without)[1][0, :5].tolist() == [0, 79, 255, 255, 255]
    draw_mask(mask.with_name(f"{mask.name}_instanceTrainIds.png"), (0, 1, 80))
    data, split = load_pictures("coco_object", data_dir=tmp_path, splits=["validation"])
    assert read_sample(data["validation"][0], split)[1][0, :3].tolist() == [0, 1, 80]


def test_names_of_the_open_vocabulary_papers():
    split = benchmark_split("voc21")
    assert [len(names) for names in split.nested_names()] == [26, *[1] * 14, 7, *[1] * 4, 5]
    assert "background" not in split.all_names()
    assert split.nested_names([20])[0][0] == split.names[20]
    object_names = benchmark_split("coco_object").all_names()
    assert object_names.count("bed") == 1


@pytest.mark.parametrize(
    ("classes", "num_classes", "unseen"),
    [
        ({"unseen": ["cat"], "ignored": ["sheep", "person"]}, 18, ["cat"]),
        ({"ignored": ["sheep"]}, 19, ["pottedplant", "sofa", "train", "tvmonitor"]),
        ({"unseen": []}, 20, []),
    ],
)
def test_the_classes_of_a_benchmark_can_be_changed(classes, num_classes, unseen):
    split = benchmark_split("voc", **classes)
    assert len(split.names) == num_classes
    assert [split.names[index].replace(" ", "") for index in split.unseen_ids] == unseen


@pytest.mark.parametrize(
    "gone",
    [
        "JPEGImages",
        "JPEGImages/2007_a.jpg",
        "SegmentationClassAug",
        "SegmentationClassAug/2008_s.png",
        "ImageSets/Segmentation/train.txt",
        "ImageSets/Segmentation/aug.txt",
        "ImageSets/Segmentation/val.txt",
        ".",
    ],
)
def test_missing_files_of_a_benchmark_are_named(voc, gone):
    path = voc / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(InputError, match=re.escape(str(path))):
        load_pictures("voc", data_dir=voc)


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("val.txt", b"\n \n", r"val\.txt"),
        ("val.txt", b"\xff\xfe\x00", r"val\.txt"),
        # Validation must not measure what was trained on.
        ("aug.txt", b"2008_s\n2009_v\n", r"val\.txt .*2009_v"),
    ],
)
def test_bad_lists_of_a_benchmark_are_refused(voc, name, content, named):
    (voc / "ImageSets" / "Segmentation" / name).write_bytes(content)
    with pytest.raises(InputError, match=named):
        load_pictures("voc", data_dir=voc)


@pytest.mark.parametrize(
    ("arguments", "named"),
    [
        ({"dataset": "voc"}, "data_dir"),
        ({"dataset": "voc", "data_dir": ".", "classes_file": "x"}, "classes_file"),
        ({"dataset": "voc", "data_dir": ".", "mask_column": "x"}, "mask_column"),
        ({"dataset": "voc", "data_dir": ".", "splits": ["test"]}, "'test'"),
        ({"dataset": "coco_stuf"}, "'coco_stuf' .* coco_stuff"),
        ({"dataset": "./nowhere"}, r"\./nowhere"),
        ({"dataset": "some/where/deep"}, "some/where/deep"),
        ({"dataset": "some/where", "data_dir": "."}, "data_dir .* voc, .*'some/where'"),
        ({"dataset": "nobody/nothing"}, "nobody/nothing"),  # which is offline here
    ],
)
def test_arguments_that_do_not_fit_are_refused(arguments, named):
    with pytest.raises(InputError, match=named):
        load_pictures(**arguments)


# Folders


def test_folder_with_metadata(tmp_path):
    draw_picture(tmp_path / "pictures" / "b.jpg")
    draw_picture(tmp_path / "a.png")
    draw_mask(tmp_path / "maps" / "x.png")
    lines = [
        {"file_name": "pictures/b.jpg", "mask_file_name": "maps/x.png", "caption": "a line\u2028break"},
        {"file_name": "./a.png", "mask_file_name": "maps/../maps/x.png"},
    ]
    write(tmp_path / "metadata.jsonl", "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n")
    data = load_folder(tmp_path)
    assert stems_of(data) == {"train": ["b", "a"]}
    assert data["train"].features == FEATURES
    assert read_sample(data["train"][1], SPLIT)[1][0, :4].tolist() == [0, 1, 2, 255]
    write(tmp_path / "metadata.jsonl", " \n")
    with pytest.raises(InputError, match=r"metadata\.jsonl"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ('{"file_name": "../a.jpg", "mask_file_name": "m.png"}', r"line 2 .*'\.\./a\.jpg'"),
        ('{"file_name": "a.jpg", "mask_file_name": "x/../../m.png"}', r"line 2 .*m\.png"),
        ('{"file_name": "/etc/passwd", "mask_file_name": "m.png"}', "line 2 .*'/etc/passwd'"),
        ('{"file_name": "a.jpg"}', "line 2 .*mask_file_name"),
        ('{"image_file_name": "a.jpg", "mask_file_name": "m.png"}', "line 2 .*file_name"),
        ('{"file_name": "a.jpg", "mask_file_name": 3}', "line 2"),
        ('{"file_name": "a.jpg", ', "line 2"),
        ("[]", "line 2"),
        ("[" * 99_999, "line 2"),
        ('{"file_name": "gone.jpg", "mask_file_name": "m.png"}', r"gone\.jpg"),
        ('{"file_name": "a.jpg", "mask_file_name": "no/m.png"}', r"no/m\.png"),
        ('{"file_name": "", "mask_file_name": "m.png"}', None),
        ('{"file_name": "a\\n.jpg", "mask_file_name": "m.png"}', r"a\\n\.jpg"),
        ('{"file_name": "a\\u0000/b.jpg", "mask_file_name": "m.png"}', r"a\\x00"),
        ('{"file_name": "a\\ud800/b.jpg", "mask_file_name": "m.png"}', r"a\\ud800"),
    ],
)
def test_bad_metadata_is_refused(tmp_path, line, named):
    folder = tmp_path / "data"
    for place in (tmp_path, folder):
        draw_picture(place / "a.jpg")
        draw_mask(place / "m.png")
    write(folder / "metadata.jsonl", '{"file_name": "a.jpg", "mask_file_name": "m.png"}\n' + line)
    with pytest.raises(InputError, match=named) as error:
        load_folder(folder)
    assert "metadata.jsonl" in str(error.value)


def test_folder_of_images_and_masks(tmp_path):
    draw_pairs(tmp_path, "b", "a")
    draw_mask(tmp_path / "masks" / "without_a_picture.png")
    write(tmp_path / "images" / ".DS_Store", "")
    data = load_folder(tmp_path)
    assert stems_of(data) == {"train": ["a", "b"]}
    assert paths_of(data["train"], "mask") == [tmp_path / "masks" / "a.png", tmp_path / "masks" / "b.png"]
    with pytest.raises(InputError, match="mask_column"):  # Files have no columns.
        load_folder(tmp_path, mask_column="mask")


def test_folders_within_images_and_masks_are_splits(tmp_path):
    draw_pairs(tmp_path, "train/b", "train/deep/er/b", "train/deep/a", "val/c")
    draw_picture(tmp_path / "images" / "test" / "no_mask.jpg")
    assert stems_of(load_folder(tmp_path)) == {"train": ["b", "a", "b"], "validation": ["c"]}
    draw_picture(tmp_path / "images" / "stray.jpg")
    with pytest.raises(InputError, match=r"images/stray\.jpg"):
        load_folder(tmp_path)


def test_subfolders_are_splits(tmp_path):
    for name in ("tuning", "val"):
        draw_pairs(tmp_path / name, "one")
    draw_picture(tmp_path / "train" / "x.jpg")
    draw_mask(tmp_path / "train" / "y.png")
    write(tmp_path / "train" / "metadata.jsonl", '{"file_name": "x.jpg", "mask_file_name": "y.png"}')
    write(tmp_path / "notes" / "readme.txt", "no data")
    assert stems_of(load_folder(tmp_path)) == {"train": ["x"], "tuning": ["one"], "validation": ["one"]}
    shutil.rmtree(tmp_path / "tuning" / "masks")
    with pytest.raises(InputError, match=r"tuning .*masks"):
        load_folder(tmp_path)


@pytest.mark.parametrize(
    ("pairs", "files", "named"),
    [
        (["train/a"], ["images/val/b.jpg", "masks/validation/b.png"], "masks/validation .*images/validation"),
        (["train/a"], ["images/val/b.jpg", "masks/validation/deep/b.png"], "masks/validation"),
        (["a"], ["val/images/b.jpg", "val/masks/b.png"], "val "),
        (["train/a"], ["val/images/b.jpg", "val/masks/b.png"], "val "),
        (["a"], ["val/metadata.jsonl"], "val "),
        ([], ["train/images/a.jpg", "train/masks/a.png", "val/img/b.jpg", "val/masks/b.png"], "val .*images"),
    ],
)
def test_a_split_that_would_be_left_out_is_refused(tmp_path, pairs, files, named):
    draw_pairs(tmp_path, *pairs)
    for name in files:
        draw_mask(tmp_path / name, format="PNG")
    with pytest.raises(InputError, match=f"{re.escape(str(tmp_path))}/{named}"):
        load_folder(tmp_path)


def test_folders_without_pictures_are_no_splits(tmp_path):
    draw_pairs(tmp_path, "train/a")
    for name in ("masks/notes/readme.txt", "notes/images/readme.txt", "notes/masks/readme.txt"):
        write(tmp_path / name, "")
    assert stems_of(load_folder(tmp_path)) == {"train": ["a"]}
    # What a table names lies where it says.
    draw_pairs(tmp_path / "val", "b")
    write(tmp_path / "metadata.jsonl", '{"file_name": "val/images/b.jpg", "mask_file_name": "val/masks/b.png"}')
    assert stems_of(load_folder(f"{tmp_path}//")) == {"train": ["b"]}


@pytest.mark.parametrize(
    ("images", "masks", "named"),
    [
        ([], [], "images"),
        (["one.jpg", "two.jpg", "three.jpg"], ["one.png"], r"three\.jpg .*masks"),
        (["one.jpg", "one.png"], ["one.png"], r"one\.jpg and .*one\.png"),
        (["one.jpg"], ["one.png", "one.tif"], r"one\.png and .*one\.tif"),
        (["deep/one.jpg"], ["one.png"], r"deep/one\.jpg"),
        (["a\nb.jpg"], [], r"images/a\\nb\.jpg"),
        (["a\nb.jpg", "a\nb.png"], [], r"a\\nb\.jpg and .*a\\nb\.png"),
        (["\udcff.png"], ["\udcff.png"], r"images/\\udcff\.png"),
        (["one.txt"], ["one.png"], "images"),
        (["one.jpg", "two.HEIC"], ["one.png", "two.png"], r"two\.HEIC.*not read"),
        (None, [], None),
        (["one.jpg"], None, None),
    ],
)
def test_pictures_and_masks_that_do_not_match_are_refused(tmp_path, images, masks, named):
    for kind, names, draw in (("images", images, draw_picture), ("masks", masks, draw_mask)):
        if names is not None:
            (tmp_path / kind).mkdir()
        for name in names or ():
            draw(tmp_path / kind / name, format="PNG")
    with pytest.raises(InputError, match=named) as error:
        load_folder(tmp_path)
    assert str(tmp_path) in str(error.value)


@pytest.mark.parametrize(("picture", "mask"), [("a.jfif", "a.pgm"), ("a.JPG", "a.PNG"), ("a.ppm", "a.tif")])
def test_pictures_of_a_folder_are_found_by_suffix(tmp_path, picture, mask):
    draw_picture(tmp_path / "images" / picture)
    draw_mask(tmp_path / "masks" / mask, format="PNG")
    read_sample(load_folder(tmp_path)["train"][0], SPLIT)


def test_a_picture_may_be_there_in_a_format_that_is_not_read_as_well(tmp_path):
    draw_picture(tmp_path / "images" / "a.jpg")
    draw_mask(tmp_path / "masks" / "a.png")
    for name in ("a.HEIC", "._b.HEIC"):
        (tmp_path / "images" / name).write_bytes(b"not looked at")
    assert stems_of(load_folder(tmp_path)) == {"train": ["a"]}


def test_links_to_folders_are_followed(tmp_path):
    """Splits, folders in them, and `images` and `masks` themselves; each picture once, and circles end."""
    draw_picture(tmp_path / "disk" / "unrelated.png")
    for kind, draw in (("images", draw_picture), ("masks", draw_mask)):
        for name in ("disk/*/deep/a", "disk/*/b", "data/*/train/c", "two/*/x/a", "two/*/y/a"):
            draw(tmp_path / f"{name.replace('*', kind)}.png")
        (tmp_path / "all").mkdir(exist_ok=True)
        for link, target in {
            f"data/{kind}/train/linked": tmp_path / "disk" / kind,
            f"data/{kind}/val": tmp_path / "disk" / kind,
            f"all/{kind}": tmp_path / "data" / kind,
            f"disk/{kind}/deep/back": "..",
            f"disk/{kind}/deep/self": ".",
            f"disk/{kind}/deep/above": "../..",
            f"two/{kind}/x/other": "../y",
            f"two/{kind}/y/other": "../x",
        }.items():
            (tmp_path / link).symlink_to(target)
    train = paths_of(load_folder(tmp_path / "data")["train"])
    assert [str(path).split("/train/")[1] for path in train] == ["c.png", "linked/b.png", "linked/deep/a.png"]
    for name, expected in {"data": [3, 2], "all": [3, 2], "two": [2, 2]}.items():
        assert [len(rows) for rows in load_folder(tmp_path / name).values()] == expected


def test_links_to_nothing_are_broken_pictures(tmp_path):
    draw_picture(tmp_path / "a.jpg")
    (tmp_path / "images").mkdir()
    for name, target in {"a": "../a.jpg", "loop": "loop.jpg", "gone": "nowhere.jpg"}.items():
        draw_mask(tmp_path / "masks" / f"{name}.png")
        (tmp_path / "images" / f"{name}.jpg").symlink_to(target)
    whole, *broken = load_folder(tmp_path)["train"]
    read_sample(whole, SPLIT)
    for row, name in zip(broken, ("gone", "loop"), strict=True):
        with pytest.raises(ValueError, match=rf"{name}\.jpg"):
            read_sample(row, SPLIT)


# Tables


@pytest.mark.parametrize("kind", ["parquet", "parquet in data", "saved", "saved splits"])
def test_folder_of_tables(tmp_path, kind):
    data = tables()
    if kind == "saved":
        data.save_to_disk(tmp_path)
    elif kind == "saved splits":
        DatasetDict({"train": data, "val": data}).save_to_disk(tmp_path)
    else:
        folder = tmp_path / "data" if kind == "parquet in data" else tmp_path
        folder.mkdir(exist_ok=True)
        data = data.with_format("arrow").map(embed_table_storage).with_format(None)
        for name in ("train", "val"):
            data.to_parquet(folder / f"{name}-00000-of-00001.parquet")
    draw_picture(tmp_path / "images" / "of_the_readme.png")
    write(tmp_path / "classes.txt", "a\nb\nc")
    loaded, split = load_pictures(str(tmp_path), unseen=["b"])
    assert set(loaded) == ({"train"} if kind == "saved" else {"train", "validation"})
    assert (split.names, split.unseen_ids) == (("a", "b", "c"), (1,))
    assert all(rows.features == FEATURES for rows in loaded.values())
    assert_tables(loaded["train"], split)


@pytest.mark.parametrize(
    ("names", "given"),
    [
        (["picture", "label"], {}),
        (["Image", "pixels_of_classes"], {}),
        (["photo", "segmentation_map"], {}),
        (["image", "left", "right"], {"mask_column": "left"}),
        (["left", "mask", "right"], {"image_column": "left"}),
        (["right", "left", "image", "mask"], {"image_column": "right", "mask_column": "left"}),
    ],
)
def test_columns_are_found_by_type_and_name_or_given(tmp_path, names, given):
    """The first one has pictures, the second one masks, and others have masks of another class."""
    data = tables()
    extra = [data.select([0, 0, 0]).select_columns("label").rename_column("label", name) for name in names[2:]]
    data = data.rename_columns(dict(zip(("picture", "label"), names)))
    datasets.concatenate_datasets([data, *extra], axis=1).save_to_disk(tmp_path)
    assert_tables(load_folder(tmp_path, **given)["train"])


@pytest.mark.parametrize(
    ("names", "given", "named"),
    [
        (["left", "right"], {}, r"image_column and mask_column .*'left', 'right'.*'remark'"),
        (["image", "mask"], {"mask_column": "remark"}, "'remark' .*'image', 'mask'"),
        (["image", "mask"], {"image_column": "image", "mask_column": "image"}, "mask_column"),
    ],
)
def test_columns_that_are_not_clear_are_refused(tmp_path, names, given, named):
    tables().rename_columns(dict(zip(("picture", "label"), names))).save_to_disk(tmp_path)
    with pytest.raises(InputError, match=named):
        load_folder(tmp_path, **given)


def test_tables_that_datasets_leaves_out_are_refused(tmp_path):
    for name in ("disk/b.parquet", "data/a.parquet"):
        (tmp_path / name).parent.mkdir()
        tables().to_parquet(tmp_path / name)
    assert len(load_folder(tmp_path / "data")["train"]) == 3
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "disk")
    with pytest.raises(InputError, match="data/linked"):
        load_folder(tmp_path / "data")


def test_broken_tables_are_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(InputError, match=re.escape(str(tmp_path))) as error:
        load_folder(tmp_path)
    assert "\n" not in str(error.value)


# Class names


def test_the_class_names_of_a_folder(tmp_path):
    folder = tmp_path / "data"
    draw_pairs(folder, "one")
    with pytest.raises(InputError, match=r"classes\.txt or id2label\.json"):
        load_pictures(str(folder))
    write(folder / "classes.txt", "background\nwall\nfloor\n")
    data, split = load_pictures(str(folder), unseen=["floor"], ignored=["background"])
    assert read_sample(data["train"][0], split)[1][0, :4].tolist() == [255, 0, 1, 255]
    write(tmp_path / "others.txt", "x\ny\nz\n")
    _, split = load_pictures(str(folder), classes_file=tmp_path / "others.txt", seen=["x"])
    assert (split.names, split.seen_ids, split.unseen_ids) == (("x", "y", "z"), (0,), (1, 2))
    with pytest.raises(InputError, match=r"gone\.txt"):
        load_pictures(str(folder), classes_file=tmp_path / "gone.txt")


def test_class_names_may_be_in_each_split(tmp_path):
    for name in ("train", "test"):
        draw_pairs(tmp_path / name, "one")
        write(tmp_path / name / "classes.txt", "wall\nfloor\n")
    assert load_pictures(str(tmp_path))[1].names == ("wall", "floor")
    write(tmp_path / "test" / "classes.txt", "floor\nwall\n")
    with pytest.raises(InputError, match=r"test.classes\.txt and .*train.classes\.txt"):
        load_pictures(str(tmp_path))
    write(tmp_path / "classes.txt", "wall\nfloor\n")
    write(tmp_path / "id2label.json", '{"0": "wall", "1": "floor"}')
    assert load_pictures(str(tmp_path))[1].names == ("wall", "floor")
    write(tmp_path / "id2label.json", '{"0": "wall", "2": "floor"}')
    with pytest.raises(InputError, match=r"classes\.txt and .*id2label\.json"):
        load_pictures(str(tmp_path))


def test_class_names_of_the_hub_are_in_a_file_beside_the_tables(monkeypatch):
    """The cache contains what the Hub would send."""
    folder = Path(datasets.config.HF_CACHE_HOME) / "hub" / "datasets--owner--name"
    write(folder / "refs" / "main", "0" * 40)
    write(folder / "snapshots" / ("0" * 40) / "id2label.json", '{"0": "wall", "1": "floor", "2": "tree"}')
    monkeypatch.setattr("zegclip.processing.datasets.load_dataset", lambda _: DatasetDict({"test": tables()}))
    data, split = load_pictures("owner/name")
    assert (data["test"].num_rows, split.names) == (3, ("wall", "floor", "tree"))
    with pytest.raises(InputError, match="owner/other"):
        load_pictures("owner/other")
    shutil.rmtree(folder)


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("classes.txt", "wall\n floor \r\ntree\n\n", (["wall", "floor", "tree"], [0, 1, 2])),
        ("classes.txt", "\ufeffmur\nsol étage", (["mur", "sol étage"], [0, 1])),
        ("classes.txt", "mur\u2028haut\nsol\x0c\nciel", (["mur\u2028haut", "sol", "ciel"], [0, 1, 2])),
        ("classes.txt", "C#\ncar: 2\ngate 7\n", (["C#", "car: 2", "gate 7"], [0, 1, 2])),
        ("id2label.json", '{"7": "tree", "0": "wall", "12": "floor"}', (["wall", "tree", "floor"], [0, 7, 12])),
        ("classes.txt", "sofa / couch\nwall\ntree/tree\n", ([["sofa", "couch"], "wall", "tree"], [0, 1, 2])),
        ("id2label.json", '{"3": ["sofa", " couch"], "1": "w/o"}', (["w/o", ["sofa", "couch"]], [1, 3])),
    ],
)
def test_class_names_of_a_file(tmp_path, name, text, expected):
    write(tmp_path / name, text)
    assert read_class_names(tmp_path / name) == expected


@pytest.mark.parametrize(
    ("name", "text", "named"),
    [
        ("classes.txt", "wall\n\ntree\n", "mask value 1"),
        ("classes.txt", "wall\ntree\nwall\n", "'wall'"),
        ("classes.txt", " \n", None),
        ("classes.txt", "wall\ntree/\n", "mask value 1"),
        ("classes.txt", "wall/tree\nfloor\ntree\n", "'tree'"),
        ("id2label.json", '{"0": ["wall", "tree"], "1": "tree"}', "'tree'"),
        ("id2label.json", '{"0": []}', "'0': "),
        ("id2label.json", '{"0": ["wall", 3]}', "'0': "),
        ("classes.txt", "1: wall\n2: floor\n", "'1: wall'"),
        ("classes.txt", "1 wall\n2 floor\n3 door\n", "'1 wall'"),
        ("classes.txt", "5, wall\n9, floor\n", "'5, wall'"),
        ("classes.txt", "# label:color_rgb:parts:actions\nwall:0,0,0::\n", "'# label"),
        ("classes.txt", "wall\n # moving things\ntree\n", "'# moving things'"),
        ("classes.txt", "wall,0\ntree,7\n", "'wall,0'"),
        ("classes.txt", "wall\t0\ntree\t1\r\n", "'wall"),
        ("classes.txt", "name;id\nwall;0\ntree;1\n", "'name;id'"),
        ("classes.txt", "id,name\n0,wall\n1,tree\n", "'id,name'"),
        ("classes.txt", '{"0": "wall",\n "2": "floor"}\n', r"\.json"),
        ("classes.txt", ' ["wall", "floor"]', r"\.json"),
        ("id2label.json", "{}", None),
        ("id2label.json", '{"a": "wall"}', "'a': 'wall'"),
        ("id2label.json", '{"1": 2}', "'1': 2"),
        ("id2label.json", '{"-1": "wall"}', "'-1': 'wall'"),
        ("id2label.json", '["wall"]', None),
        ("id2label.json", "{", None),
        ("id2label.json", "[" * 99_999, None),
        ("id2label.json", '{"0": "wall", "0": "tree"}', "mask value 0"),
        ("id2label.json", '{"1": "wall", "01": "tree"}', "mask value 1"),
        ("id2label.json", '{"0": "wall", "1": " wall"}', "'wall'"),
        ("id2label.json", f'{{"{"1" * 5000}": "wall"}}', "'wall'"),
        ("classes.txt", "\udcff", "UTF-8"),
    ],
)
def test_bad_files_of_class_names_are_refused(tmp_path, name, text, named):
    (tmp_path / name).write_bytes(text.encode(errors="surrogateescape"))
    with pytest.raises(InputError, match=named) as error:
        read_class_names(tmp_path / name)
    assert str(tmp_path / name) in str(error.value)


# Samples


def row(folder, image="image.jpg", mask="mask.png"):
    return {name: {"path": str(folder / file), "bytes": None} for name, file in {"image": image, "mask": mask}.items()}


def test_a_sample_is_rgb_and_ids(tmp_path):
    values = [0, 255, 256, 846, 65535]
    draw_picture(tmp_path / "image.jpg")
    draw_mask(tmp_path / "mask.png", values, dtype=np.uint16)
    image, labels = read_sample(row(tmp_path), split_classes([f"class {index}" for index in range(847)]))
    assert (image.mode, image.size) == ("RGB", SIZE)
    assert (labels.dtype, labels.shape, labels[0, :5].tolist()) == (np.int64, SIZE[::-1], values)


def test_a_picture_and_its_mask_must_have_the_same_upright_size(tmp_path):
    exif = PILImage.Exif()
    exif[0x0112] = 6
    draw_picture(tmp_path / "image.jpg", exif=exif)
    draw_mask(tmp_path / "turned.png", exif=exif)
    draw_mask(tmp_path / "upright.png", size=SIZE[::-1])
    for mask in ("turned.png", "upright.png"):
        image, labels = read_sample(row(tmp_path, mask=mask), SPLIT)
        assert image.size == labels.shape[::-1] == SIZE[::-1]
    for name, size, turned in (("plain.png", SIZE, True), ("small.png", (4, 6), False)):
        draw_mask(tmp_path / name, size=size)
        with pytest.raises(InputError, match=rf"{name} .*{size[0]}x{size[1]} .*image\.jpg .*6x8") as error:
            read_sample(row(tmp_path, mask=name), SPLIT)
        assert ("EXIF" in str(error.value)) == turned


def test_errors_name_the_file(tmp_path):
    draw_picture(tmp_path / "image.jpg", size=(300, 200))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "image.jpg").read_bytes()[:3000])
    draw_mask(tmp_path / "mask.png", size=(300, 200))
    draw_mask(tmp_path / "unknown.png", (0, 3), size=(300, 200))
    for files, named in {
        ("cut.jpg", "mask.png"): r"cut\.jpg",
        ("gone.jpg", "mask.png"): r"gone\.jpg",
        ("image.jpg", "gone.png"): r"gone\.png",
        ("image.jpg", "image.jpg"): r"image\.jpg",
        ("image.jpg", "unknown.png"): r"unknown\.png: .* 3,",
    }.items():
        with pytest.raises(ValueError, match=f"{re.escape(str(tmp_path))}.*{named}"):
            read_sample(row(tmp_path, *files), SPLIT)


def test_embedded_files_are_named_by_number_or_path(tmp_path):
    draw_picture(tmp_path / "image.png")
    draw_mask(tmp_path / "mask.png", (0, 9))
    image = {"bytes": (tmp_path / "image.png").read_bytes(), "path": None}
    mask = {"bytes": (tmp_path / "mask.png").read_bytes(), "path": "m.png"}
    for changes, index, named in (
        ({}, 17, r"^mask of picture 17 \(m\.png\): .* 9,"),
        ({}, None, r"^mask \(m\.png\): "),
        ({"image": {"bytes": b"no", "path": None}}, 17, "^picture 17 "),
        ({"mask": None}, 17, "^mask of picture 17 "),
        # A path is never an address.
        ({"image": {"bytes": None, "path": "http://localhost/x.png"}}, 17, r"no picture file .*x\.png"),
    ):
        with pytest.raises(ValueError, match=named):
            read_sample({"image": image, "mask": mask} | changes, SPLIT, index)
