"""The small tokenizer: whole words for captions, something sensible for any text."""

import numpy as np
import pytest

from zegclip.picture_world.captions import COLOUR_WORDS, caption
from zegclip.picture_world.classes import CLASS_NAMES
from zegclip.picture_world.drawing import draw_scene
from zegclip.picture_world.tokenizer import MODEL_MAX_LENGTH, build_tokenizer


@pytest.fixture(scope="module")
def tokenizer():
    return build_tokenizer()


def test_words_of_captions_are_single_tokens(tokenizer):
    for word in (*CLASS_NAMES, *COLOUR_WORDS, "photo"):
        assert tokenizer.tokenize(word) == [f"{word}</w>"]


def test_captions_fit_and_come_back(tokenizer):
    rng = np.random.default_rng(0)
    for seed in range(40):
        text = caption(draw_scene(seed), rng)
        ids = tokenizer(text)["input_ids"]
        assert len(ids) <= MODEL_MAX_LENGTH // 2
        # CLIP tokenizers put spaces around punctuation when they decode.
        assert tokenizer.decode(ids, skip_special_tokens=True).replace(" - ", "-") == text


def test_any_text_becomes_known_tokens(tokenizer):
    for text in ("zebra crossing", "Über-Größe 猫 🦓", "x", "'s !? 42"):
        ids = tokenizer(text)["input_ids"]
        assert [ids[0], ids[-1]] == [tokenizer.bos_token_id, tokenizer.eos_token_id]
        assert len(ids) > 2
        assert tokenizer.eos_token_id not in ids[1:-1]


def test_ids_are_the_same_in_every_process(tokenizer):
    # Processes that train together must agree, and so must a saved model and a tokenizer built later.
    assert tokenizer("a photo of a house")["input_ids"] == [0, 322, 517, 518, 322, 611, 1]
    assert (tokenizer.bos_token_id, tokenizer.eos_token_id, tokenizer.pad_token_id) == (0, 1, 1)
    assert tokenizer.model_max_length == MODEL_MAX_LENGTH
