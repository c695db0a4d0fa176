"""
What a model that names every patch rightly would reach on the picture world: the limit that patches and windows set.

    python benchmarks/patch_limit.py configs/zegclip_picture_world_inductive.yaml --use_cpu

Each patch of each window gets the class that most of its pixels have; these labels go through the same windows and the
same upsampling as a model's scores.
"""

import torch
import torch.nn.functional as F
from evaluated import load_evaluated

from zegclip.processing.metrics import class_counts, summarise
from zegclip.processing.windows import WindowLogits, merge_masks, window_boxes


def main() -> None:
    """Print the figures of perfect patch labels."""
    evaluated = load_evaluated()
    patch_size = evaluated.model.config.clip_config.vision_config.patch_size
    split, num_classes = evaluated.split, len(evaluated.split.names)
    counts = torch.zeros(3, num_classes)
    for sample in evaluated.pictures:
        labels = sample["labels"]
        boxes = window_boxes(*labels.shape, *evaluated.windows)
        one_hot = F.one_hot(labels.where(labels != split.ignore_index, num_classes), num_classes + 1)
        areas = one_hot[..., :num_classes].permute(2, 0, 1).float()
        logits = []
        for top, left, bottom, right in boxes:
            best = F.avg_pool2d(areas[:, top:bottom, left:right], patch_size).argmax(0)
            logits.append(10 * (F.one_hot(best, num_classes).permute(2, 0, 1) - 0.5))
        predicted, _ = merge_masks(WindowLogits(torch.stack(logits), boxes, *labels.shape))
        counts += class_counts(predicted, labels, num_classes)
    for name, value in summarise(counts.numpy(), split).items():
        print(f"{name:<24}{value:6.1f}")


if __name__ == "__main__":
    main()
