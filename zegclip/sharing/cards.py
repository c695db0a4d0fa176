"""Model cards: what a folder's README.md says of the model in it, from what lies there."""

import hashlib
import html
import json
import math
import os
import platform
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from datetime import datetime, timezone
from importlib.resources import files
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from huggingface_hub import EvalResult, ModelCard, ModelCardData
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, CONFIG_NAME, SAFE_WEIGHTS_NAME

import zegclip
from zegclip.files import RECORD_NAME, replacing
from zegclip.modeling.configuration_zegclip import ZegClipConfig
from zegclip.modeling.prompt_config import DeepPromptConfig, DeepPromptPeftType
from zegclip.processing.benchmarks import BENCHMARKS
from zegclip.processing.metrics import FIGURE_TITLES

CARD_NAME = "README.md"
FACTS_NAME = "card.json"
"""What a card says and no other file of a run does: when and on what it was trained, and its evaluations."""

PLACE = "path/to/this/folder"
"""What the examples of a card call a model that is not on the Hub."""

DATASET_TITLES = {
    "picture_world": "the generated picture world",
    "voc": "PASCAL VOC 2012",
    "coco_stuff": "COCO-Stuff 164k",
    "pascal_context_59": "PASCAL Context (59 classes)",
    "pascal_context_60": "PASCAL Context (60 classes)",
}
_SETTINGS = {
    "inductive": "inductive: masks of seen classes only, and their names alone",
    "transductive": "transductive: masks of seen classes, then self-training with the names of unseen ones",
    "fully_supervised": "fully supervised: masks of all classes",
}
_METHODS = {"ZegCLIP": "zegclip", "SPT-SEG": "spt-seg", "LDVC": "ldvc", "the training-free baseline": "baseline"}
_LOSSES = ("focal_weight", "dice_weight", "ssim_weight", "cross_entropy_weight")
_HEAD_FIELDS = (
    *("decode_head_type", "descriptor", "num_decoder_layers", "decoder_attention_heads", "decoder_ffn_dim"),
    *("decoder_dropout", "decode_head_init"),
)
_OWN_HEAD_FIELDS = {
    "spectral": ("decoder_window_size", "decoder_low_frequency_heads"),
    "consensus": ("decoder_window_size", "decoder_top_k", "out_indices"),
}
_LOSS_FIELDS = (*_LOSSES, "focal_alpha", "focal_gamma", "ignored_pixels_as_negatives", "prompt_templates")
_PROMPT_FIELDS = ("num_tokens", "num_deep_layers", "dropout")
_RUN_FIELDS = (
    *("image_size", "crop_size", "scale_range", "long_side", "max_category_share", "flip_probability"),
    *("photometric_distortion", "train_split", "num_train_pictures", "max_steps", "schedule_steps"),
    *("total_train_batch_size", "learning_rate", "decode_head_lr_multiplier", "weight_decay"),
    *("decay_norms_and_biases", "warmup_steps", "lr_scheduler_type", "lr_scheduler_kwargs", "optim", "adam_beta1"),
    *("adam_beta2", "adam_epsilon", "max_grad_norm", "mixed_precision", "seed"),
)
_CITATIONS = {
    "ZegCLIP": """@inproceedings{zhou2023zegclip,
  title     = {{ZegCLIP}: Towards Adapting {CLIP} for Zero-Shot Semantic Segmentation},
  author    = {Zhou, Ziqin and Lei, Yinjie and Zhang, Bowen and Liu, Lingqiao and Liu, Yifan},
  booktitle = {IEEE/CVF Conference on Computer Vision and Pattern Recognition (CVPR)},
  year      = {2023},
  note      = {arXiv:2212.03588}
}""",
    "SPT-SEG": """@inproceedings{xu2024spectral,
  title     = {Spectral Prompt Tuning: Unveiling Unseen Classes for Zero-Shot Semantic Segmentation},
  author    = {Xu and others},
  booktitle = {AAAI Conference on Artificial Intelligence},
  volume    = {38},
  number    = {6},
  pages     = {6369--6377},
  year      = {2024},
  doi       = {10.1609/aaai.v38i6.28456},
  note      = {arXiv:2312.12754}
}""",
    "LDVC": """@article{ldvc2024,
  title   = {Language-Driven Visual Consensus for Zero-Shot Semantic Segmentation},
  author  = {{The authors of arXiv:2403.08426}},
  journal = {IEEE Transactions on Circuits and Systems for Video Technology},
  year    = {2024},
  note    = {arXiv:2403.08426}
}""",
}


