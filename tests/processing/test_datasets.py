"""Each kind of data set, on a miniature of its real layout, and what is said where something is missing or broken."""

import json
import os
import re
import shutil
from pathlib import Path

import datasets
import numpy as np
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Image, List, Value
from datasets.table import embed_table_storage
from PIL import Image as PILImage

from zegclip.processing.benchmarks import (
    benchmark_split,
    load_coco_stuff,
    load_pascal_context,
    load_voc,
    read_class_lists,
)
from zegclip.processing.class_split import ClassSplit, split_classes
from zegclip.processing.datasets import load_pictures
from zegclip.processing.folders import find_names_file, load_folder, load_hub, read_class_names
from zegclip.processing.picture_files import read_sample

SIZE = (8, 6)
COCO_STEMS = [f"{number:012d}" for number in (9, 30, 34, 64, 110, 581921)]
SPLIT = ClassSplit(names=("a", "b", "c"), seen_ids=(0, 1, 2))


def draw_picture(path, size=SIZE, **options):
    path.parent.mkdir(parents=True, exist_ok=True)
    noise = np.random.default_rng(len(str(path))).integers(0, 256, (size[1], size[0], 3), dtype=np.uint8)
    PILImage.fromarray(noise).save(path, **options)


def draw_mask(path, values=(0, 1, 2, 255), size=SIZE, dtype=np.uint8, **options):
    """Draw columns of the values; 8-bit ones as a palette picture whose colours say nothing about them."""
    path.parent.mkdir(parents=True, exist_ok=True)
    row = np.resize(np.array(values, dtype=dtype), size[0])
    mask = PILImage.fromarray(np.repeat(row[None], size[1], axis=0))
    if dtype == np.uint8:
        mask.putpalette(list(range(255, -1, -1)) * 3)
    mask.save(path, **options)


def make_pair(folder, name="one"):
    draw_picture(folder / "images" / f"{name}.jpg")
    draw_mask(folder / "masks" / f"{name}.png")


def write(path, text):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text, encoding="utf-8")


def files_of(data, column):
    return [row[column]["path"] for row in data.cast_column(column, Image(decode=False))]


def stems_of(data):
    return [Path(path).stem for path in files_of(data, "image")]


def sample(data, index=0, split=SPLIT):
    for column in ("image", "mask"):
        data = data.cast_column(column, Image(decode=False))
    return read_sample(data[index], split, index)


def check_columns(data):
    assert isinstance(data, DatasetDict)
    for rows in data.values():
        assert rows.column_names == ["image", "mask"]
        assert rows.features == Features({"image": Image(), "mask": Image()})


@pytest.fixture
def voc(tmp_path):
    root = tmp_path / "VOCdevkit" / "VOC2012"
    for stem in ("2007_b", "2007_a", "2008_s", "2008_r", "2009_v"):
        draw_picture(root / "JPEGImages" / f"{stem}.jpg")
        # SBD's folder often has masks of VOC's own pictures as well; those must not win.
        draw_mask(root / "SegmentationClassAug" / f"{stem}.png", (0, 2))
        if not stem.startswith("2008"):
            draw_mask(root / "SegmentationClass" / f"{stem}.png", (0, 1, 20, 255))
    lists = root / "ImageSets" / "Segmentation"
    write(lists / "train.txt", "2007_b\n2007_a\n")
    write(lists / "aug.txt", "2008_s\n2008_r\n")
    write(lists / "val.txt", "2009_v\n")
    return root


@pytest.fixture
def coco(tmp_path):
    for part, stems in {"train2017": COCO_STEMS[::-1], "val2017": ("000000000139",)}.items():
        for stem in stems:
            draw_picture(tmp_path / "images" / part / f"{stem}.jpg")
            draw_mask(tmp_path / "annotations" / part / f"{stem}_labelTrainIds.png", (0, 170, 255))
            draw_mask(tmp_path / "annotations" / part / f"{stem}.png", (7, 181))  # the masks before conversion
    return tmp_path


@pytest.fixture
def context(tmp_path):
    root = tmp_path / "VOC2010"
    for stem in ("2008_b", "2008_a", "2010_v", "2010_unused"):
        draw_picture(root / "JPEGImages" / f"{stem}.jpg")
        draw_mask(root / "SegmentationClassContext" / f"{stem}.png", (0, 1, 59))
    write(root / "ImageSets" / "SegmentationContext" / "train.txt", "2008_b\n2008_a\n")
    write(root / "ImageSets" / "SegmentationContext" / "val.txt", "2010_v\n")
    return root


