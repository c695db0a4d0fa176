"""Model cards: the README.md of a folder with a model, filled in from the files that lie there."""

import hashlib
import html
import json
import math
import re
import warnings
from collections.abc import Mapping, Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

import pandas as pd
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from transformers.utils import ADAPTER_CONFIG_NAME

import zegclip
from zegclip.errors import UsageError
from zegclip.files import read_json, replacing, write_json
from zegclip.modeling.heads import DECODE_HEADS
from zegclip.modeling.model_error import ModelError
from zegclip.processing.benchmarks import BENCHMARKS
from zegclip.processing.metrics import FIGURE_TITLES
from zegclip.processing.names import fold_name
from zegclip.sharing.model_facts import (
    MEASURED_FILE,
    ModelFacts,
    digest_of_weights,
    is_hub_id,
    is_valid_id,
    last_part,
    name_dataset,
    read_facts,
)

CARD_FILE = "README.md"
PLACEHOLDER_PATH = "path/to/this/folder"
"""What the examples of a card call a model that is not on the Hub."""

_MARK = "<!-- Written by zegclip ({}): edit the text above as you like. -->"
"""Ends a card of an output folder; with the hash of the rest, by which an edited card is known."""

_SETTINGS = {
    "inductive": "inductive: masks of seen classes only, and their names alone",
    "transductive": "transductive: masks of seen classes, then self-training with the names of unseen ones",
    "fully_supervised": "fully supervised: masks of all classes",
}
_DENSE_METHODS = {"naclip": "NACLIP", "maskclip": "MaskCLIP", "sclip": "SCLIP", "clearclip": "ClearCLIP"}
_TRAINING_FREE = {"plain": "CLIP's own last layer", **_DENSE_METHODS}
_TAGS = {"ZegCLIP": "zegclip", "SPT-SEG": "spt-seg", "LDVC": "ldvc", _TRAINING_FREE["plain"]: "baseline"}
_TAGS |= {method: tag for tag, method in _DENSE_METHODS.items()}
_FIGURE_COLUMNS = FIGURE_TITLES | {"miou_seen": "mIoU seen", "miou_unseen": "mIoU unseen"}
_LOSSES = ("focal_weight", "dice_weight", "ssim_weight", "cross_entropy_weight")
_LOSS_FIELDS = (*_LOSSES, "focal_alpha", "focal_gamma", "ignored_pixels_as_negatives", "prompt_templates")
# Fields of an adapter, and what the configurations of a training call them.
_PROMPT_FIELDS = {"num_tokens": "num_prompt_tokens", "num_deep_layers": "num_deep_layers", "dropout": "prompt_dropout"}
_RUN_FIELDS = (
    *("image_size", "crop_size", "scale_range", "long_side", "max_category_share", "flip_probability"),
    *("photometric_distortion", "train_split", "num_train_pictures", "max_steps", "schedule_steps"),
    *("total_train_batch_size", "learning_rate", "decode_head_lr_multiplier", "weight_decay"),
    *("decay_norms_and_biases", "warmup_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "optim", "adam_beta1"),
    *("adam_beta2", "adam_epsilon", "max_grad_norm", "mixed_precision", "seed"),
)


def write_card(folder: Path, *, run: Path | None = None, repo_id: str | None = None, tags: Sequence[str] = ()) -> Path:
    """
    Write `README.md` of a folder that holds a model. What is there is replaced, and never there in part; but what
    somebody else wrote into a training's output folder, or into its card, is kept, with a warning.

    The card of an output folder of `train.py` has what the run left there; that of any other model its configuration.

    Args:
        folder: Holds a prompt adapter, or a whole model.
        run: Another folder to take the facts from, whose pictures (see [`card_files`]) lie in `folder` too. If it was
            written to be shared and its weights are still the same, or if its card was edited, the card is copied with
            what its owner wrote into it.
        repo_id: `owner/name` on the Hub, for the examples; without it they say `path/to/this/folder`.
        tags: Further tags.

    Returns:
        The file's path.

    Raises:
        ModelError: If the folder holds no model of zegclip, or a file of it is broken.
        UsageError: If `repo_id` is not a valid Hub id.
        OSError: If the card cannot be written.
    """
    folder = Path(folder)
    if repo_id is not None and not is_valid_id(repo_id):
        raise UsageError(f"repo_id must be owner/name, not {repo_id!r}.")
    facts = read_facts(Path(run or folder))
    if run is None and _is_of_others(folder):
        warnings.warn(
            f"{folder / CARD_FILE} was edited or written by others, so it is kept; the figures are in "
            f"{folder / MEASURED_FILE}. Remove it for a new card.",
            stacklevel=2,
        )
        return folder / CARD_FILE
    copied = None if run is None else _copied_card(Path(run), folder, repo_id)
    content = copied or _render(facts, repo_id)
    if tags:
        card = ModelCard(content)
        card.data["tags"] = list(dict.fromkeys((*(card.data.get("tags") or ()), *tags)))
        content = str(card)
    if run is None:
        content = f"{content.rstrip()}\n\n{_MARK.format(_hash(content))}\n"
    else:
        record = {"shared": digest_of_weights(folder), "card": _hash(content)}
        was_shared = "card" in read_json(Path(run) / MEASURED_FILE)
        edited = not is_shared_card(Path(run)) if was_shared else _is_edited(Path(run))
        write_json(folder / MEASURED_FILE, record | ({"edited": True} if copied and edited else {}))
    with replacing(folder / CARD_FILE) as part:
        part.write_text(content, encoding="utf-8")
    if run is None and (measured := read_json(folder / MEASURED_FILE)):
        write_json(folder / MEASURED_FILE, {**measured, "marked": digest_of_weights(folder)})
    return folder / CARD_FILE


def _is_edited(folder: Path) -> bool:
    """Return whether a card was written into a folder by [`write_card`], and is another now."""
    known = _find_mark(folder) is not None or "marked" in read_json(folder / MEASURED_FILE)
    return known and _is_of_others(folder)


def _is_of_others(folder: Path) -> bool:
    """Return whether a folder's card is not the last one of [`write_card`], by the hash at its end."""
    found = _find_mark(folder)
    if found is None:
        return (folder / CARD_FILE).is_file()
    text = found.string
    return found[1] != _hash(text[: found.start()] + text[found.end() :])


def _find_mark(folder: Path) -> re.Match[str] | None:
    path = folder / CARD_FILE
    text = path.read_text(encoding="utf-8", errors="replace") if path.is_file() else ""
    return re.search(re.escape(_MARK).replace(r"\{\}", "([0-9a-f]+)"), text)


def is_shared_card(folder: Path) -> bool:
    """Return whether the card of a folder that was written to be shared is still the one that was written."""
    path = folder / CARD_FILE
    try:
        return path.is_file() and read_json(folder / MEASURED_FILE).get("card") == _hash(path.read_text("utf-8"))
    except (ModelError, UnicodeDecodeError):  # of another program
        return False


def _hash(text: str) -> str:
    return hashlib.blake2b(text.strip().encode(), digest_size=8).hexdigest()


def _copied_card(run: Path, folder: Path, repo_id: str | None) -> str | None:
    """Return a shared or edited card of `run`, or the embedded model's, for `folder`; `None` if there is none."""
    if _identify(folder) == _identify(zegclip.DEFAULT_MODEL):  # wherever it was copied to
        card = (files("zegclip.model_cards") / "default_model.md").read_text(encoding="utf-8")
        card = card.replace("model=zegclip.DEFAULT_MODEL", f'model="{PLACEHOLDER_PATH}"')
        card = re.sub(r"\[([^]]*)\]\(\.\./[^)]*\)", r"\1", card)  # links into this repository
    elif (run / CARD_FILE).is_file() and (
        _is_edited(run) or read_json(run / MEASURED_FILE).get("shared") == digest_of_weights(folder)
    ):
        card = (run / CARD_FILE).read_text(encoding="utf-8")
        if read_json(run / MEASURED_FILE).get("marked", digest_of_weights(run)) != digest_of_weights(run):
            warnings.warn(
                f"{run / CARD_FILE} was edited before the last training: its figures may be those of other weights.",
                stacklevel=3,
            )
    else:
        return None
    # As in the template.
    place = repo_id or PLACEHOLDER_PATH
    card = re.sub(r'(pipeline\("zero-shot-image-segmentation", model=)"[^"]*"', rf'\g<1>"{place}"', card)
    return re.sub(r"(`zegclip segment [^`\n]* --model )[^ `]+`", rf"\g<1>{place}`", card)


def _identify(folder: Path) -> tuple[str, str | None]:
    """Return what tells a model from others: the weights, and those of an adapter's base in short."""
    return digest_of_weights(folder), read_json(folder / ADAPTER_CONFIG_NAME).get("base_fingerprint")


def _render(facts: ModelFacts, repo_id: str | None) -> str:
    """Fill in the template."""
    config, prompts, run = facts.config, facts.prompts or {}, facts.run
    method, dataset = _name_method(config, prompts), name_dataset(run.get("dataset"))
    training_free = _is_training_free(config, prompts)
    title = f"{method[0].upper()}{method[1:]}"
    if dataset:
        title += f" on {dataset}, {run['setting'].replace('_', ' ')}"
    seen, unseen = _classes(config)
    plain = [name for name in (*seen[:1], *unseen[:1], *seen[1:2]) if re.fullmatch(r"[\w -]+", name)]
    labels = plain if len(plain) > 1 else ["cat", "tree", "grass"]
    free = run.get("dataset") == "picture_world" and "model" in run and run["model"] is None
    evaluations = list(facts.measured.get("evaluations", {}).values())
    evaluations = [item for item in evaluations if item["script"] == "eval.py"] or evaluations
    results = [result for item in evaluations for result in _eval_results(item)]
    tags = ["zero-shot-image-segmentation", "zegclip", "peft" if facts.prompts is not None else ""]
    tags += ["training-free"] if training_free else []
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        license="apache-2.0" if free else "unknown",
        base_model=facts.base_id,
        datasets=run["dataset"] if is_hub_id(run.get("dataset")) else None,
        tags=list(dict.fromkeys(tag for tag in (*tags, _TAGS.get(method)) if tag)),
        model_name=(repo_id.split("/")[-1] if repo_id else " ".join(title.split())) if results else None,
        eval_results=results or None,
    )
    card = ModelCard.from_template(
        card_data,
        template_str=(files("zegclip.model_cards") / "template.md").read_text(encoding="utf-8"),
        text=_text,
        code=_code,
        title=_text(title),
        method=method,
        mixture=_describe_mixture(config, prompts) if method == "a mixture" else "",
        training_free=training_free,
        dense_attention=config["dense_attention"],
        is_softmax=DECODE_HEADS[config["decode_head_type"]].score_function == "softmax",
        is_adapter=facts.prompts is not None,
        spectral=config["decode_head_type"] == "spectral" or prompts.get("spectral_prompt"),
        consensus=config["decode_head_type"] == "consensus",
        text_prompts=prompts.get("text_prompts"),
        place=repo_id or PLACEHOLDER_PATH,
        labels=json.dumps(labels),
        labels_line=", ".join(labels),
        data=_data_rows(facts, dataset, seen, unseen),
        hyper_parameters=_hyper_parameters(facts),
        evaluations=[item | {"table": _figures_table(item["rows"])} for item in evaluations],
        pictures=facts.pictures,
        free=free,
        is_openai=str(facts.base_id).startswith("openai/clip-"),
        is_benchmark=run.get("dataset") in BENCHMARKS,
    )
    return re.sub(r"\n{3,}", "\n\n", str(card)).rstrip() + "\n"


