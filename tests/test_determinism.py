"""The same seed gives the same bits; how the work is cut up changes nothing beyond rounding."""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import pipeline

from zegclip.segmenting.segmenter import ClassMapPipeline
from zegclip.training import train as training

ROOT = Path(__file__).parents[1]
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
    segmenter = ClassMapPipeline(model=model, processor=processor, task=TASK, device="cpu")
    return lambda picture, **settings: segmenter(picture, candidate_labels=NAMES, **settings)


def train(clip_folder, output, *words):
    arguments = [str(ROOT / "configs" / "zegclip_picture_world_inductive.yaml"), "--model", str(clip_folder)]
    arguments += ["--num_train_pictures", "6", "--num_eval_pictures", "1", "--total_train_batch_size", "2"]
    arguments += ["--decoder_attention_heads", "2", "--decoder_ffn_dim", "32", "--num_prompt_tokens", "2"]
    training.train([*arguments, "--use_cpu", "--max_steps", "3", "--output_dir", str(output), *words])
    return (output / "adapter_model.safetensors").read_bytes()


def test_one_seed_trains_the_same_bits_with_any_number_of_workers(clip_folder, tmp_path):
    words = ["--seed", "5", "--learning_rate", "0.01", "--warmup_steps", "0"]
    weights = train(clip_folder, tmp_path / "first", *words)
    assert train(clip_folder, tmp_path / "again", *words) == weights
    assert train(clip_folder, tmp_path / "workers", *words, "--dataloader_num_workers", "2") == weights
    words[1] = "6"
    assert train(clip_folder, tmp_path / "other", *words) != weights


def test_one_picture_gives_the_same_bits_again(maps, picture):
    ids, scores = maps(picture)
    for _ in range(3):
        again_ids, again_scores = maps(picture)
        assert np.array_equal(again_ids, ids)
        assert np.array_equal(again_scores, scores)


@pytest.mark.parametrize("batch", [1, 2, 3, 100])
def test_how_many_windows_go_through_the_model_together(maps, picture, batch):
    ids, scores = maps(picture)
    other_ids, other_scores = maps(picture, window_batch_size=batch)
    assert np.abs(other_scores - scores).max() <= TOLERANCE
    assert np.mean(other_ids != ids) <= 1e-3  # where two classes are as good as each other


def test_what_was_segmented_before_does_not_matter(maps, picture):
    others = [picture.resize(size) for size in ((33, 200), (90, 64))]
    alone = [maps(one) for one in (*others, picture)]
    for (ids, scores), (alone_ids, alone_scores) in zip(maps([*others, picture]), alone, strict=True):
        assert np.array_equal(ids, alone_ids)
        assert np.array_equal(scores, alone_scores)


def test_threads_that_share_a_pipeline_get_their_own_results(model, processor):
    """Each thread with names of its own, so that what one has encoded is of no use to another."""
    rng = np.random.default_rng(1)
    pictures = [Image.fromarray(rng.integers(0, 256, (*size, 3), dtype=np.uint8)) for size in ((40, 60), (90, 33))]
    segmenter = ClassMapPipeline(model=model, processor=processor, task=TASK, device="cpu")
    tasks = [(picture, NAMES[: count + 1]) for _ in range(6) for picture in pictures for count in range(len(NAMES))]

    def run(task):
        picture, names = task
        return segmenter(picture, candidate_labels=names)

    expected = [run(task) for task in tasks]
    with ThreadPoolExecutor(4) as pool:
        for (ids, scores), (expected_ids, expected_scores) in zip(pool.map(run, tasks), expected, strict=True):
            assert np.array_equal(ids, expected_ids)
            assert np.array_equal(scores, expected_scores)


def test_threads_of_pytorch_change_rounding_alone(maps, picture):
    before = torch.get_num_threads()
    try:
        torch.set_num_threads(1)
        ids, scores = maps(picture)
        torch.set_num_threads(2)
        other_ids, other_scores = maps(picture)
    finally:
        torch.set_num_threads(before)
    assert np.abs(other_scores - scores).max() <= TOLERANCE
    assert np.mean(other_ids != ids) <= 1e-3


def test_a_loaded_pipeline_gives_the_bits_of_the_saved_one(model, processor, picture, tmp_path):
    segmenter = pipeline(TASK, model=model, processor=processor)
    segmenter.save_pretrained(tmp_path)
    loaded = pipeline(TASK, model=str(tmp_path))
    for one, other in zip(
        segmenter(picture, candidate_labels=NAMES), loaded(picture, candidate_labels=NAMES), strict=True
    ):
        assert one["score"] == other["score"]
        assert one["mask"].tobytes() == other["mask"].tobytes()
