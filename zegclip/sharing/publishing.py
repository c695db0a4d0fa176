"""
Sharing a model: one folder with weights, processor, pipeline, code and card, on this machine or on the Hub.

Such a folder loads where zegclip is installed, and elsewhere with `trust_remote_code=True`.
"""

import json
import os
import shutil
import tempfile
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # the second is that of its HTTP client
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, PROCESSOR_NAME

from zegclip.errors import MachineError, UsageError, as_usage_errors
from zegclip.files import check_new_folder, new_folder, read_json, remove_leftovers, temporary_folder
from zegclip.loading import load_processor
from zegclip.modeling import modeling_zegclip
from zegclip.modeling.base_fingerprint import are_same
from zegclip.modeling.modeling_zegclip import ZegClipForSemanticSegmentation
from zegclip.processing import pipeline
from zegclip.sharing.cards import CARD_FILE, is_shared_card, write_card
from zegclip.sharing.model_facts import MEASURED_FILE, card_files, digest_of_weights, read_facts

# `auto_map`: the class in the copied files that each Auto class stands for.
MODEL_CLASSES = {
    "AutoConfig": "configuration_zegclip.ZegClipConfig",
    "AutoModel": "modeling_zegclip.ZegClipForSemanticSegmentation",
    "AutoModelForSemanticSegmentation": "modeling_zegclip.ZegClipForSemanticSegmentation",
}
PROCESSOR_CLASSES = {
    "AutoProcessor": "processing_zegclip.ZegClipProcessor",
    "AutoImageProcessor": "image_processing_zegclip.ZegClipImageProcessor",
}
PIPELINES = {
    pipeline.TASK: {
        "impl": "pipeline.ZeroShotImageSegmentationPipeline",
        "pt": ["AutoModelForSemanticSegmentation"],
        "type": "multimodal",
    }
}
# Files of a repository's earlier commits that would be taken for a part of the new one.
CARD_PICTURES = ["curves.png", "samples/*"]
REPLACED = ["*.safetensors", "*.safetensors.index.json", ADAPTER_CONFIG_NAME, "*.py", *CARD_PICTURES]
_CODE_FOLDERS = tuple(Path(str(module.__file__)).parent for module in (modeling_zegclip, pipeline))


