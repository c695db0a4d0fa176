"""
How much a prediction depends on which other names are asked for, on the picture world.

    python benchmarks/name_sets.py configs/ldvc_picture_world_inductive.yaml --model ADAPTER --use_cpu

Every scene is segmented into the classes that it shows, in two ways: asked for these alone, and asked for all names,
with the others dropped afterwards. Where class queries never meet, both are the same.
"""

import torch
from evaluated import load_evaluated
from tqdm import tqdm

from zegclip.errors import reporting_errors
from zegclip.processing.windows import WindowLogits, merge_masks, predict_windows


@torch.inference_mode()
def main() -> None:
    """Print the share of right pixels both ways, and the share of pixels on which they differ."""
    evaluated = load_evaluated()
    model, class_embeds = evaluated.model, evaluated.class_embeds()
    right_alone = right_dropped = different = total = 0
    for sample in tqdm(evaluated.pictures, unit="picture"):
        labels = sample["labels"].to(model.device)
        valid = labels != evaluated.split.ignore_index
        shown = labels[valid].unique()
        pixel_values = sample["pixel_values"][None].to(model.device)
        alone = predict_windows(model, pixel_values, class_embeds[shown], *evaluated.windows)
        asked = predict_windows(model, pixel_values, class_embeds, *evaluated.windows)
        dropped = WindowLogits(asked.logits[:, shown], asked.boxes, asked.height, asked.width)
        maps = [shown[merge_masks(windows, tuple(labels.shape))[0]][valid] for windows in (alone, dropped)]
        right_alone += int((maps[0] == labels[valid]).sum())
        right_dropped += int((maps[1] == labels[valid]).sum())
        different += int((maps[0] != maps[1]).sum())
        total += int(valid.sum())
    print(f"right pixels, asked for the classes that are shown: {right_alone / total:.2%}")
    print(f"right pixels, asked for all {len(class_embeds)} and others dropped: {right_dropped / total:.2%}")
    print(f"pixels on which the two differ: {different / total:.2%}")


if __name__ == "__main__":
    with reporting_errors("name_sets.py"):
        main()
