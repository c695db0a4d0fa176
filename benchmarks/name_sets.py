"""
How much a prediction depends on which other names are asked for, on the picture world.

    python benchmarks/name_sets.py configs/ldvc_picture_world_inductive.yaml --model ADAPTER --use_cpu

Every scene is segmented into the classes that it shows, in two ways: asked for these alone, and asked for all names,
with the others dropped afterwards. Where class queries never meet, both are the same.
"""

import torch
from tqdm import tqdm

from zegclip.errors import reporting_errors
from zegclip.loading import load_model, load_processor
from zegclip.processing.windows import WindowLogits, merge_masks, predict_windows
from zegclip.training.arguments import parse_arguments
from zegclip.training.data import load_data
from zegclip.training.pictures import EvaluationPictures


@torch.inference_mode()
def main() -> None:
    """Print the share of right pixels both ways, and the share of pixels on which they differ."""
    model_args, data_args, training_args = parse_arguments()
    source = model_args.model
    if source is None:
        raise ValueError("model is missing: say whose adapter to measure, for example --model outputs/my-run.")
    model = load_model(source).to(training_args.device)
    processor = load_processor(source, model_args.prompt_templates, **data_args.image_processor_fields())
    data, split = load_data(data_args, training=False)
    names = processor(text=list(split.names), return_tensors="pt").to(training_args.device)
    class_embeds = model.get_class_embeds(**names, num_templates=len(processor.prompt_templates))
    geometry = (processor.image_processor.window_size, processor.image_processor.window_stride)
    right_alone = right_dropped = different = total = 0
    for sample in tqdm(EvaluationPictures(data["validation"], split, processor.image_processor), unit="picture"):
        labels = sample["labels"].to(training_args.device)
        valid = labels != split.ignore_index
        shown = labels[valid].unique()
        pixel_values = sample["pixel_values"][None].to(training_args.device)
        alone = predict_windows(model, pixel_values, class_embeds[shown], *geometry)
        asked = predict_windows(model, pixel_values, class_embeds, *geometry)
        dropped = WindowLogits(asked.logits[:, shown], asked.boxes, asked.height, asked.width)
        maps = [shown[merge_masks(windows, tuple(labels.shape))[0]][valid] for windows in (alone, dropped)]
        right_alone += int((maps[0] == labels[valid]).sum())
        right_dropped += int((maps[1] == labels[valid]).sum())
        different += int((maps[0] != maps[1]).sum())
        total += int(valid.sum())
    print(f"right pixels, asked for the classes that are shown: {100 * right_alone / total:.2f} %")
    print(f"right pixels, asked for all {len(split.names)} and others dropped: {100 * right_dropped / total:.2f} %")
    print(f"pixels on which the two differ: {100 * different / total:.2f} %")


if __name__ == "__main__":
    with reporting_errors("name_sets.py"):
        main()
