"""
Evaluation of a model on seen and unseen classes: from the arguments to figures and tables in the results folder.

Two protocols are reported: the papers' (sliding windows, in the inductive setting an offset on seen classes' scores)
and the free one (the whole picture at once, no offset). Background, refinement and blending apply to both. Under
`torchrun` or `accelerate launch`, the processes share the pictures. The same command continues an interrupted
evaluation.
"""

import argparse
import math
import sys
import warnings
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from accelerate import PartialState

from zegclip import DEFAULT_MODEL
from zegclip.errors import UsageError
from zegclip.files import remove_leftovers, write_json
from zegclip.loading import base_of, check_model_path, load_base, load_model, load_processor
from zegclip.plain_clip import SENTENCE, is_plain_clip
from zegclip.processing.class_embeds_cache import default_cache_folder
from zegclip.processing.class_split import ClassSplit
from zegclip.processing.metrics import summarise
from zegclip.processing.name_encoder import NameEncoder
from zegclip.processing.names import UnknownWordsWarning, find_unknown_words
from zegclip.sharing.cards import write_card
from zegclip.sharing.model_facts import is_output_of_train, record_evaluation
from zegclip.training.arguments import DEFAULT_CONFIG, DataArguments, ModelArguments, parse_arguments
from zegclip.training.counting import (
    CountStore,
    Protocol,
    default_offset,
    evaluate_pictures,
    fingerprint,
    hash_of,
)
from zegclip.training.data import load_data
from zegclip.training.pictures import SKIPPED_FILE, EvaluationPictures, print_skipped
from zegclip.training.survey import remark_on_data
from zegclip.training.tables import class_table, write_class_table
from zegclip.training.training_arguments import ZegClipTrainingArguments

PAPERS = "papers' protocol"
FREE = "free protocol"
BASELINE = "training-free baseline"
PLAIN_CLIP_CONFIG = "picture_world_training_free"


def evaluate(argv: Sequence[str] | None = None) -> dict[str, dict[str, float]]:
    """
    Evaluate, print a table, and save figures and per-class tables in the results folder.

    Args:
        argv: `[NAME_OR_YAML] [--field value ...]`, by default the process's. Without a configuration it evaluates the
            embedded default model on the generated picture world, offline.

    Returns:
        The figures of each model and protocol, see [`summarise`].

    Raises:
        UsageError, InputError, ModelError: If the arguments, the data or the results folder do not fit.
    """
    words = sys.argv[1:] if argv is None else list(argv)
    named = bool(words) and not words[0].startswith("-")  # A configuration comes first.
    if not named and not {"--model", "--dataset", "--eval_split"} & {word.partition("=")[0] for word in words}:
        # The embedded model on its own world: it was trained on classes that are unseen for tuning.
        words += ["--eval_split", "test"]
    model_args, data_args, training_args = parse_arguments(words, _default_config(words), "zegclip eval")
    if model_args.init_adapter is not None:
        raise UsageError("init_adapter is what a training starts from; what is to be evaluated is the model.")
    source = model_args.model or DEFAULT_MODEL
    # In float32, as it was trained, whatever its files are in; --bf16 true and --fp16 true compute in half precision.
    models = {"model": load_model(source).float()}
    _set_training_free(models["model"], model_args, data_args)
    title = "the embedded default model, as no model is given" if model_args.model is None else source
    PartialState().print(f"Evaluating {title}.")
    if is_plain_clip(str(source)):
        PartialState().print(SENTENCE.format(source))
    processor = load_processor(source, model_args.prompt_templates, **data_args.image_processor_fields())
    data, split = load_data(data_args, training=False)
    if data_args.background_threshold and split.names[0] != "background":
        raise UsageError(
            f"background_threshold: the first class of {data_args.dataset} is {split.names[0]!r}, not background."
        )
    remark_on_data(data, split, data_args, training_args.dataloader_num_workers)
    leaked, untrained = _warn_of_classes(models["model"], processor, split, data_args)
    processors = {"model": processor}
    if data_args.baseline:
        fields = model_args.training_free_overrides() | {"dense_attention": data_args.baseline_attention}
        models[BASELINE] = load_base(source, fields | {"decode_head_type": "similarity"}).eval()
        processors[BASELINE] = _processor_of_baseline(base_of(str(source)), processor)

    folder = results_folder(data_args, training_args)
    skipped_file = folder / SKIPPED_FILE if data_args.skip_bad_samples else None
    offset = training_args.seen_offset
    if offset is None:
        offset = default_offset(data_args.setting, models["model"].config.score_function)
    images, refine, threshold = processor.image_processor, data_args.refine, data_args.background_threshold
    results = {}
    for title, model in models.items():
        # The offset is made for scores of a trained head, and the baseline has nothing to be blended with.
        model_offset = offset if title == "model" else 0.0
        weight = model.config.blend_weight
        scoring = (threshold, refine, weight)
        marks = ", refined" * refine + f", {weight:g} training-free" * bool(weight)
        marks += f", background below {threshold:g}" * bool(threshold)
        protocols = {
            PAPERS + marks: Protocol(images.window_size, images.window_stride, model_offset, *scoring),
            FREE + marks: Protocol(None, None, 0.0, *scoring),
        }
        pictures = EvaluationPictures(data["validation"], split, processors[title].image_processor, skipped_file)
        counts, num_counted = count_classes(
            model, title, processors[title], pictures, protocols, data_args, training_args, folder
        )
        for name, values in counts.items():
            row = f"{title}, {name}"
            results[row] = summarise(values, split)
            if PartialState().is_main_process:
                stem = "per_class_" + row.replace("'", "").replace(", ", "_").replace(" ", "_")
                write_class_table(class_table(values, split), results[row], folder, stem)
    if PartialState().is_main_process:
        _report(results, folder, num_counted, data_args)
        if is_output_of_train(source):
            windows = (processor.image_processor.window_size, processor.image_processor.window_stride)
            _update_card(
                Path(source),
                results,
                dataset=data_args.dataset,
                split=str(data_args.eval_split),
                setting=data_args.setting,
                pictures=num_counted,
                classes=(len(split.seen_ids), len(split.unseen_ids)),
                seen_offset=offset,
                window=windows,
                unseen_trained_on=leaked,
                seen_not_trained_on=untrained,
            )
    return results


