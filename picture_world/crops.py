"""Windows of pre-drawn scenes with captions: the pretraining data of the tiny CLIP, which knows no mask."""

from collections.abc import Collection, Iterator
from dataclasses import dataclass

import numpy as np
import torch
from tqdm import tqdm

from .captions import compose
from .classes import CLASS_NAMES
from .drawing import SCENE_SIZE, draw_scene

# Pixels that an object's centre is inside of a window, and rows of a window that a ground has, to be nameable.
_INSIDE, _ROWS = 4, 12
# Pixels by which a close-up is off an object's centre at most.
_OFF_CENTRE = 16
# Captions of a picture, as in COCO. One of them is used, and all say which captions match the picture: with one alone,
# the name of the other object in it would count as wrong.
_CAPTIONS = 5


@dataclass(frozen=True)
class DrawnScenes:
    """Pictures of scenes and what was drawn where.

    Attributes:
        pictures: (scenes, 96, 96, 3) uint8.
        things: of each scene (class id, colour word, row and column of the centre) of its objects.
        grounds: of each scene (class id, first row, end) of its grounds.
    """

    pictures: np.ndarray
    things: list[list[tuple[int, str, int, int]]]
    grounds: list[list[tuple[int, int, int]]]


def draw_scenes(seeds: range, progress: bool = True) -> DrawnScenes:
    """Draw scenes of the training pool.

    Args:
        seeds: one seed per scene.
        progress: whether to show a progress bar.

    Returns:
        The scenes.
    """
    drawn = DrawnScenes(np.empty((len(seeds), SCENE_SIZE, SCENE_SIZE, 3), dtype=np.uint8), [], [])
    for index, seed in enumerate(tqdm(seeds, desc="drawing", unit="scene", disable=not progress)):
        scene = draw_scene(seed, "train")
        drawn.pictures[index] = np.asarray(scene.image)
        drawn.things.append([(thing.class_id, thing.colour, *thing.centre) for thing in scene.things])
        starts = [0, scene.horizon][: len(scene.grounds)]
        ends = [*starts[1:], SCENE_SIZE]
        drawn.grounds.append(list(zip(scene.grounds, starts, ends, strict=True)))
    return drawn


@dataclass(frozen=True)
class CaptionedWindows:
    """A batch of pictures with captions.

    Attributes:
        pictures: (batch, side, side, 3) uint8.
        captions: one text per picture.
        matches: (pictures, captions) bool, whether the picture's own captions name all classes of the caption.
    """

    pictures: torch.Tensor
    captions: list[str]
    matches: torch.Tensor


def captioned_windows(
    scenes: DrawnScenes,
    side: int,
    batch_size: int,
    rng: np.random.Generator,
    close_ups: float = 0.6,
    captions_per_picture: int = _CAPTIONS,
    withheld: Collection[int] = (),
) -> Iterator[CaptionedWindows]:
    """Cut captioned windows out of scenes, endlessly.

    Args:
        scenes: the scenes.
        side: width and height of a window in pixels.
        batch_size: windows per batch.
        rng: the source of choices.
        close_ups: share of the windows that are placed around an object.
        captions_per_picture: of which one is in the batch, and all say what the picture shows.
        withheld: class ids that no caption names.

    Yields:
        Batches. Each picture is flipped horizontally with probability 0.5.
    """
    room = SCENE_SIZE - side
    while True:
        pictures = np.empty((batch_size, side, side, 3), dtype=np.uint8)
        named = np.zeros((batch_size, len(CLASS_NAMES)), dtype=np.float32)
        described = np.zeros_like(named)
        captions: list[str] = []
        while (index := len(captions)) < batch_size:
            scene = int(rng.integers(len(scenes.pictures)))
            things = scenes.things[scene]
            top, left = (int(start) for start in rng.integers(room + 1, size=2))
            if things and rng.random() < close_ups:
                _, _, row, column = things[int(rng.integers(len(things)))]
                off = rng.integers(-_OFF_CENTRE, _OFF_CENTRE + 1, size=2)
                top = min(max(row + int(off[0]) - side // 2, 0), room)
                left = min(max(column + int(off[1]) - side // 2, 0), room)
            objects = [
                (class_id, colour)
                for class_id, colour, row, column in things
                if class_id not in withheld
                and _INSIDE <= row - top < side - _INSIDE
                and _INSIDE <= column - left < side - _INSIDE
            ]
            grounds = [
                class_id
                for class_id, start, end in scenes.grounds[scene]
                if class_id not in withheld and min(end, top + side) - max(start, top) >= _ROWS
            ]
            if not objects and not grounds:
                continue
            step = 1 if rng.random() < 0.5 else -1
            pictures[index] = scenes.pictures[scene][top : top + side, left : left + side][:, ::step]
            written = [compose(objects, grounds, rng) for _ in range(captions_per_picture)]
            captions.append(written[0][0])
            named[index, list(written[0][1])] = 1
            described[index, [class_id for _, classes in written for class_id in classes]] = 1
        unnamed = (1 - described) @ named.T
        yield CaptionedWindows(torch.from_numpy(pictures), captions, torch.from_numpy(unnamed == 0))
