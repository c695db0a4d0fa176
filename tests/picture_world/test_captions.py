"""Captions name the classes of a scene, often as a zero-shot prompt does."""

from collections import Counter

import numpy as np
import pytest

from zegclip.picture_world.captions import PROMPT, caption, compose, with_article
from zegclip.picture_world.classes import CLASS_NAMES
from zegclip.picture_world.drawing import draw_scene


@pytest.fixture(scope="module")
def captioned():
    scenes = [draw_scene(seed) for seed in range(80)]
    rng = np.random.default_rng(0)
    return [(scene, caption(scene, rng)) for scene in scenes for _ in range(50)]


def test_captions_name_only_classes_of_the_scene(captioned):
    for scene, text in captioned:
        names = {CLASS_NAMES[index] for index in {thing.class_id for thing in scene.things} | set(scene.grounds)}
        named = set(text.replace("-", " ").split()) & set(CLASS_NAMES)
        assert named
        assert named <= names


def test_every_class_gets_its_bare_prompt_often(captioned):
    texts = Counter(text for _, text in captioned)
    assert all(texts[PROMPT.format(name)] >= 4 for name in CLASS_NAMES)
    assert 0.4 < sum(texts[PROMPT.format(name)] for name in CLASS_NAMES) / len(captioned) < 0.7
    assert len(texts) > 200


def test_compose_returns_the_classes_that_it_names():
    rng = np.random.default_rng(1)
    for _ in range(300):
        text, classes = compose([(2, "red"), (1, "green")], [33], rng)
        assert set(classes) == {CLASS_NAMES.index(word) for word in text.split() if word in CLASS_NAMES}


def test_articles():
    assert with_article("orange fish") == "an orange fish"
    assert with_article("fish") == "a fish"
