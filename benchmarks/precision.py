"""
How many pixels get the same name in lower precision, with the embedded model on scenes of the picture world.

    python benchmarks/precision.py configs/zegclip_picture_world_inductive.yaml --use_cpu --eval_split test \\
        --num_eval_pictures 100

`--model` takes another model of the picture world. int8 is torchao's dynamic quantization of the vision tower's linear
layers, and is left out where torchao is not installed.
"""

import copy
from importlib.util import find_spec
from typing import Any

import torch
from evaluated import load_evaluated
from measuring import RESULTS, print_table, quantize_vision_tower, write_report
from tqdm import tqdm

from zegclip.errors import reporting_errors
from zegclip.processing.windows import merge_masks, predict_windows

AUTOCAST = "float32 under autocast to bfloat16"
COLUMNS = {
    "precision": "{precision}",
    "same pixels as float32": "{same_as_float32:.3%}",
    "right pixels": "{right:.2%}",
}


@torch.no_grad()
def main() -> None:
    """Segment every scene in each precision and compare with float32."""
    evaluated = load_evaluated()
    model, device = evaluated.model, evaluated.model.device
    models: dict[str, Any] = {
        "float32": model,
        "bfloat16": copy.deepcopy(model).to(torch.bfloat16),
        "float16": copy.deepcopy(model).to(torch.float16),
        AUTOCAST: model,
    }
    if find_spec("torchao"):
        models["int8"] = quantize_vision_tower(model)
    embeds = {}
    for title, one in models.items():
        with torch.autocast(device.type, torch.bfloat16, enabled=title == AUTOCAST):
            embeds[title] = evaluated.class_embeds(one)

    same, right = dict.fromkeys(models, 0), dict.fromkeys(models, 0)
    pixels = counted = 0
    for sample in tqdm(evaluated.pictures, unit="picture"):
        labels = sample["labels"].to(device)
        valid = labels != evaluated.split.ignore_index
        maps = {}
        for title, one in models.items():
            pixel_values = sample["pixel_values"][None].to(device, one.dtype)
            with torch.autocast(device.type, torch.bfloat16, enabled=title == AUTOCAST):
                windows = predict_windows(one, pixel_values, embeds[title], *evaluated.windows)
            maps[title] = merge_masks(windows, tuple(labels.shape))[0]
            same[title] += int((maps[title] == maps["float32"]).sum())
            right[title] += int((maps[title] == labels)[valid].sum())
        pixels += labels.numel()
        counted += int(valid.sum())
    rows = [
        {"precision": title, "same_as_float32": same[title] / pixels, "right": right[title] / counted}
        for title in models
    ]
    print_table(rows, COLUMNS)
    described = {"model": evaluated.source, "split": evaluated.split_name, "pictures": len(evaluated.pictures)}
    write_report(RESULTS / "precision.json", described | {"rows": rows})


if __name__ == "__main__":
    with reporting_errors("precision.py"):
        main()