def _default_config(words: Sequence[str]) -> str:
    """Return the configuration to use if none is named: the picture world's, whose sizes do not fit a plain CLIP."""
    parser = argparse.ArgumentParser(add_help=False)
    parser.add_argument("--model")
    model = parser.parse_known_args(words)[0].model
    return PLAIN_CLIP_CONFIG if model is not None and is_plain_clip(check_model_path(model)) else DEFAULT_CONFIG


def _processor_of_baseline(base: str, processor: Any) -> Any:
    """Return the baseline's processor: a plain CLIP's own statistics, with sizes and templates of the model."""
    if not is_plain_clip(base):
        return processor
    images = processor.image_processor
    sizes = {name: getattr(images, name) for name in ("size", "window_size", "window_stride")}
    return load_processor(base, processor.prompt_templates, **sizes)


def _set_training_free(model: Any, model_args: ModelArguments, data_args: DataArguments) -> None:
    """Change a model as the arguments say; `UsageError` if they would have no effect."""
    softmax = model.config.score_function == "softmax"
    given = model_args.training_free_weight
    if given and softmax:
        raise UsageError("training_free_weight is for trained models: this one is training-free already.")
    blended = (model.config.blend_weight if given is None else given) > 0
    has_effect = {
        "dense_attention": model_args.has_dense_attention(model),
        "naclip_sigma": blended or model_args.has_dense_attention(model),
        "similarity_scale": blended or softmax,
        "training_free_weight": True,
    }
    for name, value in model_args.training_free_overrides().items():
        if has_effect[name]:
            setattr(model.config, name, value)
        elif value != getattr(model.config, name) and (name == "dense_attention" or not data_args.baseline):
            raise UsageError(f"{name} has no effect on this model, which has prompts or a head of its own.")
    if blended and model_args.dense_attention not in (None, "naclip"):
        raise UsageError("training_free_weight is that of NACLIP: leave dense_attention out.")


def _warn_of_classes(model: Any, processor: Any, split: ClassSplit, data_args: DataArguments) -> tuple[int, int]:
    """
    Warn of names that the model cannot know, of unseen classes trained on, and of seen ones not trained on.

    Returns:
        How many of the unseen classes it was trained on, and how many of the seen ones it was not.
    """
    trained_on = model.config.seen_class_names or ()
    leaked = split.classes_among(split.unseen_ids, trained_on)
    if leaked and data_args.setting != "fully_supervised":
        more = f" and {len(leaked) - 1} more" if len(leaked) > 1 else ""
        PartialState().print(
            f"Warning: this model was trained on masks of {leaked[0]!r}{more}, which count as unseen here."
        )
    known = split.classes_among(split.seen_ids, trained_on)
    untrained = [name for name in split.seen_names if name not in known]
    if not trained_on or data_args.setting == "cross_dataset":
        untrained = []
    if untrained:
        more = f" and {len(untrained) - 1} more" if len(untrained) > 1 else ""
        PartialState().print(
            f"Warning: this model was not trained on masks of {untrained[0]!r}{more}, which count as seen here."
        )
    unknown = find_unknown_words(split.all_names(), model.config.vocabulary, processor.prompt_templates)
    if unknown is not None:
        PartialState().print(f"Warning: {unknown} Give another model with --model.")
    return len(leaked), len(untrained)