def tables_of(num_rows=3):
    """Rows with embedded files, as `push_to_hub` makes them, with a list of class names and a further column."""
    rows = {"picture": [], "label": [], "classes_present": [[0, 2]] * num_rows, "remark": ["x"] * num_rows}
    for index in range(num_rows):
        rows["picture"].append(PILImage.new("RGB", SIZE, (index, 0, 0)))
        mask = PILImage.fromarray(np.full(SIZE[::-1], index, dtype=np.uint8))
        mask.putpalette(list(range(256)) * 3)
        rows["label"].append(mask)
    features = Features(
        {"picture": Image(), "label": Image(), "classes_present": List(ClassLabel(names=["a", "b", "c"]))}
        | {"remark": Value("string")}
    )
    return Dataset.from_dict(rows, features=features)


# Benchmarks


@pytest.mark.parametrize(
    ("name", "num_classes", "num_unseen", "values"),
    [
        ("voc", 20, 5, {0: 255, 1: 0, 16: 15, 20: 19, 255: 255}),
        ("coco_stuff", 171, 15, {0: 0, 170: 170, 255: 255}),
        ("pascal_context_59", 59, 10, {0: 255, 1: 0, 59: 58, 255: 255}),
        ("pascal_context_60", 60, 10, {0: 0, 1: 1, 59: 59, 255: 255}),
    ],
)
def test_benchmarks_have_the_papers_classes(name, num_classes, num_unseen, values):
    split = benchmark_split(name)
    assert (len(split.names), len(split.unseen_ids)) == (num_classes, num_unseen)
    assert len(split.seen_ids) + num_unseen == num_classes
    assert split.labels_of(np.array(list(values))).tolist() == list(values.values())
    assert {split.names[index] for index in split.unseen_ids} == set(read_class_lists()[name]["unseen_names"])


def test_the_unseen_classes_have_their_known_places():
    assert benchmark_split("voc").unseen_ids == (15, 16, 17, 18, 19)
    # fmt: off
    assert benchmark_split("coco_stuff").unseen_ids == (
        19, 23, 28, 29, 36, 51, 76, 88, 94, 112, 133, 136, 137, 157, 160
    )
    # fmt: on
    assert benchmark_split("pascal_context_60").unseen_ids == (1, 7, 8, 15, 20, 25, 32, 34, 49, 55)
    assert [len(names) for names in read_class_lists()["templates"].values()] == [1, 15]
    with pytest.raises(ValueError, match="no benchmark 'ade'"):
        benchmark_split("ade")


@pytest.mark.parametrize("place", [".", "..", "../.."])
def test_voc(voc, place):
    data = load_voc(voc / place)
    check_columns(data)
    assert stems_of(data["train"]) == ["2007_b", "2007_a", "2008_s", "2008_r"]
    assert stems_of(data["validation"]) == ["2009_v"]
    folders = [Path(path).parent.name for path in files_of(data["train"], "mask")]
    assert folders == ["SegmentationClass"] * 2 + ["SegmentationClassAug"] * 2
    _, labels = sample(data["train"], split=benchmark_split("voc"))
    assert labels[0, :4].tolist() == [255, 0, 19, 255]
    assert np.asarray(data["train"][0]["mask"])[0, :4].tolist() == [0, 1, 20, 255]


@pytest.mark.parametrize("name", ["trainaug.txt", "train_aug.txt"])
def test_voc_with_one_list_of_all_training_pictures(voc, name):
    lists = voc / "ImageSets" / "Segmentation"
    (lists / "aug.txt").unlink()
    lines = [f"/JPEGImages/{s}.jpg /SegmentationClassAug/{s}.png" for s in ("2008_r", "2007_a", "2007_a")]
    write(lists / name, "\n".join(lines) + "\n\n")
    data = load_voc(voc)
    assert stems_of(data["train"]) == ["2008_r", "2007_a"]
    folders = [Path(path).parent.name for path in files_of(data["train"], "mask")]
    assert folders == ["SegmentationClassAug", "SegmentationClass"]


def test_voc_without_the_list_of_sbd(voc):
    (voc / "ImageSets" / "Segmentation" / "aug.txt").unlink()
    with pytest.raises(ValueError, match=r"SBD adds .* is missing: put it at .*Segmentation/aug\.txt") as error:
        load_voc(voc)
    assert str(voc / "SegmentationClassAug") in str(error.value)
    # An evaluation needs none of it.
    assert load_voc(voc, splits=["validation"]).keys() == {"validation"}


def test_voc_does_not_validate_on_training_pictures(voc):
    write(voc / "ImageSets" / "Segmentation" / "aug.txt", "2008_s\n2009_v\n")
    with pytest.raises(ValueError, match=r"val\.txt shares 1 pictures .* such as 2009_v"):
        load_voc(voc)


def test_files_that_a_list_names_must_exist(voc):
    for stem in ("2007_a", "2008_s"):
        (voc / "JPEGImages" / f"{stem}.jpg").unlink()
    (voc / "SegmentationClassAug" / "2008_r.png").unlink()
    with pytest.raises(ValueError, match="there is no such file") as error:
        load_voc(voc)
    assert str(voc / "JPEGImages" / "2007_a.jpg") in str(error.value)
    assert "(2 more are missing, too)" in str(error.value)