def export(
    model: ZegClipForSemanticSegmentation,
    folder: str | os.PathLike,
    *,
    processor: Any = None,
    whole: bool | None = None,
    run: str | os.PathLike | None = None,
    repo_id: str | None = None,
    max_shard_size: int | str = "50GB",
    tags: Sequence[str] | str = (),
) -> Path:
    """
    Write a model to share into a new folder. After an error the folder does not exist.

    Args:
        model: With or without an adapter; of several, the active one is written.
        folder: Must not exist, or be empty.
        processor: By default the one that lies where the model was loaded from.
        whole: With an adapter: `True` writes its base beside it, `False` the adapter alone, which is some megabytes.
            By default alone if its base is on the Hub.
        run: Folder whose training results, or whose card if it was edited, appear on the card; by default the one that
            the adapter or model was loaded from, if it is still the same.
        repo_id: Where it will lie on the Hub, `owner/name`.
        max_shard_size: Of a file of the base's weights, which are split into several if they are larger.
        tags: Further tags of the card.

    Raises:
        UsageError: If the folder exists, or an adapter would be written alone whose base others do not have, as it was
            changed.
        ModelError: If there is no processor.
    """
    folder = Path(folder)
    check_new_folder(folder)
    processor = processor or _load_processor(model)
    if whole is None:
        base = _find_base(model)
        whole = base is None or os.path.isdir(base) or model._has_changed_base()
    if not whole and model._has_changed_base():
        raise UsageError("The CLIP has changed since it was loaded, so an adapter alone does not fit: share it whole.")
    base_fields = None if whole else _describe_base(model, folder, repo_id)
    with new_folder(folder) as part:
        if base_fields is not None:
            model.save_pretrained(part)
            _update_json(part / ADAPTER_CONFIG_NAME, **base_fields)
        elif hasattr(model, "peft_config"):
            model.save_with_base(part, max_shard_size=max_shard_size)
            if repo_id is not None:
                # Auto classes load the base from where it is named, and a folder's name is not valid on the Hub.
                fields = {"base_model_name_or_path": repo_id, "clip_model_name_or_path": None}
                _update_json(part / ADAPTER_CONFIG_NAME, **fields)
        else:
            model.save_pretrained(part, max_shard_size=max_shard_size)
        processor.save_pretrained(part)
        _update_json(part / CONFIG_NAME, auto_map=MODEL_CLASSES, custom_pipelines=PIPELINES)
        # Each part of a processor is looked up beside its own fields.
        image_processor = json.loads((part / PROCESSOR_NAME).read_text(encoding="utf-8"))["image_processor"]
        image_processor["auto_map"] = {"AutoImageProcessor": PROCESSOR_CLASSES["AutoImageProcessor"]}
        _update_json(part / PROCESSOR_NAME, auto_map=PROCESSOR_CLASSES, image_processor=image_processor)
        for path in code_files():  # flat in the folder, where transformers looks for them
            shutil.copyfile(path, part / path.name)
        source = Path(run) if run is not None else _find_run(model, part)
        for name in card_files(source):
            (part / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(source / name, part / name)
        write_card(part, run=source, repo_id=repo_id, tags=[tags] if isinstance(tags, str) else tags)
    return folder


def push(
    model: ZegClipForSemanticSegmentation,
    repo_id: str,
    *,
    processor: Any = None,
    whole: bool | None = None,
    run: str | os.PathLike | None = None,
    private: bool | None = None,
    token: str | bool | None = None,
    revision: str | None = None,
    commit_message: str | None = None,
    commit_description: str | None = None,
    create_pr: bool = False,
    max_shard_size: int | str | None = None,
    tags: Sequence[str] | str | None = None,
) -> str:
    """
    Upload what [`export`] writes to the Hub, in one commit.

    Args:
        model: With or without an adapter.
        repo_id: `owner/name`, or a name in your own namespace; created if it does not exist.
        processor: See [`export`].
        whole: See [`export`].
        run: See [`export`].
        private: Whether a new repository is private.
        token: By default the one of `hf auth login`.
        revision: Branch to commit to.
        commit_message: Of the commit; by default "Upload model".
        commit_description: Of the commit.
        create_pr: Whether to open a pull request instead of committing to the branch.
        max_shard_size: See [`export`]; by default 50 GB.
        tags: Further tags of the card, beside those of `model.add_model_tags`.

    Returns:
        The URL of the commit, or of the pull request.

    Raises:
        UsageError, ModelError: See [`export`].
        OSError: If the Hub refuses or cannot be reached.
    """
    # Errors that are known without the Hub come before a repository is created.
    processor = processor or _load_processor(model)
    if whole is False:
        _describe_base(model, Path(repo_id), repo_id)
    tags = [tags] if isinstance(tags, str) else tags
    content: dict[str, Any] = {
        "processor": processor,
        "whole": whole,
        "run": run,
        "max_shard_size": max_shard_size or "50GB",
        "tags": [*(model.model_tags or ()), *(tags or ())],
    }
    api = HfApi(token=token)
    scratch = Path(tempfile.gettempdir())
    remove_leftovers(scratch)
    try:
        full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/") and not create_pr:
            api.create_branch(full_id, branch=revision, exist_ok=True)
        with temporary_folder(scratch) as temporary:
            folder = export(model, temporary / "model", repo_id=full_id, **content)
            replaced = list(REPLACED)
            own = "edited" in read_json(folder / MEASURED_FILE)
            if not own and _has_card_of_others(api, full_id, revision, temporary / "before"):
                warnings.warn(
                    f"{CARD_FILE} of {full_id} was edited or written by others, so it is kept: remove it on the Hub "
                    "for a new card.",
                    stacklevel=2,
                )
                (folder / CARD_FILE).unlink()
                replaced = [pattern for pattern in REPLACED if pattern not in CARD_PICTURES]
            with as_usage_errors():  # such as wrong metadata in a card that its owner has edited
                commit = api.upload_folder(
                    repo_id=full_id,
                    folder_path=folder,
                    revision=revision,
                    commit_message=commit_message or "Upload model",
                    commit_description=commit_description,
                    create_pr=create_pr,
                    delete_patterns=replaced,
                )
    except HfHubHTTPError as error:
        raise MachineError(f"{repo_id}: the Hub refuses it: {str(error).strip().splitlines()[0]}") from error
    except HTTPError as error:
        raise MachineError(f"{repo_id}: the Hub cannot be reached: {error}") from error
    return str(commit.pr_url or commit)


def _has_card_of_others(api: HfApi, repo_id: str, revision: str | None, scratch: Path) -> bool:
    """Return whether the card on the Hub is another than the last one that was pushed."""
    for name in (CARD_FILE, MEASURED_FILE):
        if api.file_exists(repo_id, name, revision=revision):
            api.hf_hub_download(repo_id, name, revision=revision, local_dir=scratch)
    return (scratch / CARD_FILE).is_file() and not is_shared_card(scratch)


def code_files() -> list[Path]:
    """Return the modules that a model needs to load and run: its own, what that imports, and so on."""
    found = {Path(str(modeling_zegclip.__file__))}
    todo = list(found)
    while todo:
        for name in get_relative_imports(todo.pop()):
            (path,) = [folder / f"{name}.py" for folder in _CODE_FOLDERS if (folder / f"{name}.py").is_file()]
            if path not in found:
                found.add(path)
                todo.append(path)
    return sorted(found)


def _load_processor(model: ZegClipForSemanticSegmentation) -> Any:
    """Load the processor from where the active adapter or the model came from, with the model's templates."""
    trained = model.config.score_function == "sigmoid"
    return load_processor(_find_origin(model), list(model.config.prompt_templates), for_training=trained)


def _find_origin(model: ZegClipForSemanticSegmentation) -> str:
    """Return the folder or Hub id from which the active adapter or the model came."""
    origin = None
    if hasattr(model, "peft_config"):
        (name,) = model.active_adapters()
        origin = getattr(model.peft_config[name], "origin", None)
    return origin or model.name_or_path


def _find_run(model: ZegClipForSemanticSegmentation, saved: Path) -> Path:
    """Return the folder from which a model came, if it is the model that has been saved; else where that is."""
    origin = Path(_find_origin(model))
    if not origin.name or not origin.is_dir():
        return saved
    if digest_of_weights(origin) != digest_of_weights(saved):  # as are those of a plain CLIP
        return saved
    before, now = read_facts(origin), read_facts(saved)
    same = all(before.config.get(name) == now.config.get(name) for name in model.config.describe_head())
    if before.prompts and now.prompts:  # The CLIP may be another one, or have changed.
        same = same and are_same(before.prompts["base_fingerprint"], now.prompts["base_fingerprint"])
    return origin if same else saved


def _find_base(model: ZegClipForSemanticSegmentation) -> str | None:
    """Return the folder or Hub id of the active adapter's base; `None` if it lies beside the adapter."""
    if not hasattr(model, "peft_config"):
        return None
    (name,) = model.active_adapters()
    trained_on = model.peft_config[name].base_model_name_or_path
    # The base in memory, whatever the adapter was trained on.
    return None if trained_on is None else model.name_or_path or trained_on


def _describe_base(model: ZegClipForSemanticSegmentation, folder: Path, repo_id: str | None) -> dict[str, str | None]:
    """Return the fields of an adapter's configuration that name its base, without a path of this machine."""
    if not hasattr(model, "peft_config"):
        raise UsageError("This model has no adapter, so none can be written alone.")
    base = _find_base(model)
    if base is None:
        raise UsageError("The base of this adapter lies only beside it: share the two together.")
    if repo_id is not None:
        if os.path.isdir(base):
            raise UsageError(
                f"The base of this adapter is the local folder {base}: push that base first and train on it, or push "
                "the two together."
            )
        return {"base_model_name_or_path": repo_id, "clip_model_name_or_path": base}
    if os.path.isdir(base):
        absolute = folder.resolve()
        if not Path(base).resolve().is_relative_to(absolute.parent):
            raise UsageError(
                f"The base of this adapter, {base}, does not lie beside {folder}: put it there, or export the two "
                "together (--whole)."
            )
        base = os.path.relpath(Path(base).resolve(), absolute)
    return {"base_model_name_or_path": base, "clip_model_name_or_path": None}


def _update_json(path: Path, **fields: Any) -> None:
    content = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