def results_folder(data_args: DataArguments, training_args: ZegClipTrainingArguments) -> Path:
    """Return the folder for the results, without temporary files of interrupted evaluations."""
    name = f"eval_{Path(data_args.dataset).name}_{data_args.eval_split}"
    folder = Path(data_args.results_dir or Path(training_args.output_dir) / name)
    if PartialState().is_main_process:
        (folder / SKIPPED_FILE).unlink(missing_ok=True)  # All pictures that were skipped are tried again.
        for place in (folder, *folder.glob("*"), *folder.glob("*/predictions/**/")):
            remove_leftovers(place)
    PartialState().wait_for_everyone()
    return folder


def count_classes(
    model: Any,
    title: str,
    processor: Any,
    pictures: EvaluationPictures,
    protocols: dict[str, Protocol],
    data_args: DataArguments,
    training_args: ZegClipTrainingArguments,
    folder: Path,
) -> tuple[dict[str, np.ndarray], int]:
    """
    Count classes in all pictures under the protocols, see [`evaluate_pictures`]; counts are kept in `folder`.

    Returns:
        The counts, and how many pictures have a pixel among them: others could not be read, or are ignored throughout.
    """
    split, image_processor = pictures.split, processor.image_processor
    names = processor(text=split.nested_names(), return_tensors="pt")
    class_of_name = names.pop("class_of_name", None)
    del names["num_templates"]
    dtype = {"bf16": torch.bfloat16, "fp16": torch.float16}.get(training_args.mixed_precision)
    record = {
        "model": fingerprint(model),
        "split": data_args.eval_split,
        "pictures": len(pictures),
        "scene_seed": data_args.scene_seed,
        "classes": split.nested_names() if split.names_of else split.names,
        "seen": split.seen_ids,
        "mask_values": split.mask_values,
        "merged_mask_values": split.merged_values,
        "ignored_mask_values": split.ignored_values,
        "ignore_index": split.ignore_index,
        "prompt_templates": list(processor.prompt_templates),
        "tokens": hash_of({name: tensor.tolist() for name, tensor in names.items()}),
        "image_processor": image_processor.to_dict(),
        "protocols": {name: asdict(protocol) for name, protocol in protocols.items()},
        "dtype": str(dtype),
        "save_predictions": data_args.save_predictions,
    }
    model.to(training_args.device)
    encoder = NameEncoder(
        model, processor, processor.prompt_templates, default_cache_folder(), PartialState().is_main_process
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UnknownWordsWarning)  # printed before
        class_embeds = encoder.encode(split.all_names())
        blended = any(protocol.training_free_weight for protocol in protocols.values())
        without_prompts = encoder.encode(split.all_names(), with_prompts=False) if blended else None
    store = CountStore(folder / title.replace(" ", "_"), record)
    counts = evaluate_pictures(
        model,
        class_embeds,
        pictures,
        protocols,
        store,
        batch_size=training_args.window_batch_size,
        class_of_name=None if class_of_name is None else class_of_name.to(training_args.device),
        embeds_without_prompts=without_prompts,
        num_workers=training_args.dataloader_num_workers,
        dtype=dtype,
        save_predictions=data_args.save_predictions,
        title=title,
    )
    counted = [entry for entry in store.read().values() if any(rows.size for rows in entry.values())]
    return counts, len(counted)


def _report(results: dict[str, dict[str, float]], folder: Path, num_pictures: int, data_args: DataArguments) -> None:
    """Write `results.json` and print the figures."""
    # JSON has no NaN: null where a class does not occur.
    figures = {
        title: {name: None if math.isnan(value) else value for name, value in row.items()}
        for title, row in results.items()
    }
    write_json(folder / "results.json", figures)
    print(f"\n{num_pictures} pictures, split {data_args.eval_split!r}, per cent:")
    print(pd.DataFrame(results).T.to_string(float_format=lambda value: f"{value:.1f}", na_rep="-"))
    print(f"\nPer-class tables, and these figures as JSON, are in {folder}.")
    print_skipped(folder / SKIPPED_FILE)


def _update_card(run: Path, results: dict[str, dict[str, float]], **described: Any) -> None:
    """Write an evaluation into the model card of a training's output folder."""
    try:
        record_evaluation(run, results, script="eval.py", **described)
        print(f"The model card is {write_card(run)}.")
    except OSError as error:  # The figures are safe; the model may be in a read-only folder.
        print(f"The model card could not be written: {error}")