@pytest.mark.parametrize(
    ("gone", "sentence"),
    [
        ("JPEGImages", "There is no folder JPEGImages in .*VOC2012"),
        ("SegmentationClassAug", "there is no folder .*SegmentationClassAug"),
        ("ImageSets/Segmentation/train.txt", r"There is no file .*train\.txt"),
        ("ImageSets/Segmentation/val.txt", r"There is no file .*val\.txt"),
        (".", "There is no folder .*VOC2012"),
    ],
)
def test_missing_parts_of_voc_are_named(voc, gone, sentence):
    path = voc / gone
    shutil.rmtree(path) if path.is_dir() else path.unlink()
    with pytest.raises(ValueError, match=sentence):
        load_voc(voc)


def test_lists_must_be_text_with_something_in_it(voc):
    path = voc / "ImageSets" / "Segmentation" / "val.txt"
    write(path, "\n \n")
    with pytest.raises(ValueError, match=r"val\.txt: this list is empty"):
        load_voc(voc)
    path.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(ValueError, match=r"val\.txt: this file is not UTF-8 text"):
        load_voc(voc)


def test_coco_stuff(coco):
    write(coco / "images" / "train2017" / "notes.txt", "not a picture")
    write(coco / "images" / "train2017" / "._000000000030.jpg", "left by another system")
    data = load_coco_stuff(coco)
    check_columns(data)
    assert stems_of(data["train"]) == COCO_STEMS
    assert stems_of(data["validation"]) == ["000000000139"]
    _, labels = sample(data["validation"], split=benchmark_split("coco_stuff"))
    assert labels[0, :3].tolist() == [0, 170, 255]


def test_coco_stuff_may_be_without_its_training_pictures(coco):
    for kind in ("images", "annotations"):
        shutil.rmtree(coco / kind / "train2017")
    assert list(load_coco_stuff(coco)) == ["validation"]
    shutil.rmtree(coco / "images" / "val2017")
    with pytest.raises(ValueError, match=r"There is no folder .*images.val2017"):
        load_coco_stuff(coco)
    shutil.rmtree(coco / "annotations" / "val2017")
    with pytest.raises(ValueError, match="does not hold COCO-Stuff"):
        load_coco_stuff(coco)


def test_coco_stuff_needs_converted_masks(coco):
    for path in (coco / "annotations" / "train2017").glob("*_labelTrainIds.png"):
        path.unlink()
    with pytest.raises(ValueError, match=r"coco_stuff164k\.py .*000000000009_labelTrainIds\.png.* \(5 more"):
        load_coco_stuff(coco)


@pytest.mark.parametrize("place", [".", ".."])
def test_pascal_context(context, place):
    data = load_pascal_context(context / place)
    check_columns(data)
    assert stems_of(data["train"]) == ["2008_b", "2008_a"]
    assert stems_of(data["validation"]) == ["2010_v"]
    for name, expected in {"pascal_context_59": [255, 0, 58], "pascal_context_60": [0, 1, 59]}.items():
        assert sample(data["train"], split=benchmark_split(name))[1][0, :3].tolist() == expected


# Folders


def test_folder_with_metadata(tmp_path):
    draw_picture(tmp_path / "pictures" / "b.jpg")
    draw_picture(tmp_path / "a.png")
    draw_mask(tmp_path / "maps" / "x.png")
    lines = [
        {"file_name": "pictures/b.jpg", "mask_file_name": "maps/x.png", "caption": "a line\u2028break"},
        {"image_file_name": "./a.png", "mask_file_name": "maps/../maps/x.png"},
    ]
    write(tmp_path / "metadata.jsonl", "\n".join(json.dumps(line, ensure_ascii=False) for line in lines) + "\n\n")
    data = load_folder(tmp_path)
    check_columns(data)
    assert list(data) == ["train"]
    assert stems_of(data["train"]) == ["b", "a"]
    assert sample(data["train"], 1)[1][0, :4].tolist() == [0, 1, 2, 255]


