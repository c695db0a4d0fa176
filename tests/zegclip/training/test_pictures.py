"""Pictures as tensors: what a sample depends on, and how files that cannot be read are skipped."""

import os

import numpy as np
import pytest
import torch
from datasets import Dataset, Features, Image
from PIL import Image as PILImage

from zegclip.processing.augmentation import TrainingAugmentation
from zegclip.processing.class_split import ClassSplit
from zegclip.processing.input_error import InputError
from zegclip.training.pictures import (
    EvaluationPictures,
    PictureSampler,
    TrainingPictures,
    content_of_rows,
    read_skipped,
)

SPLIT = ClassSplit(names=("a", "b", "c"), seen_ids=(2, 0), unseen_ids=(1,))
AUGMENTATION = TrainingAugmentation(crop_size=24, short_side=32, long_side=128)


@pytest.fixture
def make_data(tmp_path):
    def make(count=6, broken=()):
        rng = np.random.default_rng(0)
        rows = {"image": [], "mask": []}
        for index in range(count):
            height, width = int(rng.integers(20, 50)), int(rng.integers(20, 50))
            for name, shape, top in (("image", (height, width, 3), 256), ("mask", (height, width), 3)):
                path = tmp_path / f"{name}_{index}.png"
                PILImage.fromarray(rng.integers(top, size=shape).astype(np.uint8)).save(path)
                if name == "image" and index in broken:
                    path.write_bytes(path.read_bytes()[:60])
                rows[name].append(str(path))
        return Dataset.from_dict(rows, features=Features({name: Image(decode=False) for name in rows}))

    return make


@pytest.fixture
def training(make_data, image_processor):
    return TrainingPictures(make_data(), SPLIT, "inductive", AUGMENTATION, image_processor, seed=5)


def same(left, right):
    return all(torch.equal(left[name], right[name]) for name in left)


def test_a_sample_depends_on_its_key_alone(training, make_data, image_processor):
    first = training[3]
    torch.manual_seed(1)
    np.random.seed(1)
    _ = training[2], training[3 + 6]
    assert same(training[3], first)
    again = TrainingPictures(make_data(), SPLIT, "inductive", AUGMENTATION, image_processor, seed=5)
    assert same(again[3], first)
    another = TrainingPictures(make_data(), SPLIT, "inductive", AUGMENTATION, image_processor, seed=6)
    assert not same(another[3], first)
    assert not same(training[3 + 6], first)  # the next epoch


def test_workers_change_nothing(training):
    sampler = PictureSampler(len(training), seed=1)
    sampler.set_epoch(2)
    loader = torch.utils.data.DataLoader(training, sampler=sampler, num_workers=2, batch_size=None)
    for key, sample in zip(sampler, loader, strict=True):
        assert divmod(key, len(training))[0] == 2
        assert same(sample, training[key])


@pytest.mark.parametrize(
    ("setting", "allowed"),
    [("inductive", {0, 1, 255}), ("transductive", {0, 2, -1, 255}), ("fully_supervised", {0, 1, 2, 255})],
)
def test_labels_of_each_setting(make_data, image_processor, setting, allowed):
    training = TrainingPictures(make_data(), SPLIT, setting, AUGMENTATION, image_processor)
    found = set()
    for index in range(len(training)):
        assert training[index]["pixel_values"].shape == (3, 24, 24)
        assert training[index]["labels"].shape == (24, 24)
        assert training[index]["labels"].dtype == torch.int64
        found |= set(training[index]["labels"].unique().tolist())
    assert found - {255} == allowed - {255}


def test_every_epoch_shows_every_picture_once_in_another_order():
    sampler = PictureSampler(50, seed=1)
    orders = []
    for epoch in (0, 1):
        sampler.set_epoch(epoch)
        keys = list(sampler)
        assert len(keys) == len(sampler) == 50
        assert sorted(keys) == list(range(50 * epoch, 50 * epoch + 50))
        orders.append([key % 50 for key in keys])
    assert orders[0] != orders[1]
    assert list(PictureSampler(50, seed=1)) == orders[0]
    assert list(PictureSampler(50, seed=2)) != orders[0]
    batches = PictureSampler(50, seed=1, batch_size=8)  # whole ones only
    assert len(batches) == 48
    assert list(batches) == orders[0][:48]


def test_evaluation_pictures_keep_the_size_of_their_labels(make_data, image_processor):
    data = make_data()
    pictures = EvaluationPictures(data, SPLIT, image_processor)
    for index in range(len(pictures)):
        sample = pictures[index]
        with PILImage.open(data[index]["mask"]["path"]) as mask:
            assert np.array_equal(sample["labels"], np.asarray(mask))
        assert min(sample["pixel_values"].shape[1:]) == 32


