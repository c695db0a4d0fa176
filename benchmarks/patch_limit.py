"""
What a model that names every patch rightly would reach on the picture world: the limit that patches and windows set.

    python benchmarks/patch_limit.py configs/zegclip_picture_world_inductive.yaml --use_cpu

Each patch of each window gets the class that most of its pixels have; these labels go through the same windows and the
same upsampling as a model's scores.
"""

import torch
import torch.nn.functional as F

from zegclip import DEFAULT_MODEL
from zegclip.loading import load_model, load_processor
from zegclip.processing.metrics import class_counts, summarise
from zegclip.processing.windows import WindowLogits, merge_masks, window_boxes
from zegclip.training.arguments import parse_arguments
from zegclip.training.data import load_data
from zegclip.training.pictures import EvaluationPictures


def main() -> None:
    """Print the figures of perfect patch labels."""
    model_args, data_args, _ = parse_arguments()
    source = model_args.model or DEFAULT_MODEL
    processor = load_processor(source, **data_args.image_processor_fields())
    patch_size = load_model(source).config.clip_config.vision_config.patch_size
    data, split = load_data(data_args, training=False)
    num_classes = len(split.names)
    windows = processor.image_processor
    counts = torch.zeros(3, num_classes)
    for sample in EvaluationPictures(data["validation"], split, processor.image_processor):
        labels = sample["labels"]
        boxes = window_boxes(*labels.shape, windows.window_size, windows.window_stride)
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
