"""Windows of pre-drawn scenes with captions, without masks: the pretraining data of the tiny CLIP."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from .captions import COLOUR_WORDS, compose
from .classes import CLASS_NAMES, OBJECT_NAMES
from .drawing import SCENE_SIZE, draw_scene

# Pixels of a class in a window from which on it counts as shown, and from which on the caption may name it.
_MIN_SHOWN, _MIN_NAMED = 36, 110


@dataclass(frozen=True)
class DrawnScenes:
    """Scenes as arrays.

    Attributes:
        pictures: (scenes, 96, 96, 3) uint8.
        masks: (scenes, 96, 96) uint8 class ids, used only to find the classes that a caption may name.
        colours: (scenes, 24) uint8, index of the colour word of each object class in the scene.
    """

    pictures: np.ndarray
    masks: np.ndarray
    colours: np.ndarray


def draw_scenes(seeds: range, progress: bool = True) -> DrawnScenes:
    """Draw scenes of the training pool.

    Args:
        seeds: one seed per scene.
        progress: whether to show a progress bar.

    Returns:
        The scenes.
    """
    pictures = np.empty((len(seeds), SCENE_SIZE, SCENE_SIZE, 3), dtype=np.uint8)
    masks = np.empty((len(seeds), SCENE_SIZE, SCENE_SIZE), dtype=np.uint8)
    colours = np.zeros((len(seeds), len(OBJECT_NAMES)), dtype=np.uint8)
    for index, seed in enumerate(tqdm(seeds, desc="drawing", unit="scene", disable=not progress)):
        scene = draw_scene(seed, "train")
        pictures[index], masks[index] = np.asarray(scene.image), np.asarray(scene.mask)
        for thing in scene.things:
            colours[index, thing.class_id] = COLOUR_WORDS.index(thing.colour)
    return DrawnScenes(pictures, masks, colours)


@dataclass(frozen=True)
class CaptionedWindows:
    """A batch of pictures with captions.

    Attributes:
        pictures: (batch, side, side, 3) uint8.
        captions: one text per picture.
        matches: (pictures, captions) bool, whether the picture shows all classes that the caption names.
    """

    pictures: torch.Tensor
    captions: list[str]
    matches: torch.Tensor


def captioned_windows(
    scenes: DrawnScenes, side: int, batch_size: int, rng: np.random.Generator, close_ups: float = 0.6
) -> Iterator[CaptionedWindows]:
    """Cut captioned windows out of scenes, endlessly.

    Args:
        scenes: the scenes.
        side: width and height of a window in pixels.
        batch_size: windows per batch.
        rng: the source of choices.
        close_ups: share of the windows that are centred on a pixel of an object.

    Yields:
        Batches. Each picture is flipped horizontally with probability 0.5.
    """
    count, scene_side = scenes.masks.shape[:2]
    room = scene_side - side
    while True:
        pictures = np.empty((batch_size, side, side, 3), dtype=np.uint8)
        shown = np.zeros((batch_size, len(CLASS_NAMES)), dtype=bool)
        named = np.zeros((batch_size, len(CLASS_NAMES)), dtype=bool)
        captions = []
        for index in range(batch_size):
            scene = int(rng.integers(count))
            mask = scenes.masks[scene]
            spots = np.flatnonzero(mask < len(OBJECT_NAMES)) if rng.random() < close_ups else ()
            if len(spots):
                spot = int(spots[rng.integers(len(spots))])
                top = min(max(spot // scene_side - side // 2, 0), room)
                left = min(max(spot % scene_side - side // 2, 0), room)
            else:
                top, left = (int(start) for start in rng.integers(room + 1, size=2))
            window = (slice(top, top + side), slice(left, left + side))
            step = 1 if rng.random() < 0.5 else -1
            pictures[index] = scenes.pictures[scene][window][:, ::step]
            pixels = np.bincount(mask[window].ravel(), minlength=len(CLASS_NAMES))
            nameable = np.flatnonzero(pixels >= _MIN_NAMED).tolist()
            text, classes = compose(
                [(c, COLOUR_WORDS[scenes.colours[scene, c]]) for c in nameable if c < len(OBJECT_NAMES)],
                [c for c in nameable if c >= len(OBJECT_NAMES)],
                rng,
            )
            captions.append(text)
            shown[index] = pixels >= _MIN_SHOWN
            named[index, list(classes)] = True
        missing = (~shown).astype(np.float32) @ named.T.astype(np.float32)
        yield CaptionedWindows(torch.from_numpy(pictures), captions, torch.from_numpy(missing == 0))
