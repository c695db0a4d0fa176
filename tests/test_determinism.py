"""The same seed gives the same bits; how the work is cut up changes nothing beyond rounding."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from PIL import Image
from small_run import CONFIG, SMALL, options, read_weights
from transformers import pipeline

from zegclip.training import train as training

TASK = "zero-shot-image-segmentation"
NAMES = ["cat", "dog", "tree", "a red car"]
# Of sigmoids in float32 which other batches add up in another order.
TOLERANCE = 1e-5


@pytest.fixture
def picture():
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (75, 130, 3), dtype=np.uint8))


@pytest.fixture
def maps(model, processor):
    """Class map and scores of a picture, `(height, width)` each, with any settings of the pipeline."""
    segmenter = pipeline(TASK, model=model, processor=processor, device="cpu", output_type="class_map")
    return lambda picture, **settings: segmenter(picture, candidate_labels=NAMES, **settings)


def train(clip_folder, output, **fields):
    fields = SMALL | {"max_steps": 3, "learning_rate": 0.01, "warmup_steps": 0, "seed": 5} | fields
    training.train([CONFIG, *options(model=clip_folder, output_dir=output, **fields)])
    return read_weights(output)


@pytest.mark.slow
def test_one_seed_trains_the_same_bits_with_any_number_of_workers(clip_folder, tmp_path):
    weights = train(clip_folder, tmp_path / "first")
    assert train(clip_folder, tmp_path / "again") == weights
    assert train(clip_folder, tmp_path / "workers", dataloader_num_workers=2) == weights
    assert train(clip_folder, tmp_path / "other", seed=6) != weights


def assert_same(ones, others):
    for one, other in zip(ones, others, strict=True):
        assert all(np.array_equal(one[name], other[name]) for name in ("segmentation", "scores"))


def assert_close(one, other):
    assert np.abs(one["scores"] - other["scores"]).max() <= TOLERANCE
    assert np.mean(one["segmentation"] != other["segmentation"]) <= 1e-3  # where two classes are as good as each other


def test_one_picture_gives_the_same_bits_again(maps, picture):
    assert_same([maps(picture)] * 3, [maps(picture) for _ in range(3)])


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_how_many_windows_go_through_the_model_together(maps, picture, batch):
    assert_close(maps(picture, batch_size=batch), maps(picture))


def test_what_was_segmented_before_does_not_matter(maps, picture):
    others = [picture.resize(size) for size in ((33, 200), (90, 64))]
    assert_same(maps([*others, picture]), [maps(one) for one in (*others, picture)])


def test_threads_that_share_a_pipeline_get_their_own_results(model, processor):
    """Each thread with names of its own, so that what one has encoded is of no use to another."""
    rng = np.random.default_rng(1)
    pictures = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((40, 60), (90, 33))]
    segmenter = pipeline(TASK, model=model, processor=processor, device="cpu", output_type="class_map")
    tasks = [(picture, NAMES[: count + 1]) for _ in range(6) for picture in pictures for count in range(len(NAMES))]

    def run(task):
        picture, names = task
        return segmenter(picture, candidate_labels=names)

    expected = [run(task) for task in tasks]
    with ThreadPoolExecutor(4) as pool:
        assert_same(pool.map(run, tasks), expected)


def test_threads_of_pytorch_change_rounding_alone(maps, picture):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        one = maps(picture)
        torch.set_num_threads(2)
        assert_close(maps(picture), one)
    finally:
        torch.set_num_threads(before)


def test_a_loaded_pipeline_gives_the_bits_of_the_saved_one(model, processor, picture, tmp_path):
    segmenter = pipeline(TASK, model=model, processor=processor)
    segmenter.save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path))
    masks = (segment(picture, candidate_labels=NAMES) for segment in (segmenter, loaded))
    for one, other in zip(*masks, strict=True):
        assert one["score"] == other["score"]
        assert one["mask"].tobytes() == other["mask"].tobytes()
