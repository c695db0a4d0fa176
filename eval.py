"""
Evaluate a model on seen and unseen classes: `python eval.py [CONFIG.yaml] [--model PATH] [--field value ...]`.

Without a configuration it evaluates the embedded default model on the generated picture world, offline.
"""

import dataclasses
import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch

from zegclip import DEFAULT_MODEL
from zegclip.arguments import complaints_of, parse_arguments
from zegclip.data import load_evaluation_data, picture_world_split
from zegclip.loading import load_base, load_model, load_processor
from zegclip.trainer import ZegClipTrainer

DEFAULT_CONFIG = Path(__file__).parent / "configs" / "zegclip_picture_world_inductive.yaml"


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Evaluate, print a table, save the figures if a file is named, and return them."""
    model_args, data_args, training_args = parse_arguments(argv, DEFAULT_CONFIG)
    source = model_args.model or DEFAULT_MODEL
    models = {"model": load_model(source)}
    processor = load_processor(source, model_args.prompt_templates, **data_args.image_processor_fields())
    split = picture_world_split(data_args.eval_split)
    evaluation_set = load_evaluation_data(data_args, processor, split)
    names = processor(text=list(split.names), return_tensors="pt")

    if data_args.baseline:
        models["training-free baseline"] = load_base(source, {"decode_head_type": "similarity"}).eval()
    results = {}
    for title, model in models.items():
        with torch.no_grad():
            class_embeds = model.get_class_embeds(**names, num_templates=len(processor.prompt_templates))
        # The offset is made for scores of a trained head; the baseline's hardly differ between classes.
        arguments = training_args if title == "model" else dataclasses.replace(training_args, seen_offset=0.0)
        trainer = ZegClipTrainer(
            model=model, args=arguments, processing_class=processor, class_embeds=class_embeds, split=split
        )
        metrics = trainer.evaluate(evaluation_set)
        results[title] = {
            name.removeprefix("eval_"): value
            for name, value in metrics.items()
            if name.endswith(("pacc", "miou_seen", "miou_unseen", "hiou"))
        }
    if data_args.results_file:
        Path(data_args.results_file).write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
    print(f"\n{len(evaluation_set)} pictures, split {data_args.eval_split!r}, per cent:")
    print(pd.DataFrame(results).T.to_string(float_format=lambda value: f"{value:.1f}"))
    return results


if __name__ == "__main__":
    with complaints_of("eval.py"):
        main()