@pytest.mark.parametrize(
    ("line", "sentence"),
    [
        ('{"file_name": "../a.jpg", "mask_file_name": "m.png"}', r"line 2 names '\.\./a\.jpg', which lies outside"),
        ('{"file_name": "a.jpg", "mask_file_name": "x/../../m.png"}', "which lies outside of the folder"),
        ('{"file_name": "/etc/passwd", "mask_file_name": "m.png"}', "names '/etc/passwd', which lies outside"),
        ('{"file_name": "a.jpg"}', r"line 2 needs file_name \(or image_file_name\) and mask_file_name"),
        ('{"file_name": "a.jpg", "mask_file_name": 3}', "line 2 needs file_name"),
        ('{"file_name": "a.jpg", ', "line 2 is not JSON"),
        ("[]", "line 2 is not a JSON object"),
        (
            '{"file_name": "gone.jpg", "mask_file_name": "m.png"}',
            r"metadata\.jsonl names .*gone\.jpg, but there is no",
        ),
        ('{"file_name": "a.jpg", "mask_file_name": "no/m.png"}', r"there is no folder .*no\."),
        ('{"file_name": "", "mask_file_name": "m.png"}', "but there is no such file"),
        ('{"file_name": "a\\n.jpg", "mask_file_name": "m.png"}', r"names .*a\\n\.jpg, but there is no such file"),
        ('{"file_name": "a\\u0000/b.jpg", "mask_file_name": "m.png"}', r"there is no folder .*a\\x00"),
        ('{"file_name": "a\\ud800/b.jpg", "mask_file_name": "m.png"}', r"there is no folder .*a\\ud800"),
        ("[" * 99_999, "line 2 is not JSON"),
    ],
)
def test_bad_metadata_is_refused(tmp_path, line, sentence):
    folder = tmp_path / "data"
    draw_picture(tmp_path / "a.jpg")
    draw_picture(folder / "a.jpg")
    draw_mask(tmp_path / "m.png")
    draw_mask(folder / "m.png")
    write(folder / "metadata.jsonl", '{"file_name": "a.jpg", "mask_file_name": "m.png"}\n' + line)
    with pytest.raises(ValueError, match=sentence):
        load_folder(folder)


def test_folder_of_images_and_masks(tmp_path):
    for name in ("b", "a"):
        make_pair(tmp_path, name)
    draw_mask(tmp_path / "masks" / "without_a_picture.png")
    write(tmp_path / "images" / ".DS_Store", "")
    data = load_folder(tmp_path)
    check_columns(data)
    assert list(data) == ["train"]
    names = [os.path.relpath(path, tmp_path) for path in files_of(data["train"], "mask")]
    assert names == ["masks/a.png", "masks/b.png"]


def test_folders_within_images_and_masks_are_splits(tmp_path):
    for name in ("train/b", "train/deep/er/b", "train/deep/a", "val/c"):
        make_pair(tmp_path, name)
    draw_picture(tmp_path / "images" / "test" / "no_mask.jpg")
    data = load_folder(tmp_path)
    assert {name: stems_of(data[name]) for name in data} == {"train": ["b", "a", "b"], "validation": ["c"]}
    draw_picture(tmp_path / "images" / "stray.jpg")
    with pytest.raises(ValueError, match=r"images/stray\.jpg lies beside the folders train, val"):
        load_folder(tmp_path)


def test_subfolders_are_splits(tmp_path):
    make_pair(tmp_path / "tuning")
    make_pair(tmp_path / "val")
    draw_picture(tmp_path / "train" / "x.jpg")
    draw_mask(tmp_path / "train" / "y.png")
    write(tmp_path / "train" / "metadata.jsonl", '{"file_name": "x.jpg", "mask_file_name": "y.png"}')
    write(tmp_path / "notes" / "readme.txt", "no data")
    data = load_folder(tmp_path)
    assert {name: len(rows) for name, rows in data.items()} == {"train": 1, "tuning": 1, "validation": 1}
    shutil.rmtree(tmp_path / "tuning" / "masks")
    with pytest.raises(ValueError, match="tuning has a folder images, but neither"):
        load_folder(tmp_path)


def test_what_is_missing_in_a_folder_is_said(tmp_path):
    with pytest.raises(ValueError, match=r"There is no folder .*nowhere\."):
        load_folder(tmp_path / "nowhere")
    with pytest.raises(ValueError, match="is no data set: it has neither"):
        load_folder(tmp_path)
    make_pair(tmp_path)
    for name in ("two", "three"):
        draw_picture(tmp_path / "images" / f"{name}.jpg")
    with pytest.raises(ValueError, match=r"three\.jpg has no mask of the same name in .*masks, nor do 1 more"):
        load_folder(tmp_path)
    draw_picture(tmp_path / "images" / "one.png")
    with pytest.raises(ValueError, match=r"one\.jpg and .*one\.png differ in their suffix only"):
        load_folder(tmp_path)
    shutil.rmtree(tmp_path / "images")
    (tmp_path / "images").mkdir()
    with pytest.raises(ValueError, match=r"There is no picture in .*images"):
        load_folder(tmp_path)


def test_odd_names_of_files_stay_on_one_line(tmp_path):
    draw_picture(tmp_path / "images" / "a\nb.jpg")
    (tmp_path / "masks").mkdir()
    with pytest.raises(ValueError, match=r"images/a\\nb\.jpg has no mask of the same name"):
        load_folder(tmp_path)
    draw_picture(tmp_path / "images" / "a\nb.png")
    with pytest.raises(ValueError, match=r"a\\nb\.jpg and .*a\\nb\.png differ in their suffix only"):
        load_folder(tmp_path)


def test_names_that_are_no_text(tmp_path):
    for folder, draw in (("images", draw_picture), ("masks", draw_mask)):
        draw(tmp_path / folder / "\udcff.png")
    with pytest.raises(ValueError, match=r"images/\\udcff\.png has a name that is not UTF-8 text"):
        load_folder(tmp_path)