@dataclass
class Described:
    """
    What the card of a model in a folder is made of.

    Attributes:
        head: Fields of [`ZegClipConfig`] but the CLIP's, with `seen_class_names` and `id2label`.
        prompts: Fields of [`DeepPromptConfig`]; none where there is no adapter.
        run: What `describe_run` gives; empty if `train.py` did not make it.
        base: What its weights stand on, in words; empty if unknown.
        base_id: The same as a Hub id, if it is one.
        facts: Content of `card.json`.
        trained_parameters: How many there are; none if unknown.
        pictures: Names of pictures to show.
    """

    head: dict[str, Any]
    prompts: dict[str, Any] | None
    run: dict[str, Any] = field(default_factory=dict)
    base: str = ""
    base_id: str | None = None
    facts: dict[str, Any] = field(default_factory=dict)
    trained_parameters: int | None = None
    pictures: list[str] = field(default_factory=list)


def write_card(folder: Path, *, run: Path | None = None, repo_id: str | None = None) -> Path:
    """
    Write `README.md` of a folder that holds a model, replacing what is there, whole or not at all.

    Of an output folder of `train.py` it says what the run left there; of any other model what its configuration says.

    Args:
        folder: Holds an adapter of ours, or a whole model.
        run: Another folder to say it of, whose pictures (see [`card_files`]) lie in `folder` too. If that was written
            to be shared, and its weights are still those, its card is taken over with what its owner wrote into it.
        repo_id: `owner/name` on the Hub, for the examples; without it they say `path/to/this/folder`.

    Returns:
        The file's path.

    Raises:
        ValueError: One sentence, if the folder holds no model of ours, a file of it is broken, or `repo_id` is none.
        OSError: If the card cannot be written.
    """
    folder = Path(folder)
    content = render_card(_describe(Path(run or folder)), repo_id=repo_id)  # refuses what is no repo_id, in any case
    if run is not None:
        content = _given_card(Path(run), folder, repo_id) or content
        _write_json(folder / FACTS_NAME, {"shared": _digest(folder)})
    with replacing(folder / CARD_NAME) as part:
        part.write_text(content, encoding="utf-8")
    return folder / CARD_NAME


def _given_card(run: Path, folder: Path, repo_id: str | None) -> str | None:
    """Return the card of a shared model, or of the embedded one, for `folder`; none if its weights are others."""
    if run.resolve() == zegclip.DEFAULT_MODEL.resolve():
        if _digest(run) != _digest(folder):
            return None
        card = (files("zegclip.model_cards") / "default_model.md").read_text(encoding="utf-8")
        card = card.replace("model=zegclip.DEFAULT_MODEL", f'model="{PLACE}"')
        card = re.sub(r"\[([^]]*)\]\(\.\./[^)]*\)", r"\1", card)  # what lies in this repository alone
    elif (run / CARD_NAME).is_file() and _read_json(run / FACTS_NAME).get("shared") == _digest(folder):
        card = (run / CARD_NAME).read_text(encoding="utf-8")
    else:
        return None
    # As in the template.
    return re.sub(r'(pipeline\("zero-shot-image-segmentation", model=)"[^"]*"', rf'\1"{repo_id or PLACE}"', card)


def card_files(folder: Path) -> list[str]:
    """Return names, relative to `folder`, of the pictures that its card shows: curves and the last sample sheet."""
    folder = Path(folder)
    curves = [path.name for path in [folder / "curves.png"] if path.is_file()]
    samples = sorted((folder / "samples").glob("step_*.png"))
    return curves + [f"samples/{path.name}" for path in samples[-1:]]


