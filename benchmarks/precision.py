"""
How many pixels get the same name in lower precision, with the embedded model on scenes of the picture world.

    python benchmarks/precision.py configs/zegclip_picture_world_inductive.yaml --use_cpu --eval_split test \\
        --num_eval_pictures 100

`--model` takes another model of the picture world. int8 is torchao's dynamic quantization of the vision tower's linear
layers, and is left out where torchao is not installed.
"""

import copy
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import torch
from measuring import RESULTS, print_table, quantize_vision_tower, write_report
from tqdm import tqdm

from zegclip import DEFAULT_MODEL
from zegclip.errors import reporting_errors
from zegclip.loading import load_model, load_processor
from zegclip.processing.windows import merge_masks, predict_windows
from zegclip.training.arguments import parse_arguments
from zegclip.training.data import load_data
from zegclip.training.pictures import EvaluationPictures


@torch.no_grad()
def main() -> None:
    """Segment every scene in each precision and compare with float32."""
    model_args, data_args, training_args = parse_arguments()
    source = model_args.model or DEFAULT_MODEL
    device = training_args.device
    model = load_model(source).to(device)
    processor = load_processor(source, model_args.prompt_templates, **data_args.image_processor_fields())
    data, split = load_data(data_args, training=False)
    pictures = EvaluationPictures(data["validation"], split, processor.image_processor)
    names = processor(text=list(split.names), return_tensors="pt").to(device)
    geometry = (processor.image_processor.window_size, processor.image_processor.window_stride)

    lower: dict[str, Any] = {
        "bfloat16": copy.deepcopy(model).to(torch.bfloat16),
        "float16": copy.deepcopy(model).to(torch.float16),
        "float32 under autocast to bfloat16": model,
    }
    if find_spec("torchao"):
        lower["int8"] = quantize_vision_tower(model)

    def segmenter(title: str, one: Any) -> Callable[[torch.Tensor, tuple[int, int]], torch.Tensor]:
        with torch.autocast(device.type, torch.bfloat16, enabled="autocast" in title):
            embeds = one.get_class_embeds(**names, num_templates=len(processor.prompt_templates))

        def segment(pixel_values: torch.Tensor, size: tuple[int, int]) -> torch.Tensor:
            with torch.autocast(device.type, torch.bfloat16, enabled="autocast" in title):
                windows = predict_windows(one, pixel_values.to(one.dtype), embeds, *geometry)
            return merge_masks(windows, size)[0]

        return segment

    exact = segmenter("float32", model)
    segmenters = {title: segmenter(title, one) for title, one in lower.items()}
    same = dict.fromkeys(lower, 0)
    right = dict.fromkeys(["float32", *lower], 0)
    pixels = counted = 0
    for sample in tqdm(pictures, unit="picture"):
        pixel_values, labels = sample["pixel_values"][None].to(device), sample["labels"].to(device)
        size = (labels.shape[0], labels.shape[1])
        valid = labels != split.ignore_index
        expected = exact(pixel_values, size)
        right["float32"] += int((expected == labels)[valid].sum())
        for title, segment in segmenters.items():
            found = segment(pixel_values, size)
            same[title] += int((found == expected).sum())
            right[title] += int((found == labels)[valid].sum())
        pixels += labels.numel()
        counted += int(valid.sum())
    rows = [
        {
            "precision": title,
            "same_as_float32": same[title] / pixels if title in same else 1.0,
            "right": right[title] / counted,
        }
        for title in right
    ]
    print_table(
        [
            {
                "precision": row["precision"],
                "same pixels as float32": f"{row['same_as_float32']:.3%}",
                "right pixels": f"{row['right']:.2%}",
            }
            for row in rows
        ]
    )
    write_report(
        RESULTS / "precision.json",
        {
            "model": str(model_args.model or "embedded default model"),
            "split": data_args.eval_split,
            "pictures": len(pictures),
            "rows": rows,
        },
    )


if __name__ == "__main__":
    with reporting_errors("precision.py"):
        main()