def test_links_to_folders_are_followed(tmp_path):
    """Splits, folders in them, and the folders of pictures and masks themselves; each picture once, circles not."""
    for kind, draw in (("images", draw_picture), ("masks", draw_mask)):
        draw(tmp_path / "disk" / kind / "deep" / "a.png")
        draw(tmp_path / "disk" / kind / "b.png")
        draw(tmp_path / "data" / kind / "train" / "c.png")
        (tmp_path / "data" / kind / "train" / "linked").symlink_to(tmp_path / "disk" / kind)
        (tmp_path / "data" / kind / "val").symlink_to(tmp_path / "disk" / kind)
        (tmp_path / "disk" / kind / "deep" / "back").symlink_to("..")
        (tmp_path / "disk" / kind / "deep" / "self").symlink_to(".")
        (tmp_path / "all").mkdir(exist_ok=True)
        (tmp_path / "all" / kind).symlink_to(tmp_path / "data" / kind)
    data = load_folder(tmp_path / "data")
    assert [name.split("/train/")[1] for name in files_of(data["train"], "image")] == [
        "c.png", "linked/b.png", "linked/deep/a.png",
    ]  # fmt: skip
    assert len(data["validation"]) == 2
    assert {name: len(rows) for name, rows in load_folder(tmp_path / "all").items()} == {"train": 3, "validation": 2}


def test_links_in_a_circle_of_two_end(tmp_path):
    for kind, draw in (("images", draw_picture), ("masks", draw_mask)):
        for name, other in (("one", "two"), ("two", "one")):
            draw(tmp_path / kind / name / "a.png")
            (tmp_path / kind / name / "other").symlink_to(f"../{other}")
    assert [len(rows) for rows in load_folder(tmp_path).values()] == [2, 2]


def test_tables_behind_a_link_are_not_left_out_in_silence(tmp_path):
    draw_picture(tmp_path / "a.png")
    rows = {"image": [str(tmp_path / "a.png")], "mask": [str(tmp_path / "a.png")]}
    table = Dataset.from_dict(rows, features=Features({"image": Image(), "mask": Image()}))
    (tmp_path / "disk").mkdir()
    table.to_parquet(str(tmp_path / "disk" / "b.parquet"))
    (tmp_path / "data").mkdir()
    table.to_parquet(str(tmp_path / "data" / "a.parquet"))
    assert len(load_folder(tmp_path / "data")["train"]) == 1
    (tmp_path / "data" / "linked").symlink_to(tmp_path / "disk")
    with pytest.raises(ValueError, match=r"data/linked holds tables behind a link"):
        load_folder(tmp_path / "data")


@pytest.mark.parametrize(("picture", "mask"), [("a.jfif", "a.pgm"), ("a.JPG", "a.PNG"), ("a.ppm", "a.tif")])
def test_files_of_a_folder_that_are_pictures(tmp_path, picture, mask):
    draw_picture(tmp_path / "images" / picture)
    draw_mask(tmp_path / "masks" / "a.png")
    (tmp_path / "masks" / "a.png").rename(tmp_path / "masks" / mask)
    data = load_folder(tmp_path)["train"]
    assert stems_of(data) == ["a"]
    sample(data, 0)


def test_links_that_lead_nowhere_are_broken_pictures(tmp_path):
    draw_picture(tmp_path / "a.jpg")
    for name, target in {"a.jpg": "../a.jpg", "loop.jpg": "loop.jpg", "gone.jpg": "nowhere.jpg"}.items():
        draw_mask(tmp_path / "masks" / f"{name[:-4]}.png")
        (tmp_path / "images").mkdir(exist_ok=True)
        (tmp_path / "images" / name).symlink_to(target)
    data = load_folder(tmp_path)["train"]
    assert stems_of(data) == ["a", "gone", "loop"]
    sample(data, 0)
    for index in (1, 2):
        with pytest.raises(ValueError, match="There is no picture file"):
            sample(data, index)


def test_columns_of_files_are_refused(tmp_path):
    make_pair(tmp_path)
    with pytest.raises(ValueError, match="holds files, which have no columns"):
        load_folder(tmp_path, mask_column="mask")


@pytest.mark.parametrize("kind", ["parquet", "parquet in data", "saved", "saved splits"])
def test_folder_of_tables(tmp_path, kind):
    data = tables_of()
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
    draw_picture(tmp_path / "images" / "for_the_readme.png")
    loaded = load_folder(tmp_path)
    check_columns(loaded)
    assert set(loaded) == ({"train"} if kind == "saved" else {"train", "validation"})
    for index in range(3):
        image, labels = sample(loaded["train"], index)
        assert image.getpixel((0, 0)) == (index, 0, 0)
        assert (labels == index).all()
    _, split = load_pictures(str(tmp_path), unseen=["b"])
    assert (split.names, split.unseen_ids) == (("a", "b", "c"), (1,))


