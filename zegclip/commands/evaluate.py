"""
Evaluate a model on seen and unseen classes: `python eval.py [CONFIG.yaml] [--model PATH] [--field value ...]`.

Two protocols are reported: the papers' (sliding windows, an offset on seen classes' scores in the inductive setting)
and the free one (the whole picture at once, no offset). Also under `torchrun` or `accelerate launch`, which share the
pictures out over processes; the same command goes on where an interrupted evaluation has stopped. Without a
configuration it evaluates the embedded default model on the generated picture world, offline.
"""

import json
from collections.abc import Sequence
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from transformers.utils import logging

from zegclip import DEFAULT_MODEL
from zegclip.files import remove_leftovers, replacing
from zegclip.loading import load_base, load_model, load_processor
from zegclip.processing.metrics import summarise
from zegclip.processing.processing_zegclip import find_unknown_words
from zegclip.sharing.cards import write_card
from zegclip.sharing.model_facts import is_output_of_train, record_evaluation
from zegclip.training.arguments import DEFAULT_CONFIG, parse_arguments
from zegclip.training.data import load_data
from zegclip.training.evaluation import (
    CountStore,
    Protocol,
    default_offset,
    describe_protocols,
    evaluate_pictures,
    fingerprint,
    hash_of,
)
from zegclip.training.pictures import SKIPPED_FILE, EvaluationPictures, read_skipped
from zegclip.training.survey import remark_on_data
from zegclip.training.tables import class_table, write_class_table

PAPERS = "papers' protocol"
FREE = "free protocol"
BASELINE = "training-free baseline"


def main(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """Evaluate, print a table, save figures and per-class tables in the results folder, and return the figures."""
    logging.disable_progress_bar()  # for the weights of a model
    model_args, data_args, training_args = parse_arguments(argv, DEFAULT_CONFIG)
    if model_args.init_adapter is not None:
        raise ValueError("init_adapter is what a training starts from; what is to be evaluated is the model.")
    source = model_args.model or DEFAULT_MODEL
    # In float32, as it was trained, whatever its files are in; --bf16 true and --fp16 true compute in half precision.
    models = {"model": load_model(source).float()}
    named = "the embedded default model, as no model is given" if model_args.model is None else source
    PartialState().print(f"Evaluating {named}.")
    processor = load_processor(source, model_args.prompt_templates, **data_args.image_processor_fields())
    data, split = load_data(data_args, training=False)
    remark_on_data(data, split, data_args, training_args.dataloader_num_workers)
    trained_on = set(models["model"].config.seen_class_names or ())
    leaked = [split.names[index] for index in split.unseen_ids if split.names[index] in trained_on]
    if leaked and data_args.setting != "fully_supervised" and PartialState().is_main_process:
        more = f" and {len(leaked) - 1} more" if len(leaked) > 1 else ""
        print(f"Warning: this model was trained on masks of {leaked[0]!r}{more}, which count as unseen here.")
    unknown = find_unknown_words(split.names, models["model"].config.vocabulary, processor.prompt_templates)
    if unknown is not None:
        PartialState().print(f"Warning: {unknown} Give another model with --model.")
    if data_args.baseline:
        models[BASELINE] = load_base(source, {"decode_head_type": "similarity"}).eval()

    dataset = Path(data_args.dataset).name
    folder = Path(data_args.results_dir or Path(training_args.output_dir) / f"eval_{dataset}_{data_args.eval_split}")
    skipped_file = folder / SKIPPED_FILE if data_args.skip_bad_samples else None
    if PartialState().is_main_process:
        (folder / SKIPPED_FILE).unlink(missing_ok=True)  # All that are skipped are tried again.
        for place in (folder, *folder.glob("*"), *folder.glob("*/predictions/*")):
            remove_leftovers(place)
    PartialState().wait_for_everyone()
    image_processor = processor.image_processor
    pictures = EvaluationPictures(data["validation"], split, image_processor, skipped_file)
    names = processor(text=list(split.names), return_tensors="pt").to(training_args.device)
    windows = (image_processor.window_size, image_processor.window_stride)
    offset = training_args.seen_offset
    if offset is None:
        offset = default_offset(data_args.setting)
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(training_args.mixed_precision)

    results = {}
    for title, model in models.items():
        # The offset is made for scores of a trained head; the baseline's hardly differ between classes.
        protocols = {
            PAPERS: Protocol(*windows, offset if title == "model" else 0.0),
            FREE: Protocol(None, None, 0.0),
        }
        record = {
            "model": fingerprint(model),
            "split": data_args.eval_split,
            "pictures": len(pictures),
            "scene_seed": data_args.scene_seed,
            "classes": split.names,
            "seen": split.seen_ids,
            "mask_values": split.mask_values,
            "ignored_mask_values": split.ignored_values,
            "ignore_index": split.ignore_index,
            "prompt_templates": list(processor.prompt_templates),
            "tokens": hash_of({name: tensor.tolist() for name, tensor in names.items()}),
            "image_processor": image_processor.to_dict(),
            "protocols": describe_protocols(protocols),
            "dtype": str(dtype),
            "save_predictions": data_args.save_predictions,
        }
        model.to(training_args.device)
        with torch.no_grad():
            class_embeds = model.get_class_embeds(**names, num_templates=len(processor.prompt_templates))
        counts = evaluate_pictures(
            model,
            class_embeds,
            pictures,
            protocols,
            CountStore(folder / title.replace(" ", "_"), record),
            batch_size=training_args.window_batch_size,
            num_workers=training_args.dataloader_num_workers,
            dtype=dtype,
            save_predictions=data_args.save_predictions,
            title=title,
        )
        for name, values in counts.items():
            row = f"{title}, {name}"
            results[row] = summarise(values, split)
            if PartialState().is_main_process:
                stem = "per_class_" + row.replace("'", "").replace(", ", "_").replace(" ", "_")
                write_class_table(class_table(values, split), results[row], folder, stem)
    if PartialState().is_main_process:
        with replacing(folder / "results.json") as part:
            part.write_text(json.dumps(results, indent=1) + "\n", encoding="utf-8")
        print(f"\n{len(pictures)} pictures, split {data_args.eval_split!r}, per cent:")
        print(pd.DataFrame(results).T.to_string(float_format=lambda value: f"{value:.1f}", na_rep="-"))
        print(f"\nThe classes one by one, and these figures as JSON, are in {folder}.")
        skipped = read_skipped(folder / SKIPPED_FILE)
        if skipped:
            print(f"Skipped and listed in {folder / SKIPPED_FILE}: {len(skipped)}; the first: {skipped[0]}")
        if is_output_of_train(source):
            try:
                record_evaluation(
                    Path(source),
                    results,
                    script="eval.py",
                    dataset=data_args.dataset,
                    split=str(data_args.eval_split),
                    setting=data_args.setting,
                    pictures=len(pictures),
                    seen_offset=offset,
                    window=windows,
                    unseen_trained_on=len(leaked),
                )
                print(f"The model card, written anew with these figures, is {write_card(Path(source))}.")
            except OSError as error:  # The figures are safe; a model may lie where nobody can write.
                print(f"The model card could not be written: {error}")
    return results
