"""The tiny CLIP that the package carries."""

import pytest
import torch
from transformers import AutoTokenizer

from zegclip import DEFAULT_MODEL
from zegclip.loading import load_base
from zegclip.picture_world.classes import CLASS_NAMES, OBJECT_NAMES
from zegclip.picture_world.dataset import scene_seeds
from zegclip.picture_world.evaluation import name_objects
from zegclip.picture_world.tokenizer import build_tokenizer

FOLDER = str(DEFAULT_MODEL)


@pytest.fixture(scope="module")
def model():
    return load_base(DEFAULT_MODEL, {}).clip.eval()


def test_it_is_small_and_in_float32(model):
    assert model.dtype == torch.float32
    assert 1e6 < model.num_parameters() < 2e6


def test_its_tokenizer_is_the_one_that_is_built():
    saved, built = AutoTokenizer.from_pretrained(FOLDER), build_tokenizer()
    assert saved.get_vocab() == built.get_vocab()
    texts = [f"a photo of a {name}" for name in CLASS_NAMES]
    assert saved(texts, padding=True)["input_ids"] == built(texts, padding=True)["input_ids"]


def test_it_names_objects_without_any_mask(model):
    seeds = scene_seeds("tuning")[1000:]
    assert name_objects(model, build_tokenizer(), seeds[: 3 * len(OBJECT_NAMES)]).mean() > 0.9