def record_training(folder: Path, device: torch.device, num_processes: int) -> None:
    """
    Leave in an output folder when its adapter was trained, on what, and with which versions.

    Args:
        folder: The output folder, with the adapter.
        device: That of this process.
        num_processes: How many there were.
    """
    hardware = f"{os.cpu_count()} CPU cores"
    if device.type == "cuda":
        hardware = f"{num_processes} x {torch.cuda.get_device_name(device)}"
    elif device.type != "cpu":
        hardware = f"{num_processes} x {device.type}"
    versions = {module.__name__: module.__version__ for module in (zegclip, torch, transformers, peft)}
    training = {
        "date": _today(),
        "hardware": hardware,
        "versions": {"python": platform.python_version()} | versions,
    }
    _write_json(folder / FACTS_NAME, {"training": training, "evaluations": {}})


def record_evaluation(
    folder: Path,
    rows: Mapping[str, Mapping[str, float]],
    *,
    script: str,
    dataset: str,
    split: str,
    setting: str,
    pictures: int,
    seen_offset: float,
    window: tuple[int | None, int | None],
    unseen_trained_on: int = 0,
) -> None:
    """
    Leave an evaluation's figures in the output folder of the run whose adapter it has measured.

    The last one of each script, data set and split stays. An adapter that is trained anew loses them.

    Args:
        folder: The output folder, with the adapter.
        rows: What `summarise` gives, by title: `model, papers' protocol`.
        script: Who measured, `train.py` or `eval.py`.
        dataset: As the arguments name it: a known name, a path, or a Hub id.
        split: Name of the split.
        setting: Of the evaluation.
        pictures: How many were measured.
        seen_offset: Subtracted from the scores of seen classes in the papers' protocol.
        window: Side and step of the sliding windows in pixels.
        unseen_trained_on: How many classes that count as unseen were trained on.
    """
    is_path = dataset not in DATASET_TITLES and os.path.exists(dataset)
    evaluation = {
        "script": script,
        "dataset": Path(dataset).resolve().name if is_path else _name_dataset(dataset),
        "dataset_type": _slug(Path(dataset).resolve().name) if is_path else dataset,
        "split": split,
        "setting": setting,
        "pictures": pictures,
        "seen_offset": seen_offset,
        "window": list(window),
        "unseen_trained_on": unseen_trained_on,
        "date": _today(),
        "adapter": _digest(folder),
        "rows": {title: dict(figures) for title, figures in rows.items()},
    }
    facts = _read_json(folder / FACTS_NAME)
    evaluations = facts.get("evaluations", {}) | {f"{script} {evaluation['dataset']} {split}": evaluation}
    _write_json(folder / FACTS_NAME, {**facts, "evaluations": evaluations})


def is_output_of_train(folder: str | os.PathLike) -> bool:
    """Tell whether a folder is one that `train.py` has left, with the adapter in it."""
    return all(
        (Path(folder) / name).is_file() for name in (RECORD_NAME, ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_CONFIG_NAME)
    )


