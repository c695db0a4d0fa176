"""What the files of a folder say about the model in it, and what trainings and evaluations record for its card."""

import hashlib
import math
import os
import platform
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import datetime, timezone
from pathlib import Path
from typing import Any

import peft
import torch
import transformers
from huggingface_hub.utils import HFValidationError, validate_repo_id
from safetensors import SafetensorError, safe_open
from transformers.trainer import TRAINER_STATE_NAME
from transformers.utils import ADAPTER_CONFIG_NAME, ADAPTER_SAFE_WEIGHTS_NAME, CONFIG_NAME, SAFE_WEIGHTS_NAME

import zegclip
from zegclip.files import RECORD_NAME, read_json, write_json
from zegclip.modeling.configuration_zegclip import ZegClipConfig
from zegclip.modeling.model_error import ModelError
from zegclip.modeling.prompt_config import DeepPromptConfig, DeepPromptPeftType

MEASURED_FILE = "card.json"
"""What a card says and no other file of a run does: when and on what it was trained, and its evaluations."""

DATASET_TITLES = {
    "picture_world": "the generated picture world",
    "voc": "PASCAL VOC 2012",
    "coco_stuff": "COCO-Stuff 164k",
    "pascal_context_59": "PASCAL Context (59 classes)",
    "pascal_context_60": "PASCAL Context (60 classes)",
    "voc20": "PASCAL VOC 2012 (20 classes, open-vocabulary names)",
    "voc21": "PASCAL VOC 2012 (21 classes, open-vocabulary names)",
    "coco_stuff171": "COCO-Stuff 164k (open-vocabulary names)",
    "coco_object": "COCO-Object",
    "ade20k": "ADE20K (150 classes)",
    "cityscapes": "Cityscapes",
}


@dataclass
class ModelFacts:
    """
    What the files of a folder say about the model in it.

    Attributes:
        config: Fields of [`ZegClipConfig`].
        prompts: Fields of [`DeepPromptConfig`]; `None` without an adapter.
        run: Settings of the training from `run.json`; empty if `train.py` did not make the folder.
        measured: Content of `card.json`, without evaluations of other weights, and `steps` that were trained.
        base: Name of the model under the adapter; empty if unknown.
        base_id: The same as a Hub id, if it is one.
        num_parameters: Of the adapter; `None` if unknown.
        pictures: Paths of the pictures to show, relative to the folder.
    """

    config: dict[str, Any]
    prompts: dict[str, Any] | None
    run: dict[str, Any] = field(default_factory=dict)
    measured: dict[str, Any] = field(default_factory=dict)
    base: str = ""
    base_id: str | None = None
    num_parameters: int | None = None
    pictures: list[str] = field(default_factory=list)


def card_files(folder: Path) -> list[str]:
    """Return the pictures that a folder's card shows, relative to it: the curves and the last sheet of samples."""
    folder = Path(folder)
    curves = ["curves.png"] if (folder / "curves.png").is_file() else []
    samples = sorted((folder / "samples").glob("step_*.png"))
    return curves + [f"samples/{path.name}" for path in samples[-1:]]


def record_training(folder: Path, device: torch.device, num_processes: int) -> None:
    """
    Record in an output folder when its adapter was trained, on which hardware, and with which versions.

    Args:
        folder: The output folder, with the adapter.
        device: Of this process.
        num_processes: How many there were.
    """
    hardware = f"{os.cpu_count()} CPU cores"
    if device.type != "cpu":
        name = torch.cuda.get_device_name(device) if device.type == "cuda" else device.type
        hardware = f"{num_processes} x {name}"
    versions = {module.__name__: module.__version__ for module in (zegclip, torch, transformers, peft)}
    versions = {"python": platform.python_version()} | versions
    training = {"date": _today(), "hardware": hardware, "versions": versions}
    kept = {name: value for name, value in read_json(folder / MEASURED_FILE).items() if name == "marked"}
    write_json(folder / MEASURED_FILE, {**kept, "training": training, "evaluations": {}})


def record_evaluation(
    folder: Path,
    rows: Mapping[str, Mapping[str, float]],
    *,
    script: str,
    dataset: str,
    split: str,
    setting: str,
    pictures: int,
    classes: tuple[int, int],
    seen_offset: float,
    window: tuple[int | None, int | None],
    unseen_trained_on: int = 0,
    seen_not_trained_on: int = 0,
) -> None:
    """
    Record an evaluation's figures in the output folder of the run whose adapter was measured.

    The last one of each script, data set and split is kept. Training the adapter again removes them.

    Args:
        folder: The output folder, with the adapter.
        rows: What `summarise` gives, by title: `model, papers' protocol`.
        script: Which one measured, `train.py` or `eval.py`.
        dataset: As the arguments name it: a known name, a path, or a Hub id.
        split: Name of the split.
        setting: Of the evaluation.
        pictures: How many were measured.
        classes: How many of them counted as seen, and as unseen.
        seen_offset: Subtracted from the scores of seen classes in the papers' protocol.
        window: Side and step of the sliding windows in pixels; `None` for the whole picture.
        unseen_trained_on: How many classes that count as unseen were trained on.
        seen_not_trained_on: How many classes that count as seen were not trained on.
    """
    title, dataset_type = name_dataset(dataset), dataset
    if dataset not in DATASET_TITLES and os.path.exists(dataset):
        title = Path(dataset).resolve().name
        dataset_type = re.sub(r"[^\w.-]+", "-", title).strip("-") or "pictures"
    evaluation = {
        "script": script,
        "dataset": title,
        "dataset_type": dataset_type,
        "split": split,
        "setting": setting,
        "pictures": pictures,
        "classes": list(classes),
        "seen_offset": seen_offset,
        "window": list(window),
        "unseen_trained_on": unseen_trained_on,
        "seen_not_trained_on": seen_not_trained_on,
        "date": _today(),
        "adapter": digest_of_weights(folder),
        "rows": {title: dict(figures) for title, figures in rows.items()},
    }
    measured = read_json(folder / MEASURED_FILE)
    evaluations = measured.get("evaluations", {}) | {f"{script} {title} {split}": evaluation}
    write_json(folder / MEASURED_FILE, {**measured, "evaluations": evaluations})


