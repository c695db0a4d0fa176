"""
Models to share: one folder with weights, processor, pipeline, code and card, on this machine or on the Hub.

What is written here loads with this package and without `trust_remote_code`, and without this package through
`trust_remote_code=True`.
"""

import json
import os
import shutil
import tempfile
from pathlib import Path
from typing import Any

from huggingface_hub import HfApi
from huggingface_hub.errors import HfHubHTTPError, HTTPError  # the second is that of its HTTP client
from transformers.dynamic_module_utils import get_relative_imports
from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, PROCESSOR_NAME

from zegclip.files import check_new_folder, new_folder, remove_leftovers, temporary_folder
from zegclip.loading import load_processor
from zegclip.modeling import modeling_zegclip
from zegclip.modeling.modeling_zegclip import ZegClipForSemanticSegmentation
from zegclip.processing import pipeline
from zegclip.sharing.cards import write_card
from zegclip.sharing.model_facts import card_files

# Which class of the copied files stands for what; each file's name is that of the module here.
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
# Of a repository's earlier commit: what would be taken for a part of this one.
REPLACED = ["*.safetensors", "*.safetensors.index.json", ADAPTER_CONFIG_NAME, "*.py", "curves.png", "samples/*"]
_CODE_FOLDERS = tuple(Path(str(module.__file__)).parent for module in (modeling_zegclip, pipeline))


def export(
    model: ZegClipForSemanticSegmentation,
    folder: str | os.PathLike,
    *,
    processor: Any = None,
    whole: bool | None = None,
    run: str | os.PathLike | None = None,
    repo_id: str | None = None,
) -> Path:
    """
    Write a model to share into a new folder, which is there whole or not at all.

    Args:
        model: With or without an adapter; of several, the active one goes.
        folder: To be made; it must not exist, or be empty.
        processor: By default the one that lies where the model came from.
        whole: With an adapter: `True` for its base beside it, `False` for the adapter alone, which is some megabytes.
            By default alone where its base is on the Hub.
        run: Folder that the model was loaded from, for the card: what a training has left there is told.
        repo_id: Where it will lie on the Hub, `owner/name`.

    Raises:
        ValueError: One sentence, if the folder exists, there is no processor, or an adapter would go alone whose base
            nobody else has.
    """
    check_new_folder(Path(folder))
    processor = processor or _load_processor(model)
    base = _base(model)
    if whole is None:
        whole = base is None or os.path.isdir(base)
    named = None if whole else _name_base(model, Path(folder), repo_id)
    with new_folder(Path(folder)) as place:
        if not hasattr(model, "peft_config"):
            model.save_pretrained(place)
        elif named is None:
            model.save_with_base(place)
        else:
            model.save_pretrained(place)
            _amend(place / ADAPTER_CONFIG_NAME, **named)
        processor.save_pretrained(place)
        if whole and repo_id is not None and (place / ADAPTER_CONFIG_NAME).is_file():
            # Auto classes ask the base that is named; on the Hub a folder is none.
            _amend(place / ADAPTER_CONFIG_NAME, base_model_name_or_path=repo_id, clip_model_name_or_path=None)
        _amend(place / CONFIG_NAME, auto_map=MODEL_CLASSES, custom_pipelines=PIPELINES)
        # Each part of a processor is looked up where its own fields are.
        parts = json.loads((place / PROCESSOR_NAME).read_text(encoding="utf-8"))["image_processor"]
        _amend(
            place / PROCESSOR_NAME,
            auto_map=PROCESSOR_CLASSES,
            image_processor=parts | {"auto_map": {"AutoImageProcessor": PROCESSOR_CLASSES["AutoImageProcessor"]}},
        )
        copy_code(place)
        told = place if run is None else Path(run)
        for name in card_files(told):
            (place / name).parent.mkdir(exist_ok=True)
            shutil.copyfile(told / name, place / name)
        write_card(place, run=told, repo_id=repo_id)
    return Path(folder)


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
    commit_message: str = "Upload model",
) -> str:
    """
    Share a model on the Hub in one commit: what [`export`] writes.

    Args:
        model: With or without an adapter.
        repo_id: `owner/name`, or a name among one's own; made if it is not there.
        processor: See [`export`].
        whole: See [`export`].
        run: See [`export`].
        private: Whether a new repository is private.
        token: By default the one of `hf auth login`.
        revision: Branch to commit to.
        commit_message: Of the commit.

    Returns:
        The address of the commit.

    Raises:
        ValueError: See [`export`].
        OSError: One sentence, if the Hub refuses or cannot be reached.
    """
    # Whatever can be found out here, before anything is made there.
    processor = processor or _load_processor(model)
    if whole is False:
        _name_base(model, Path(repo_id), repo_id)
    api = HfApi(token=token)
    scratch = Path(tempfile.gettempdir())
    remove_leftovers(scratch)
    try:
        full_id = api.create_repo(repo_id, private=private, exist_ok=True).repo_id
        if revision is not None and not revision.startswith("refs/"):
            api.create_branch(full_id, branch=revision, exist_ok=True)
        with temporary_folder(scratch) as place:
            folder = export(model, place / "model", processor=processor, whole=whole, run=run, repo_id=full_id)
            commit = api.upload_folder(
                repo_id=full_id,
                folder_path=folder,
                revision=revision,
                commit_message=commit_message,
                delete_patterns=REPLACED,
            )
    except HfHubHTTPError as error:
        raise OSError(f"{repo_id}: the Hub refuses it: {str(error).strip().splitlines()[0]}") from error
    except HTTPError as error:
        raise OSError(f"{repo_id}: the Hub cannot be reached: {error}") from error
    return str(commit)