def render_card(described: Described, *, repo_id: str | None = None) -> str:
    """
    Make a card's text.

    Args:
        described: What it is about.
        repo_id: As [`write_card`].

    Raises:
        ValueError: If `repo_id` is none.
    """
    if repo_id is not None:
        try:
            validate_repo_id(repo_id)
        except HFValidationError as error:
            raise ValueError(f"repo_id must be owner/name, not {repo_id!r}.") from error
    method, run = method_of(described.head, described.prompts), described.run
    dataset = _name_dataset(run.get("dataset"))
    where = f" on {dataset}, {run['setting'].replace('_', ' ')}" if dataset else ""
    title = f"{method[0].upper()}{method[1:]}{where}"
    evaluations = _current_evaluations(described.facts)
    seen, unseen = _classes(described.head)
    plain = [name for name in (*seen[:1], *unseen[:1], *seen[1:2]) if re.fullmatch(r"[\w -]+", name)]
    labels = plain if len(plain) > 1 else ["cat", "tree", "grass"]
    free = run.get("dataset") == "picture_world" and "model" in run and run["model"] is None
    tags = ["zero-shot-image-segmentation", "zegclip", "peft" if described.prompts is not None else ""]
    card_data = ModelCardData(
        library_name="transformers",
        pipeline_tag="image-segmentation",
        license="apache-2.0" if free else "unknown",
        base_model=described.base_id,
        datasets=run["dataset"] if _is_hub_id(run.get("dataset")) else None,
        tags=[tag for tag in (*tags, _METHODS.get(method, "")) if tag],
        model_name=repo_id.split("/")[-1] if repo_id else " ".join(title.split()),
        eval_results=_eval_results(evaluations) or None,
    )
    if not card_data.eval_results:
        card_data.model_name = None
    titles = {"curves.png": "Training curves"}
    text = str(
        ModelCard.from_template(
            card_data,
            template_str=(files("zegclip.model_cards") / "template.md").read_text(encoding="utf-8"),
            title=_text(title),
            summary=_summary(described, method),
            place=repo_id or PLACE,
            labels=json.dumps(labels),
            labels_line=", ".join(labels),
            data_table=_data_table(described, dataset, seen, unseen),
            hyper_parameters=_hyper_parameters(described),
            figures=_figures(evaluations),
            pictures=[
                {"path": path, "title": titles.get(path, "Pictures, their true and their predicted classes")}
                for path in described.pictures
            ],
            consensus=described.head["decode_head_type"] == "consensus",
            free=free,
            licence=_licence(described, free),
            citation=_citation(described),
        )
    )
    return re.sub(r"\n{3,}", "\n\n", text).rstrip() + "\n"


def method_of(head: Mapping[str, Any], prompts: Mapping[str, Any] | None) -> str:
    """
    Name the method that a configuration describes.

    Args:
        head: Fields of [`ZegClipConfig`].
        prompts: Fields of [`DeepPromptConfig`]; none where there is no adapter.

    Returns:
        `ZegCLIP`, `SPT-SEG`, `LDVC`, `the training-free baseline`, or `a mixture`.
    """
    prompts = prompts or {"num_tokens": 0, "num_deep_layers": None, "spectral_prompt": False, "text_prompts": None}
    if head["decode_head_type"] == "similarity" and not prompts["num_tokens"] and not prompts["text_prompts"]:
        return "the training-free baseline"
    parts = (
        head["decode_head_type"],
        bool(prompts["spectral_prompt"]),
        prompts["text_prompts"] is not None,
        tuple(bool(head[name]) for name in _LOSSES),
    )
    known: dict[tuple, str] = {
        ("zegclip", False, False, (True, True, False, False)): "ZegCLIP",
        ("spectral", True, False, (True, False, True, False)): "SPT-SEG",
        ("consensus", False, True, (True, True, False, False)): "LDVC",
    }
    usual = prompts["num_tokens"] and prompts["num_deep_layers"] is None and "product" in head["descriptor"]
    return known.get(parts, "a mixture") if usual and len(head["descriptor"]) == 2 else "a mixture"


def describe_head(given: Mapping[str, Any]) -> dict[str, Any]:
    """Fill the fields of [`ZegClipConfig`] that are not given with their defaults; the CLIP's are left out."""
    known = _defaults(ZegClipConfig)
    return {name: given.get(name, known.get(name)) for name in (*ZegClipConfig.__annotations__, "id2label")}


def _describe(folder: Path) -> Described:
    adapter, config = (_read_json(folder / name) for name in (ADAPTER_CONFIG_NAME, CONFIG_NAME))
    ours = config.get("model_type") == ZegClipConfig.model_type
    if adapter and adapter.get("peft_type") != DeepPromptPeftType.DEEP_PROMPT.value:
        raise ValueError(f"{folder}: its adapter is no deep prompts but {adapter.get('peft_type')}.")
    if not adapter and not ours:
        raise ValueError(f"{folder}: this folder holds no model of zegclip, so there is nothing to write a card of.")
    described = Described(
        head=describe_head((config if ours else {}) | (adapter.get("model_config") or {})),
        prompts={**_defaults(DeepPromptConfig), **adapter} if adapter else None,
    )
    if is_output_of_train(folder):
        described.run = _read_json(folder / RECORD_NAME)
        described.facts = _read_json(folder / FACTS_NAME)
        digest = _digest(folder)
        described.facts["evaluations"] = {
            key: value
            for key, value in described.facts.get("evaluations", {}).items()
            if value.get("adapter") == digest
        }
        steps = _read_json(folder / TRAINER_STATE_NAME).get("global_step")
        if steps is not None:
            described.facts["steps"] = steps
        described.pictures = card_files(folder)
    if (folder / ADAPTER_SAFE_WEIGHTS_NAME).is_file():
        described.trained_parameters = _count_parameters(folder / ADAPTER_SAFE_WEIGHTS_NAME)
    described.base, described.base_id = _find_base(folder, adapter, described.run)
    return described