def is_output_of_train(folder: str | os.PathLike) -> bool:
    """Tell whether a folder is an output folder of `train.py` with the adapter in it."""
    names = (RECORD_NAME, ADAPTER_SAFE_WEIGHTS_NAME, ADAPTER_CONFIG_NAME)
    return all((Path(folder) / name).is_file() for name in names)


def read_facts(folder: Path) -> ModelFacts:
    """
    Read what the files of a folder say about the model in it.

    Raises:
        ModelError: If the folder holds no model of zegclip, or a file of it is broken.
    """
    adapter, config = (read_json(folder / name) for name in (ADAPTER_CONFIG_NAME, CONFIG_NAME))
    if config.get("model_type") != ZegClipConfig.model_type:
        config = {}
    if adapter and adapter.get("peft_type") != DeepPromptPeftType.DEEP_PROMPT.value:
        raise ModelError(f"{folder}: its adapter holds {adapter.get('peft_type')}, not deep prompts.")
    if not adapter and not config:
        raise ModelError(f"{folder}: this folder holds no model of zegclip, so no card can be written.")
    facts = ModelFacts(
        config=ZegClipConfig().to_dict() | config | (adapter.get("model_config") or {}),
        prompts=DeepPromptConfig().to_dict() | adapter if adapter else None,
    )
    if is_output_of_train(folder):
        facts.run = read_json(folder / RECORD_NAME)
        facts.measured = read_json(folder / MEASURED_FILE)
        evaluations, digest = facts.measured.get("evaluations", {}), digest_of_weights(folder)
        current = {key: value for key, value in evaluations.items() if value.get("adapter") == digest}
        steps = read_json(folder / TRAINER_STATE_NAME).get("global_step", "")
        facts.measured |= {"evaluations": current, "steps": steps}
        facts.pictures = card_files(folder)
    if (folder / ADAPTER_SAFE_WEIGHTS_NAME).is_file():
        facts.num_parameters = _count_parameters(folder / ADAPTER_SAFE_WEIGHTS_NAME)
    facts.base, facts.base_id = _find_base(folder, adapter, facts.run)
    return facts


def _find_base(folder: Path, adapter: Mapping[str, Any], run: Mapping[str, Any]) -> tuple[str, str | None]:
    """Return the name of the model under an adapter, and its Hub id if it has one; never a path."""
    if "model" in run and run["model"] is None:
        return "the tiny CLIP of zegclip's embedded default model", None
    base = adapter.get("clip_model_name_or_path") or adapter.get("base_model_name_or_path")
    if not base or (folder / SAFE_WEIGHTS_NAME).is_file():
        return ("a CLIP that lies in the same folder" if adapter else ""), None
    # A run's record has whatever was a folder as an absolute path, or as one in the output folder.
    was_folder = Path(str(run.get("model", ""))).parts[-2:] == Path(base).parts[-2:] and run["model"] != base
    beside = any(Path(place, base).exists() or Path(place, base).parent.is_dir() for place in (folder, "."))
    if is_hub_id(base) and not was_folder and not beside:
        return base, base
    return last_part(base), None


def is_valid_id(name: str) -> bool:
    """Tell whether the Hub allows a name, with or without an owner."""
    try:
        validate_repo_id(name)
    except HFValidationError:
        return False
    return True


def is_hub_id(name: str | None) -> bool:
    """Tell whether a name has the form of a Hub id with an owner."""
    return name is not None and name not in DATASET_TITLES and name.count("/") == 1 and is_valid_id(name)


def last_part(path: str) -> str:
    """Return the name of a file or folder, of Windows' paths too."""
    return Path(path.replace("\\", "/")).name


def name_dataset(name: str | None) -> str:
    """Return the title of a benchmark, a Hub id as it is, and the last part of a path."""
    return DATASET_TITLES.get(name or "") or (name if is_hub_id(name) else last_part(name or "")) or ""


def _today() -> str:
    return datetime.now(timezone.utc).date().isoformat()


def digest_of_weights(folder: Path) -> str:
    """Return a hash of the adapter's weights or, without an adapter, of the model's."""
    adapter = folder / ADAPTER_SAFE_WEIGHTS_NAME
    digest = hashlib.sha256()
    for path in [adapter] if adapter.is_file() else sorted(folder.glob("*.safetensors")):
        with open(path, "rb") as file:
            digest.update(hashlib.file_digest(file, "sha256").digest())
    return digest.hexdigest()


def _count_parameters(path: Path) -> int:
    try:
        with safe_open(path, framework="pt") as stored:
            return sum(math.prod(stored.get_slice(name).get_shape()) for name in stored.keys())  # noqa: SIM118
    except SafetensorError as error:
        raise ModelError(f"{path}: these weights cannot be read: {str(error).splitlines()[0]}") from error
