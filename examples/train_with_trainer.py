"""
Train an adapter on your own pictures with transformers' Trainer, without this package's training code.

    python examples/train_with_trainer.py my-data --model openai/clip-vit-base-patch16 --output my-adapter

`my-data` has `images/`, `masks/` and `classes.txt`, as `zegclip import` writes them. `zegclip train` does the same
with the papers' augmentation and learning rates, and evaluates unseen classes; this is the start for another recipe.
"""

import argparse
from typing import Any

import datasets
from transformers import Trainer, TrainingArguments

from zegclip import DeepPromptConfig
from zegclip.loading import load_base, load_processor
from zegclip.processing.datasets import load_pictures, read_sample


def main() -> None:
    """Parse the command line, train and save."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data")
    parser.add_argument("--model", required=True, help="folder or Hub id of a CLIP")
    parser.add_argument("--output", required=True)
    parser.add_argument("--size", type=int, default=512, help="pictures are resized to squares of this side")
    parser.add_argument("--steps", type=int, default=1000)
    parser.add_argument("--batch", type=int, default=8)
    arguments = parser.parse_args()

    side = {"height": arguments.size, "width": arguments.size}
    processor = load_processor(arguments.model, size=side, for_training=True)
    data, split = load_pictures(arguments.data)
    rows = data["train"].cast_column("image", datasets.Image(decode=False))
    rows = rows.cast_column("mask", datasets.Image(decode=False))

    def read(batch: dict[str, list[Any]]) -> dict[str, Any]:
        samples = [read_sample({"image": image, "mask": mask}, split) for image, mask in zip(*batch.values())]
        pictures, ids = zip(*samples)
        return {**processor(images=pictures, segmentation_maps=ids, return_tensors="pt")}

    model = load_base(arguments.model, {"decode_head_type": "zegclip"})
    model.add_adapter(DeepPromptConfig(num_tokens=10, modules_to_save=["decode_head"]), "mine")
    model.set_class_names(split.names, processor)
    settings = TrainingArguments(
        arguments.output,
        max_steps=arguments.steps,
        per_device_train_batch_size=arguments.batch,
        learning_rate=2e-4,
        lr_scheduler_type="polynomial",
        remove_unused_columns=False,  # `read` makes the columns that the model takes.
        report_to="none",
    )
    Trainer(model, settings, train_dataset=rows.with_transform(read), processing_class=processor).train()
    model.save_pretrained(arguments.output)
    processor.save_pretrained(arguments.output)


if __name__ == "__main__":
    main()
