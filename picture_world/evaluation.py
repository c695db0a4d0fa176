"""Zero-shot evaluation of the tiny CLIP, before any training with masks: it classifies objects and patches."""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch.nn import functional
from tqdm import tqdm
from transformers import CLIPModel, CLIPTokenizer

from .captions import PROMPT
from .classes import CLASS_NAMES, OBJECT_NAMES, SEEN, UNSEEN_TUNING, class_ids
from .drawing import SCENE_SIZE, Scene, draw_scene
from .tiny_clip import WINDOW_SIDE, normalise, picture_features, text_features


def prompt_features(model: CLIPModel, tokenizer: CLIPTokenizer) -> torch.Tensor:
    """Return the unit-length features (32, dim) of "a photo of a {class}"."""
    texts = [PROMPT.format(name) for name in CLASS_NAMES]
    return text_features(model, tokenizer(texts, padding=True, return_tensors="pt").to(model.device))


@torch.inference_mode()
def name_objects(model: CLIPModel, tokenizer: CLIPTokenizer, seeds: range) -> torch.Tensor:
    """Classify close-ups of single objects among the 24 names.

    Args:
        model: the CLIP.
        tokenizer: its tokenizer.
        seeds: one seed per picture; the object is the seed modulo 24.

    Returns:
        (24,) the accuracy of each object.
    """
    prompts = prompt_features(model, tokenizer)[: len(OBJECT_NAMES)]
    windows = []
    for seed in seeds:
        scene = draw_scene(seed, "train", objects=(seed % len(OBJECT_NAMES),))
        rows, columns = np.nonzero(np.asarray(scene.mask) < len(OBJECT_NAMES))
        room = SCENE_SIZE - WINDOW_SIDE
        top = int(np.clip(rows.mean() - WINDOW_SIDE / 2, 0, room))
        left = int(np.clip(columns.mean() - WINDOW_SIDE / 2, 0, room))
        windows.append(np.asarray(scene.image)[top : top + WINDOW_SIDE, left : left + WINDOW_SIDE])
    pixel_values = normalise(torch.from_numpy(np.stack(windows)).to(model.device))
    answers = (picture_features(model, pixel_values)[0] @ prompts.T).argmax(dim=1).cpu()
    truth = torch.tensor([seed % len(OBJECT_NAMES) for seed in seeds])
    right = torch.bincount(truth[answers == truth], minlength=len(OBJECT_NAMES))
    return right / torch.bincount(truth, minlength=len(OBJECT_NAMES))


@torch.inference_mode()
def name_pixels(model: CLIPModel, prompts: torch.Tensor, picture: torch.Tensor, stride: int = 12) -> torch.Tensor:
    """Assign each pixel to the class whose prompt is most similar to its patches, without training.

    Args:
        model: the CLIP.
        prompts: unit-length features (classes, dim).
        picture: (H, W, 3) uint8, at least 48 pixels wide and high.
        stride: distance between windows in pixels.

    Returns:
        (H, W) int64, indices of the prompts.
    """
    height, width = picture.shape[:2]
    corners = [(top, left) for top in _starts(height, stride) for left in _starts(width, stride)]
    windows = torch.stack([picture[top : top + WINDOW_SIDE, left : left + WINDOW_SIDE] for top, left in corners])
    patches = picture_features(model, normalise(windows.to(model.device)))[1] @ prompts.T
    side = math.isqrt(patches.shape[1])
    scores = patches.transpose(1, 2).unflatten(2, (side, side))
    scores = functional.interpolate(scores, size=(WINDOW_SIDE, WINDOW_SIDE), mode="bilinear", align_corners=False)
    total = scores.new_zeros(len(prompts), height, width)
    times = scores.new_zeros(height, width)
    for (top, left), window in zip(corners, scores, strict=True):
        total[:, top : top + WINDOW_SIDE, left : left + WINDOW_SIDE] += window
        times[top : top + WINDOW_SIDE, left : left + WINDOW_SIDE] += 1
    return (total / times).argmax(dim=0)


def _starts(length: int, stride: int) -> list[int]:
    """Return the starts of windows that cover a length, the last one flush with its end."""
    steps = math.ceil((length - WINDOW_SIDE) / stride)
    return [min(step * stride, length - WINDOW_SIDE) for step in range(steps + 1)]


def name_scenes(
    model: CLIPModel, tokenizer: CLIPTokenizer, scenes: Sequence[Scene], progress: bool = False
) -> torch.Tensor:
    """Classify every pixel of scenes and compare with their masks.

    Args:
        model: the CLIP.
        tokenizer: its tokenizer.
        scenes: any number.
        progress: whether to show a progress bar.

    Returns:
        (32,) float64, intersection over union of each class over all scenes; NaN for a class that never occurs.
    """
    prompts = prompt_features(model, tokenizer)
    classes = len(CLASS_NAMES)
    confusion = torch.zeros(classes, classes, dtype=torch.int64)
    for scene in tqdm(scenes, desc="evaluating", unit="scene", disable=not progress):
        answers = name_pixels(model, prompts, torch.from_numpy(np.asarray(scene.image).copy())).cpu()
        truth = torch.from_numpy(np.asarray(scene.mask).astype(np.int64))
        confusion += torch.bincount((truth * classes + answers).ravel(), minlength=classes**2).view(classes, classes)
    both = confusion.diag()
    return both.double() / (confusion.sum(dim=0) + confusion.sum(dim=1) - both)


def report(model: CLIPModel, tokenizer: CLIPTokenizer, scenes: Sequence[Scene], seeds: range) -> dict[str, float]:
    """Summarise both evaluations for the seen classes and those unseen for tuning, in per cent.

    Classes unseen for test are excluded, because no hyperparameter may be chosen on them.

    Args:
        model: the CLIP.
        tokenizer: its tokenizer.
        scenes: scenes of the tuning split, for the masks.
        seeds: seeds of the close-ups.

    Returns:
        Object top-1 accuracies and dense mIoU figures by name.
    """
    was_training = model.training
    model.eval()
    accuracy = name_objects(model, tokenizer, seeds)
    overlap = name_scenes(model, tokenizer, scenes)
    model.train(was_training)
    seen, unseen = class_ids(SEEN), class_ids(UNSEEN_TUNING)

    def mean(values: torch.Tensor, ids: list[int]) -> float:
        return round(100 * float(values[ids].nanmean()), 1)

    def objects(ids: list[int]) -> list[int]:
        return [class_id for class_id in ids if class_id < len(OBJECT_NAMES)]

    return {
        "object_top1_seen": mean(accuracy, objects(seen)),
        "object_top1_unseen": mean(accuracy, objects(unseen)),
        "dense_miou_seen": mean(overlap, seen),
        "dense_miou_unseen": mean(overlap, unseen),
        "dense_miou_seen_objects": mean(overlap, objects(seen)),
        "dense_miou_unseen_objects": mean(overlap, objects(unseen)),
    }