def _is_training_free(config: Mapping[str, Any], prompts: Mapping[str, Any]) -> bool:
    """Return whether nothing of a model was trained on masks: neither its decode head nor prompts have weights."""
    has_prompts = prompts.get("num_tokens") or prompts.get("text_prompts")
    return config["decode_head_type"] == "similarity" and not has_prompts


def _name_method(config: Mapping[str, Any], prompts: Mapping[str, Any]) -> str:
    """Return `ZegCLIP`, `SPT-SEG`, `LDVC`, a method without training, or `a mixture`."""
    num_tokens, text_prompts = prompts.get("num_tokens", 0), prompts.get("text_prompts")
    if _is_training_free(config, prompts):
        return _TRAINING_FREE[config["dense_attention"]]
    if not num_tokens or prompts["num_deep_layers"] is not None or set(config["descriptor"]) != {"product", "text"}:
        return "a mixture"
    parts = (config["decode_head_type"], bool(prompts["spectral_prompt"]), text_prompts is not None)
    methods: dict[tuple, str] = {
        ("zegclip", False, False, ("focal", "dice")): "ZegCLIP",
        ("spectral", True, False, ("focal", "ssim")): "SPT-SEG",
        ("consensus", False, True, ("focal", "dice")): "LDVC",
    }
    return methods.get((*parts, _loss_terms(config)), "a mixture")