def test_columns_are_found_by_type_and_name(tmp_path):
    data = tables_of()

    def load(**renamed):
        shutil.rmtree(tmp_path / "saved", ignore_errors=True)
        data.rename_columns(renamed).save_to_disk(tmp_path / "saved")
        return load_hub(str(tmp_path / "saved"))

    assert sample(load()["train"], 2)[1][0, 0] == 2
    assert sample(load(picture="Image", label="pixels_of_classes")["train"], 2)[1][0, 0] == 2
    assert sample(load(picture="photo", label="segmentation_map")["train"], 2)[1][0, 0] == 2
    with pytest.raises(
        ValueError, match=r"not clear which .*columns left \(pictures\), right \(pictures\), classes_pr"
    ):
        load(picture="left", label="right")


def test_columns_can_be_named(tmp_path):
    others = (
        tables_of().select_columns(["picture", "label"]).rename_columns({"picture": "extra", "label": "extra_mask"})
    )
    datasets.concatenate_datasets([tables_of().remove_columns("label"), others], axis=1).save_to_disk(tmp_path)
    with pytest.raises(ValueError, match="not clear which"):
        load_hub(str(tmp_path))
    loaded = load_hub(str(tmp_path), mask_column="extra_mask")
    assert sample(loaded["train"], 1)[1][0, 0] == 1
    swapped = load_hub(str(tmp_path), image_column="extra", mask_column="extra_mask")
    check_columns(swapped)
    with pytest.raises(ValueError, match="no column 'remark' of pictures; it has the columns"):
        load_hub(str(tmp_path), mask_column="remark")
    with pytest.raises(ValueError, match="not clear which"):
        load_hub(str(tmp_path), "extra", "extra")


def test_broken_tables_are_named(tmp_path):
    (tmp_path / "train.parquet").write_bytes(b"PAR1 not really")
    with pytest.raises(ValueError, match=r"this data set cannot be loaded: .+") as error:
        load_folder(tmp_path)
    assert "\n" not in str(error.value)
    assert str(tmp_path) in str(error.value)


def test_a_hub_id_that_cannot_be_reached(monkeypatch):
    monkeypatch.chdir("/")
    with pytest.raises(
        ValueError, match="nobody/nothing: there is no such folder, and as a Hub id it cannot be loaded"
    ):
        load_pictures("nobody/nothing")


# Class names


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("classes.txt", "wall\n floor \r\ntree\n\n", (["wall", "floor", "tree"], [0, 1, 2])),
        ("classes.txt", "\ufeffmur\nsol étage", (["mur", "sol étage"], [0, 1])),
        ("classes.txt", '{"0": "wall",\n "2": "floor"}\n', (["wall", "floor"], [0, 2])),
        ("classes.txt", "mur\u2028haut\nsol\x0c\nciel", (["mur\u2028haut", "sol", "ciel"], [0, 1, 2])),
        ("id2label.json", '{"7": "tree", "0": "wall", "12": "floor"}', (["wall", "tree", "floor"], [0, 7, 12])),
    ],
)
def test_class_names_of_a_file_or_its_folder(tmp_path, name, text, expected):
    write(tmp_path / name, text)
    assert read_class_names(tmp_path / name) == expected
    assert read_class_names(str(tmp_path)) == expected


def test_class_names_of_features():
    names = ["wall", "floor"]
    for feature in (ClassLabel(names=names), List(ClassLabel(names=names)), {"inner": List(ClassLabel(names=names))}):
        assert read_class_names(Features({"a": Value("int32"), "b": feature, "c": feature})) == (names, [0, 1])
    with pytest.raises(ValueError, match="describes 2 lists of class names"):
        read_class_names(Features({"a": ClassLabel(names=names), "b": ClassLabel(names=["scene"])}))


@pytest.mark.parametrize(
    ("name", "text", "sentence"),
    [
        ("classes.txt", "wall\n\ntree\n", "the name of mask value 1 is blank"),
        ("classes.txt", "wall\ntree\nwall\n", "the name 'wall' is there twice, for mask values 0 and 2"),
        ("classes.txt", " \n", "there is no class name in it"),
        ("classes.txt", "1: wall\n2: floor\n", "begins with '1: wall'"),
        ("classes.txt", "# label:color_rgb:parts:actions\nwall:0,0,0::\n", "begins with '# label"),
        ("id2label.json", "{}", "there is no class name in it"),
        ("id2label.json", '{"a": "wall"}', "'a': 'wall' is not a mask value with a class name"),
        ("id2label.json", '{"1": 2}', "'1': 2 is not a mask value"),
        ("id2label.json", '{"-1": "wall"}', "'-1': 'wall' is not a mask value"),
        ("id2label.json", '["wall"]', "expected an object such as"),
        ("id2label.json", "{", "is not JSON"),
        ("id2label.json", "[" * 99_999, "is not JSON"),
        ("id2label.json", '{"0": "wall", "0": "tree"}', "the mask value 0 has two names, 'wall' and 'tree'"),
        ("id2label.json", '{"1": "wall", "01": "tree"}', "the mask value 1 has two names, 'wall' and 'tree'"),
        ("id2label.json", f'{{"{"1" * 5000}": "wall"}}', "is not a mask value"),
    ],
)
def test_bad_class_files_are_refused(tmp_path, name, text, sentence):
    write(tmp_path / name, text)
    with pytest.raises(ValueError, match=re.escape(sentence)) as error:
        read_class_names(tmp_path)
    assert str(tmp_path / name) in str(error.value)