@pytest.mark.parametrize("kind", ["training", "evaluation"])
def test_a_broken_file_stops_with_its_name(make_data, image_processor, kind):
    data = make_data(broken=[2])
    training = TrainingPictures(data, SPLIT, "inductive", AUGMENTATION, image_processor)
    with pytest.raises(InputError, match=r"image_2\.png"):
        _ = (training if kind == "training" else EvaluationPictures(data, SPLIT, image_processor))[2]


def test_broken_files_can_be_skipped_counted_and_listed(make_data, image_processor, tmp_path):
    data, file = make_data(broken=[2, 4]), tmp_path / "run" / "skipped.txt"
    training = TrainingPictures(data, SPLIT, "inductive", AUGMENTATION, image_processor, skipped_file=file)
    loader = torch.utils.data.DataLoader(training, batch_size=2, num_workers=2)
    assert [batch["pixel_values"].shape for batch in loader] == [(2, 3, 24, 24)] * 3
    evaluation = EvaluationPictures(data, SPLIT, image_processor, skipped_file=file)
    assert not evaluation[2]["labels"].numel()  # counts nowhere
    listed = sorted(read_skipped(file))
    assert len(listed) == 2
    assert "image_2.png" in listed[0]
    assert "image_4.png" in listed[1]


def test_when_nothing_can_be_read_skipping_ends(make_data, image_processor, tmp_path):
    data = make_data(count=3, broken=[0, 1, 2])
    training = TrainingPictures(data, SPLIT, "inductive", AUGMENTATION, image_processor, skipped_file=tmp_path / "s")
    with pytest.raises(InputError, match="100 pictures"):
        training[0]


def test_the_content_of_rows_is_that_of_files_wherever_they_lie(tmp_path):
    """For files in folders of several levels, and for a table with the bytes in it."""
    for name in ("a/images/1.png", "a/images/deep/2.png", "a/masks/1.png", "a/masks/deep/2.png"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())

    def rows(root, **changes):
        paths = {"image": ["images/1.png", "images/deep/2.png"], "mask": ["masks/1.png", "masks/deep/2.png"]} | changes
        columns = {column: [os.path.join(root, name) for name in names] for column, names in paths.items()}
        return Dataset.from_dict(columns, features=Features({name: Image(decode=False) for name in columns}))

    expected = content_of_rows(rows(tmp_path / "a"))
    assert expected.startswith("2 pictures, ")
    assert content_of_rows(rows(os.path.relpath(tmp_path / "a"))) == expected
    assert content_of_rows(rows(tmp_path / "a", mask=["masks/deep/2.png", "masks/1.png"])) != expected
    assert content_of_rows(rows(tmp_path / "a").select([1, 0])) != expected
    (tmp_path / "a").rename(tmp_path / "b")
    assert content_of_rows(rows(tmp_path / "b")) == expected
    (tmp_path / "b" / "masks" / "1.png").write_bytes(b"of another size")
    assert content_of_rows(rows(tmp_path / "b")) != expected

    def table(**changes):
        files = [{"path": "1.png", "bytes": b"123"}, {"path": None, "bytes": b"4567"}]
        columns = {"image": files, "mask": files} | changes
        return Dataset.from_dict(columns, features=Features({name: Image(decode=False) for name in columns}))

    assert content_of_rows(table()) == content_of_rows(table())
    assert content_of_rows(table(mask=[{"path": "1.png", "bytes": b"12"}, None])) != content_of_rows(table())


@pytest.mark.parametrize(
    "fields",
    [
        {},
        {"image_mean": [0.5] * 3, "image_std": [0.25] * 3},
        {"do_normalize": False},
        {"do_rescale": False},
        {"rescale_factor": 1 / 127.5},
        {"do_rescale": False, "do_normalize": False},
    ],
)
def test_training_and_evaluation_see_the_same_pixel_values(make_data, image_processor, fields):
    for name, value in fields.items():
        setattr(image_processor, name, value)
    image_processor.size = {"shortest_edge": 24}
    data = make_data(1)
    PILImage.fromarray(np.random.default_rng(1).integers(256, size=(24, 24, 3), dtype=np.uint8)).save(
        data[0]["image"]["path"]
    )
    PILImage.new("L", (24, 24)).save(data[0]["mask"]["path"])
    still = TrainingAugmentation(
        crop_size=24, short_side=24, scale_range=None, max_category_share=1.0, flip_probability=0.0,
        photometric_distortion=False,
    )  # fmt: skip
    trained = TrainingPictures(data, SPLIT, "inductive", still, image_processor)[0]["pixel_values"]
    evaluated = EvaluationPictures(data, SPLIT, image_processor)[0]["pixel_values"]
    assert torch.equal(trained.float(), evaluated.float())