def code_files() -> list[Path]:
    """Return the modules of this package that a model needs to load and run: those that its own name, in turn."""
    found = {Path(str(modeling_zegclip.__file__))}
    todo = list(found)
    while todo:
        for name in get_relative_imports(todo.pop()):
            (path,) = [folder / f"{name}.py" for folder in _CODE_FOLDERS if (folder / f"{name}.py").is_file()]
            if path not in found:
                found.add(path)
                todo.append(path)
    return sorted(found)


def copy_code(folder: Path) -> None:
    """Lay the modules that a model needs flat into its folder, where transformers looks for them."""
    for path in code_files():
        shutil.copyfile(path, folder / path.name)


def _load_processor(model: ZegClipForSemanticSegmentation) -> Any:
    """Load the processor from where the active adapter or the model came from, with the templates in use."""
    place = model.name_or_path
    if hasattr(model, "peft_config"):
        (name,) = model.active_adapters()
        place = getattr(model.peft_config[name], "origin", None) or place
    return load_processor(place, list(model.config.prompt_templates))


def _base(model: ZegClipForSemanticSegmentation) -> str | None:
    """Where the base of the active adapter is, if not beside it."""
    if not hasattr(model, "peft_config"):
        return None
    (name,) = model.active_adapters()
    named = model.peft_config[name].base_model_name_or_path
    # What is in memory, whatever the adapter was trained on.
    return None if named is None else model.name_or_path or named


def _name_base(model: ZegClipForSemanticSegmentation, folder: Path, repo_id: str | None) -> dict[str, str | None]:
    """Say where the base of an adapter that goes alone is, without a path of this machine."""
    if not hasattr(model, "peft_config"):
        raise ValueError("This model has no adapter that could go alone.")
    base = _base(model)
    if base is None:
        raise ValueError("The base of this adapter is beside it and nowhere else: they can only go together.")
    if repo_id is None and os.path.isdir(base):
        place = folder.resolve()
        if not Path(base).resolve().is_relative_to(place.parent):
            raise ValueError(
                f"The base of this adapter, {base}, does not lie beside {folder}: put it there, or export the two "
                "together (whole)."
            )
        base = os.path.relpath(Path(base).resolve(), place)
    if repo_id is None:
        return {"base_model_name_or_path": base, "clip_model_name_or_path": None}
    if os.path.isdir(base):
        raise ValueError(
            f"The base of this adapter is a folder of this machine, {base}: push that base first and train on it, or "
            "push the two together."
        )
    return {"base_model_name_or_path": repo_id, "clip_model_name_or_path": base}


def _amend(path: Path, **fields: Any) -> None:
    """Set fields of a JSON file."""
    content = json.loads(path.read_text(encoding="utf-8")) | fields
    path.write_text(json.dumps(content, indent=2, sort_keys=True) + "\n", encoding="utf-8")
