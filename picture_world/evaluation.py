"""Zero-shot classification of close-ups with the tiny CLIP: what its pretraining is for, without any mask."""

import numpy as np
import torch
from transformers import CLIPModel, CLIPTokenizer

from .captions import PROMPT
from .classes import CLASS_NAMES, OBJECT_NAMES, SEEN, UNSEEN_TEST, UNSEEN_TUNING, class_ids
from .drawing import SCENE_SIZE, draw_scene
from .tiny_clip import WINDOW_SIDE, normalise, picture_features, text_features


def prompt_features(model: CLIPModel, tokenizer: CLIPTokenizer) -> torch.Tensor:
    """Return the unit-length features (classes, dim) of "a photo of a {class}"."""
    texts = [PROMPT.format(name) for name in CLASS_NAMES]
    return text_features(model, tokenizer(texts, padding=True, return_tensors="pt").to(model.device))


@torch.inference_mode()
def name_objects(model: CLIPModel, tokenizer: CLIPTokenizer, seeds: range) -> torch.Tensor:
    """Classify close-ups of single objects among the names of all objects.

    Args:
        model: the CLIP.
        tokenizer: its tokenizer.
        seeds: one seed per picture; the object is the seed modulo the number of objects.

    Returns:
        (objects,) the accuracy of each object.
    """
    count, room = len(OBJECT_NAMES), SCENE_SIZE - WINDOW_SIDE
    prompts = prompt_features(model, tokenizer)[:count]
    windows = []
    for seed in seeds:
        scene = draw_scene(seed, "train", objects=(seed % count,))
        # An object alone in a picture always finds space within a few tries; without it, the middle counts as wrong.
        centre = scene.things[0].centre if scene.things else (SCENE_SIZE // 2, SCENE_SIZE // 2)
        top, left = (min(max(place - WINDOW_SIDE // 2, 0), room) for place in centre)
        windows.append(np.asarray(scene.image)[top : top + WINDOW_SIDE, left : left + WINDOW_SIDE])
    pixel_values = normalise(torch.from_numpy(np.stack(windows)).to(model.device))
    answers = (picture_features(model, pixel_values) @ prompts.T).argmax(dim=1).cpu()
    truth = torch.tensor([seed % count for seed in seeds])
    right = torch.bincount(truth[answers == truth], minlength=count)
    return right / torch.bincount(truth, minlength=count)


def report(model: CLIPModel, tokenizer: CLIPTokenizer, seeds: range) -> dict[str, float]:
    """Return the accuracy on objects of each part of the split, in per cent, and the mean cosine between two names."""
    was_training = model.training
    model.eval()
    accuracy = name_objects(model, tokenizer, seeds)
    with torch.inference_mode():
        names = prompt_features(model, tokenizer)
    model.train(was_training)
    figures = {}
    for title, part in (("seen", SEEN), ("unseen_tuning", UNSEEN_TUNING), ("unseen_test", UNSEEN_TEST)):
        ids = [class_id for class_id in class_ids(part) if class_id < len(OBJECT_NAMES)]
        figures[f"object_top1_{title}"] = round(100 * float(accuracy[ids].nanmean()), 1)
    count = len(names)
    figures["cosine_of_names"] = round(float(((names @ names.T).sum() - count) / (count * (count - 1))), 2)
    return figures