def _find_base(folder: Path, adapter: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return what an adapter stands on in words, and as a Hub id if it is one; never a path."""
    if "model" in run and run["model"] is None:
        return "the tiny CLIP of zegclip's embedded default model", None
    base = adapter.get("clip_model_name_or_path") or adapter.get("base_model_name_or_path")
    if not base or (folder / SAFE_WEIGHTS_NAME).is_file():
        return ("a CLIP that lies in the same folder" if adapter else ""), None
    # A run's record has whatever was a folder as an absolute path, or as one in the output folder.
    was_folder = Path(str(run.get("model", ""))).parts[-2:] == Path(base).parts[-2:] and run["model"] != base
    beside = any(Path(place, base).exists() or Path(place, base).parent.is_dir() for place in (folder, "."))
    if _is_hub_id(base) and not was_folder and not beside:
        return base, base
    return Path(base.replace("\\", "/")).name, None


def _is_hub_id(name: str | None) -> bool:
    """Tell whether a name can be a Hub id with its owner, by its form alone."""
    if name is None or name in DATASET_TITLES or name.count("/") != 1:
        return False
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def _name_dataset(name: str | None) -> str:
    """Name a data set of a run's record: a benchmark as people write it, a Hub id as it is, of a path the end."""
    if not name:
        return ""
    return DATASET_TITLES.get(name) or (name if _is_hub_id(name) else Path(name.replace("\\", "/")).name)


def _classes(head: Mapping[str, Any]) -> tuple[list[str], list[str]]:
    """Return the names whose masks were trained on, and the others; without names there are only placeholders."""
    # As an object of JSON its keys are text, which PEFT sorts.
    names = [str(name) for _, name in sorted((head["id2label"] or {}).items(), key=lambda item: int(item[0]))]
    if all(re.fullmatch(r"LABEL_\d+", name) for name in names):
        names = []
    seen = list(head["seen_class_names"] or [])
    return seen, [name for name in names if name not in seen] if seen else []


def _current_evaluations(facts: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return those of eval.py, or if there is none that of the training."""
    evaluations = list(facts.get("evaluations", {}).values())
    return [item for item in evaluations if item["script"] == "eval.py"] or evaluations


def _eval_results(evaluations: Iterable[Mapping[str, Any]]) -> list[EvalResult]:
    results = []
    for item in evaluations:
        if item["unseen_trained_on"] and item["setting"] != "fully_supervised":
            continue  # Its means of unseen classes are none.
        for title, figures in item["rows"].items():
            subject, _, protocol = title.partition(", ")
            for key in ("pacc", "miou_seen", "miou_unseen", "hiou") if "hiou" in figures else ("pacc", "miou"):
                if subject == "model" and math.isfinite(figures[key]):
                    results.append(
                        EvalResult(
                            task_type="image-segmentation",
                            task_name="Zero-shot semantic segmentation",
                            dataset_type=item["dataset_type"],
                            dataset_name=" ".join(item["dataset"].split()),
                            dataset_config=item["setting"],
                            dataset_split=item["split"],
                            dataset_args={"pictures": item["pictures"]},
                            metric_type=key,
                            metric_name=f"{FIGURE_TITLES[key]}, {protocol}",
                            metric_value=round(figures[key], 2),
                        )
                    )
    return results


def _summary(described: Described, method: str) -> str:
    head, prompts = described.head, described.prompts
    what = "An adapter for CLIP" if prompts is not None else "A CLIP with a decode head"
    text = (
        f"{what} that segments pictures into any classes given by name, all in one forward pass, also into classes "
        f"whose masks it has never seen. Made with zegclip; the method is **{method}**"
    )
    if method != "a mixture":
        return text + "."
    prompts = prompts or {}
    terms = [name.removesuffix("_weight").replace("_", " ") for name in _LOSSES if head[name]]
    parts = [
        f"decode head `{head['decode_head_type']}`",
        f"descriptor of {_value(head['descriptor'])}",
        f"{prompts.get('num_tokens') or 'no'} visual prompts a layer",
        f"{'a' if prompts.get('spectral_prompt') else 'no'} spectral prompt",
        f"text prompts `{prompts['text_prompts']}`" if prompts.get("text_prompts") else "no text prompts",
        f"loss of {', '.join(terms)}",
    ]
    return f"{text} of the published ones: {', '.join(parts)}."


def _data_table(described: Described, dataset: str, seen: Sequence[str], unseen: Sequence[str]) -> str:
    run, training = described.run, described.facts.get("training", {})
    setting = run.get("setting", "")
    unseen_title = "unseen (no masks in training)"
    if setting == "transductive":
        unseen_title = "unseen (no masks; their names were known in the self-training)"
    number = described.trained_parameters
    init = run.get("init_adapter")
    versions = training.get("versions", {})
    rows = {
        "base": _text(described.base),
        "data set": _text(dataset),
        "setting": _SETTINGS.get(setting, ""),
        "started from": f"the adapter {_text(Path(init.replace(chr(92), '/')).name)}" if init else "",
        "seen (masks in training)": ", ".join(map(_text, seen)),
        unseen_title: ", ".join(map(_text, unseen)),
        "parameters of the adapter": f"{number:,}" if number is not None else "",
        "steps trained": str(described.facts.get("steps", "")),
        "trained on": ", ".join(filter(None, (training.get("date"), training.get("hardware")))),
        "versions": ", ".join(f"{name} {version}" for name, version in versions.items()),
    }
    if not any(rows.values()):
        return "This folder does not say what the model was trained on."
    return _table(("", ""), [(title, text) for title, text in rows.items() if text])


def _hyper_parameters(described: Described) -> str:
    head, prompts, run = described.head, described.prompts, described.run
    rows = {name: head[name] for name in _HEAD_FIELDS + _OWN_HEAD_FIELDS.get(head["decode_head_type"], ())}
    if prompts is not None:
        rows |= {_ARGUMENTS.get(name, name): prompts[name] for name in _PROMPT_FIELDS}
        if prompts["spectral_prompt"]:
            rows |= {name: prompts[name] for name in ("spectral_prompt", "spectral_layers", "spectral_grid_size")}
        if prompts["text_prompts"] is not None:
            rows |= {name: prompts[name] for name in ("text_prompts", "text_prompt_init")}
    rows |= {name: head[name] for name in _LOSS_FIELDS}
    if head["ssim_weight"]:
        rows["ssim_of_probabilities"] = head["ssim_of_probabilities"]
    rows |= {name: run[name] for name in _RUN_FIELDS if name in run}
    if run.get("max_steps", 1) <= 0:
        rows |= {"max_steps": None, "num_train_epochs": run.get("num_train_epochs")}
    if run.get("setting") == "transductive":
        rows["self_training_steps"] = run.get("self_training_steps")
    if run.get("dataset") == "picture_world":
        rows["scene_seed"] = run.get("scene_seed")
    return _table(
        ("field", "value"), [(f"`{name}`", _value(value)) for name, value in rows.items() if value is not None]
    )


_ARGUMENTS = {"num_tokens": "num_prompt_tokens", "dropout": "prompt_dropout"}
"""Fields of an adapter that the configurations call otherwise."""


def _figures(evaluations: Sequence[Mapping[str, Any]]) -> str:
    if not evaluations:
        return "None have been measured."
    blocks = []
    for item in evaluations:
        means = {"pacc": "pAcc", "miou_seen": "mIoU seen", "miou_unseen": "mIoU unseen", "hiou": "hIoU"}
        if not any("hiou" in figures for figures in item["rows"].values()):
            means = {"pacc": "pAcc", "miou": "mIoU"}
        who = "`eval.py`"
        if item["script"] != "eval.py":
            who = "`train.py` at the end of the training (`eval.py` has not been run on it)"
        size, step = item["window"]
        windows = f"windows of {size} pixels every {step}" if size else "the whole picture at once"
        text = (
            f"Split `{_code(item['split'])}` of {_text(item['dataset'])}, {item['pictures']} pictures, "
            f"per cent; measured on {item['date']} by {who}. The papers' protocol: {windows}, {item['seen_offset']:g} "
            "subtracted from the model's scores of seen classes."
        )
        if any(title.endswith("free protocol") for title in item["rows"]):
            text += " The free protocol: the whole picture at once, nothing subtracted."
        rows = [
            (_text(title), *("-" if math.isnan(figures[key]) else f"{figures[key]:.1f}" for key in means))
            for title, figures in item["rows"].items()
        ]
        blocks += [text, _table(("", *means.values()), rows)]
        if item["setting"] == "fully_supervised":
            blocks.append("In this setting there were masks of all classes: *unseen* are those of the other settings.")
        elif item["unseen_trained_on"]:
            blocks.append(
                f"**{item['unseen_trained_on']} of the classes that count as unseen here were trained on**, so this "
                "is no zero-shot result."
            )
    return "\n\n".join(blocks)


def _licence(described: Described, free: bool) -> str:
    if free:
        return "weights and data are Apache-2.0; all pictures were drawn by the program."
    text = (
        "whoever uses or publishes this is bound by the licence of the base model's weights and by the terms of the "
        "training data: check both, and state a licence above."
    )
    if str(described.base_id).startswith("openai/clip-"):
        text += " OpenAI published CLIP's code and weights under the MIT licence."
    if described.run.get("dataset") in BENCHMARKS:
        text += " The pictures of VOC, PASCAL Context and COCO are from Flickr, under its terms and their owners'."
    return f"{text} zegclip's code is Apache-2.0."


def _citation(described: Described) -> str:
    head, prompts = described.head, described.prompts or {}
    names = ["ZegCLIP"]
    if head["decode_head_type"] == "spectral" or prompts.get("spectral_prompt"):
        names.append("SPT-SEG")
    if head["decode_head_type"] == "consensus" or prompts.get("text_prompts"):
        names.append("LDVC")
    entries = "\n\n".join(_CITATIONS[name] for name in names)
    return f"Please cite zegclip, and the method with what it builds on:\n\n```bibtex\n{entries}\n```"


def _text(value: Any) -> str:
    """Make any text one line of Markdown that shows just that text, also in a table."""
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


def _table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join(f"| {' | '.join(cells)} |" for cells in lines)


def _slug(name: str) -> str:
    return re.sub(r"[^\w.-]+", "-", name).strip("-") or "pictures"


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def _digest(folder: Path) -> str:
    """Return a hash of the adapter's weights or, where there is none, of the model's."""
    weights = [path for path in [folder / ADAPTER_SAFE_WEIGHTS_NAME] if path.is_file()] or sorted(
        folder.glob("*.safetensors")
    )
    digest = hashlib.sha256()
    for path in weights:
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _count_parameters(path: Path) -> int:
    try:
        with safe_open(path, framework="pt") as stored:
            names = stored.keys()
            return sum(math.prod(stored.get_slice(name).get_shape()) for name in names)
    except SafetensorError as error:
        raise ValueError(f"{path}: these weights cannot be read: {str(error).splitlines()[0]}") from error


def _defaults(dataclass_type: Any) -> dict[str, Any]:
    return {
        item.name: item.default_factory() if item.default_factory is not MISSING else item.default
        for item in fields(dataclass_type)
        if item.default is not MISSING or item.default_factory is not MISSING
    }


def _read_json(path: Path) -> dict[str, Any]:
    """Read an object; one that is not there is empty."""
    if not path.is_file():
        return {}
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{path}: this is no valid JSON.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: this is no JSON object.")
    return content


def _write_json(path: Path, content: Mapping[str, Any]) -> None:
    with replacing(path) as part:
        part.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