def test_missing_class_names_are_said(tmp_path):
    with pytest.raises(ValueError, match=r"neither classes\.txt nor id2label\.json"):
        read_class_names(tmp_path)
    with pytest.raises(ValueError, match=r"There is no file .*names\.txt"):
        read_class_names(tmp_path / "names.txt")
    (tmp_path / "classes.txt").write_bytes(b"\xff\xfe")
    with pytest.raises(ValueError, match="not UTF-8"):
        read_class_names(tmp_path)


def test_class_names_may_lie_in_each_split(tmp_path):
    for name in ("train", "test"):
        write(tmp_path / name / "classes.txt", "wall\nfloor\n")
    assert read_class_names(tmp_path) == (["wall", "floor"], [0, 1])
    write(tmp_path / "test" / "classes.txt", "floor\nwall\n")
    with pytest.raises(ValueError, match=r"test.classes\.txt and .*train.classes\.txt differ"):
        read_class_names(tmp_path)


# Samples


def row(folder, image="image.jpg", mask="mask.png"):
    return {name: {"path": str(folder / file), "bytes": None} for name, file in {"image": image, "mask": mask}.items()}


def test_a_sample_is_upright_rgb_and_ids(tmp_path):
    draw_picture(tmp_path / "image.jpg")
    draw_mask(tmp_path / "mask.png")
    image, labels = read_sample(row(tmp_path), SPLIT)
    assert (image.mode, image.size) == ("RGB", SIZE)
    assert (labels.dtype, labels.shape) == (np.int64, SIZE[::-1])
    assert labels[0, :4].tolist() == [0, 1, 2, 255]


def test_16_bit_masks_with_many_classes(tmp_path):
    draw_picture(tmp_path / "image.jpg")
    draw_mask(tmp_path / "mask.png", (0, 255, 256, 846, 65535), dtype=np.uint16)
    split = split_classes([f"class {index}" for index in range(847)])
    _, labels = read_sample(row(tmp_path), split)
    assert labels[0, :5].tolist() == [0, 255, 256, 846, 65535]
    assert split.ignore_index == 65535


def exif(orientation):
    data = PILImage.Exif()
    data[0x0112] = orientation
    return data


def test_a_turned_picture_needs_a_mask_that_is_turned_too(tmp_path):
    draw_picture(tmp_path / "image.jpg", exif=exif(6))
    draw_mask(tmp_path / "turned.png", exif=exif(6))
    draw_mask(tmp_path / "upright.png", size=SIZE[::-1])
    draw_mask(tmp_path / "plain.png")
    for mask in ("turned.png", "upright.png"):
        image, labels = read_sample(row(tmp_path, mask=mask), SPLIT)
        assert image.size == labels.shape[::-1] == SIZE[::-1]
    with pytest.raises(
        ValueError, match=r"plain\.png has 8x6 pixels, but its picture .*image\.jpg has 6x8; a picture"
    ):
        read_sample(row(tmp_path, mask="plain.png"), SPLIT)


def test_another_size_is_refused(tmp_path):
    draw_picture(tmp_path / "image.jpg")
    draw_mask(tmp_path / "mask.png", size=(4, 6))
    with pytest.raises(ValueError, match=r"mask\.png has 4x6 pixels, but its picture .*image\.jpg has 8x6\.$"):
        read_sample(row(tmp_path), SPLIT)


def test_whatever_is_wrong_with_a_file_names_it(tmp_path):
    draw_picture(tmp_path / "image.jpg", size=(300, 200))
    (tmp_path / "cut.jpg").write_bytes((tmp_path / "image.jpg").read_bytes()[:3000])
    draw_mask(tmp_path / "mask.png", size=(300, 200))
    draw_mask(tmp_path / "unknown.png", (0, 3), size=(300, 200))
    for files, sentence in {
        ("cut.jpg", "mask.png"): r"cut\.jpg is truncated",
        ("gone.jpg", "mask.png"): r"no picture file .*gone\.jpg",
        ("image.jpg", "gone.png"): r"no picture file .*gone\.png",
        ("image.jpg", "image.jpg"): r"image\.jpg is not a label map",
        ("image.jpg", "unknown.png"): r"unknown\.png: A mask holds the value 3, which is neither",
    }.items():
        with pytest.raises(ValueError, match=sentence) as error:
            read_sample(row(tmp_path, *files), SPLIT)
        assert str(tmp_path) in str(error.value)