def _loss_terms(config: Mapping[str, Any]) -> tuple[str, ...]:
    return tuple(name.removesuffix("_weight") for name in _LOSSES if config[name])


def _describe_mixture(config: Mapping[str, Any], prompts: Mapping[str, Any]) -> str:
    parts = [
        f"decode head `{config['decode_head_type']}`",
        f"descriptor of {_value(config['descriptor'])}",
        f"{prompts.get('num_tokens') or 'no'} visual prompts a layer",
        f"{'a' if prompts.get('spectral_prompt') else 'no'} spectral prompt",
        f"text prompts `{prompts['text_prompts']}`" if prompts.get("text_prompts") else "no text prompts",
        f"loss of {', '.join(_loss_terms(config)).replace('_', ' ')}",
    ]
    if config["dense_attention"] != "plain":
        parts.insert(0, f"last layer of {_DENSE_METHODS[config['dense_attention']]}")
    return ", ".join(parts)


def _classes(config: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names whose masks were trained on, and the others; without names there are only placeholders."""
    # In JSON the keys are text, which PEFT sorts.
    names = [str(name) for _, name in sorted((config["id2label"] or {}).items(), key=lambda item: int(item[0]))]
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        names = []
    seen = list(config["seen_class_names"] or [])
    known = set(map(fold_name, seen))
    return seen, [name for name in names if fold_name(name) not in known] if seen else []


def _eval_results(evaluation: Mapping[str, Any]) -> list[EvalResult]:
    leaked = evaluation["unseen_trained_on"] and evaluation["setting"] != "fully_supervised"
    if leaked or evaluation.get("seen_not_trained_on"):
        return []  # These are not means over unseen and seen classes.
    return [
        EvalResult(
            task_type="image-segmentation",
            task_name="Zero-shot semantic segmentation",
            dataset_type=evaluation["dataset_type"],
            dataset_name=" ".join(evaluation["dataset"].split()),
            dataset_config=evaluation["setting"],
            dataset_split=evaluation["split"],
            dataset_args={"pictures": evaluation["pictures"]},
            metric_type=key,
            metric_name=f"{FIGURE_TITLES[key]}, {title.removeprefix('model, ')}",
            metric_value=round(figures[key], 2),
        )
        for title, figures in evaluation["rows"].items()
        for key in _figure_keys(figures)
        if title.startswith("model, ") and math.isfinite(figures[key])
    ]


def _figure_keys(figures: Mapping[str, float]) -> list[str]:
    return ["pacc", "miou_seen", "miou_unseen", "hiou"] if "hiou" in figures else ["pacc", "miou"]


def _figures_table(rows: Mapping[str, Mapping[str, float]]) -> str:
    table = pd.DataFrame.from_dict(rows, orient="index")
    table = table[_figure_keys(table)].rename(index=_text, columns=_FIGURE_COLUMNS)
    return table.map(lambda value: f"{value:.1f}" if math.isfinite(value) else "-").to_markdown(disable_numparse=True)


def _data_rows(facts: ModelFacts, dataset: str, seen: Sequence[str], unseen: Sequence[str]) -> dict[str, str]:
    setting, training = facts.run.get("setting", ""), facts.measured.get("training", {})
    unseen_title = "unseen (no masks in training)"
    if setting == "transductive":
        unseen_title = "unseen (no masks; their names were known in the self-training)"
    init, number = facts.run.get("init_adapter"), facts.num_parameters
    rows = {
        "base": _text(facts.base),
        "data set": _text(dataset),
        "setting": _SETTINGS.get(setting, ""),
        "started from": f"the adapter {_text(last_part(init))}" if init else "",
        "seen (masks in training)": ", ".join(map(_text, seen)),
        unseen_title: ", ".join(map(_text, unseen)),
        "parameters of the adapter": f"{number:,}" if number is not None else "",
        "steps trained": str(facts.measured.get("steps", "")),
        "trained on": ", ".join(filter(None, (training.get("date"), training.get("hardware")))),
        "versions": ", ".join(f"{name} {version}" for name, version in training.get("versions", {}).items()),
    }
    return {title: text for title, text in rows.items() if text}


def _hyper_parameters(facts: ModelFacts) -> dict[str, str]:
    config, prompts, run = facts.config, facts.prompts, facts.run
    head = DECODE_HEADS[config["decode_head_type"]]
    dense = {name: config[name] for name in _dense_fields(config)}
    if _is_training_free(config, prompts or {}):
        first, *others = config["prompt_templates"]
        templates = f"{len(others) + 1}, such as {first}" if others else first
        return {name: _value(value) for name, value in (dense | {"prompt_templates": templates}).items()}
    rows = {name: config[name] for name in (*head.config_fields, "decoder_dropout", "decode_head_init")} | dense
    if prompts is not None:
        rows |= {title: prompts[name] for name, title in _PROMPT_FIELDS.items()}
        if prompts["spectral_prompt"]:
            rows |= {name: prompts[name] for name in ("spectral_prompt", "spectral_layers", "spectral_grid_size")}
        if prompts["text_prompts"] is not None:
            rows |= {name: prompts[name] for name in ("text_prompts", "text_prompt_init")}
    if config["training_free_weight"]:
        rows |= {name: config[name] for name in ("training_free_weight", "naclip_sigma", "similarity_scale")}
    rows |= {name: config[name] for name in _LOSS_FIELDS}
    if config["ssim_weight"]:
        rows["ssim_of_probabilities"] = config["ssim_of_probabilities"]
    rows |= {name: run[name] for name in _RUN_FIELDS if name in run}
    if run.get("max_steps", 1) <= 0:
        rows |= {"max_steps": None, "num_train_epochs": run.get("num_train_epochs")}
    if run.get("setting") == "transductive":
        rows["self_training_steps"] = run.get("self_training_steps")
    if run.get("dataset") == "picture_world":
        rows["scene_seed"] = run.get("scene_seed")
    return {name: _value(value) for name, value in rows.items() if value is not None}


def _dense_fields(config: Mapping[str, Any]) -> list[str]:
    """Return the fields of the last layer and of the scale of cosines, as far as they mean something."""
    is_similarity, method = config["decode_head_type"] == "similarity", config["dense_attention"]
    fields = {
        "dense_attention": method != "plain" or is_similarity,
        "naclip_sigma": method == "naclip",
        "similarity_scale": is_similarity,
    }
    return [name for name, is_used in fields.items() if is_used]


def _text(value: Any) -> str:
    """Escape any text as one line of Markdown, also in a table."""
    line = html.escape(" ".join(str(value).split()), quote=False)
    return re.sub(r"([\\`*_\[\]|~#$])", r"\\\1", line)


def _code(value: Any) -> str:
    """Make any text fit between back-ticks."""
    return re.sub(r"[`|<>\\]", "", " ".join(str(value).split()))


def _value(value: Any) -> str:
    if isinstance(value, (list, tuple)):
        return ", ".join(map(_text, value)) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return _text(f"{value:g}" if isinstance(value, float) else value)