def test_embedded_files_are_called_by_number_or_path(tmp_path):
    draw_picture(tmp_path / "image.png")
    draw_mask(tmp_path / "mask.png", (0, 9))
    image = {"bytes": (tmp_path / "image.png").read_bytes(), "path": None}
    mask = {"bytes": (tmp_path / "mask.png").read_bytes(), "path": "m.png"}
    with pytest.raises(ValueError, match=r"^mask of picture 17 \(m\.png\): A mask holds the value 9"):
        read_sample({"image": image, "mask": mask}, SPLIT, 17)
    with pytest.raises(ValueError, match=r"^mask \(m\.png\): A mask"):
        read_sample({"image": image, "mask": mask}, SPLIT)
    with pytest.raises(ValueError, match=r"^picture 17 is not a picture"):
        read_sample({"image": {"bytes": b"no", "path": None}, "mask": mask}, SPLIT, 17)
    with pytest.raises(ValueError, match=r"^mask of picture 17 is missing"):
        read_sample({"image": image, "mask": None}, SPLIT, 17)
    # A path is never taken for an address.
    with pytest.raises(ValueError, match="no picture file http"):
        read_sample({"image": {"bytes": None, "path": "http://localhost/x.png"}, "mask": mask}, SPLIT)


# All together


def test_pictures_and_classes_of_a_benchmark(voc, monkeypatch):
    data, split = load_pictures("voc", data_dir=voc)
    assert set(data) == {"train", "validation"}
    assert split == benchmark_split("voc")
    _, split = load_pictures("voc", data_dir=voc, unseen=["cat"], ignored=["sheep", "person"])
    assert len(split.names) == 18
    assert [split.names[index] for index in split.unseen_ids] == ["cat"]
    _, split = load_pictures("voc", data_dir=voc, ignored=["sheep"])
    assert len(split.unseen_ids) == 4
    _, split = load_pictures("voc", data_dir=voc, unseen=[])
    assert split.unseen_ids == ()
    monkeypatch.setenv("HOME", str(voc.parent))
    assert len(load_pictures("voc", data_dir="~/VOC2012")[0]["train"]) == 4


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        ({"dataset": "voc"}, "data_dir is missing: say which folder voc lies in"),
        ({"dataset": "voc", "data_dir": ".", "classes_file": "x"}, "classes_file is for folders and Hub data sets"),
        ({"dataset": "voc", "data_dir": ".", "mask_column": "x"}, "mask_column is for folders and Hub data sets"),
        ({"dataset": "coco_stuf"}, "There is no data set 'coco_stuf': .*did you mean 'coco_stuff'"),
        ({"dataset": "./nowhere"}, r"There is no folder \./nowhere\."),
        ({"dataset": "some/where/deep"}, "There is no folder some/where/deep"),
        ({"dataset": "some/where", "data_dir": "."}, "data_dir is for the benchmarks voc, .*'some/where' is none"),
    ],
)
def test_arguments_that_do_not_fit(arguments, sentence):
    with pytest.raises(ValueError, match=sentence):
        load_pictures(**arguments)


def test_pictures_and_classes_of_a_folder(tmp_path):
    folder = tmp_path / "data"
    make_pair(folder)
    with pytest.raises(ValueError, match=r"There are no class names for .*data: give a file"):
        load_pictures(str(folder))
    write(folder / "classes.txt", "background\nwall\nfloor\n")
    data, split = load_pictures(str(folder), unseen=["floor"], ignored=["background"])
    assert sample(data["train"], split=split)[1][0, :4].tolist() == [255, 0, 1, 255]
    write(tmp_path / "others.txt", "x\ny\nz\n")
    _, split = load_pictures(str(folder), classes_file=tmp_path / "others.txt", seen=["x"])
    assert (split.names, split.seen_ids, split.unseen_ids) == (("x", "y", "z"), (0,), (1, 2))
    with pytest.raises(ValueError, match=r"There is no file .*gone\.txt"):
        load_pictures(str(folder), classes_file=tmp_path / "gone.txt")


def test_class_names_of_the_hub_come_from_a_file_beside_the_tables():
    """What the Hub would give is put where it is kept once it has been downloaded."""
    folder = Path(datasets.config.HF_CACHE_HOME) / "hub" / "datasets--owner--name"
    write(folder / "refs" / "main", "0" * 40)
    write(folder / "snapshots" / ("0" * 40) / "id2label.json", '{"0": "wall", "1": "floor", "2": "tree"}')
    try:
        assert read_class_names(find_names_file("owner/name")) == (["wall", "floor", "tree"], [0, 1, 2])
        assert find_names_file("owner/other") is None
    finally:
        shutil.rmtree(folder)
