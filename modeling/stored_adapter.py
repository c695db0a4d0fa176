"""Adapters on disk or on the Hub, before they are loaded."""

import json
import os
from dataclasses import dataclass
from typing import Any

from transformers.utils import (
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
)

# What is read here of an adapter's description.
FIELD_TYPES = {"base_model_name_or_path": str, "clip_model_name_or_path": str, "model_config": dict}
NAMES_OF_TYPES = {str: "text", dict: "an object"}
DOWNLOAD_ARGUMENTS = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}


@dataclass
class StoredAdapter:
    """
    An adapter folder or Hub repository, before it is loaded.

    Attributes:
        path: What `from_pretrained` was given.
        base: Where the weights of its base are: the same place, or where it was trained.
        model_config: The decode head's configuration and the class names it was trained with, if it says so.
    """

    path: str
    base: str
    model_config: dict[str, Any]

    @classmethod
    def find(
        cls, path: str | os.PathLike, *, base: str | os.PathLike | None = None, **kwargs: Any
    ) -> "StoredAdapter | None":
        """
        Look for an adapter.

        Args:
            path: A folder or a Hub id.
            base: Where its base is, whatever the adapter says; `None`: where the adapter says.
            **kwargs: `from_pretrained`'s own; those that say where to find files are used.

        Raises:
            ValueError: If there is one, but its base is nowhere, or its description is broken; one sentence.
        """
        download = {key: kwargs[key] for key in DOWNLOAD_ARGUMENTS & kwargs.keys()}
        file_name = find_adapter_config_file(str(path), **download)
        if file_name is None:
            return None
        described = read_description(file_name)
        if base is not None:
            if is_missing_folder(base):
                raise ValueError(f"{base}: there is no such model folder.")
            if find_adapter_config_file(str(base), **download) is not None and not _has_weights(base, **download):
                raise ValueError(f"{base}: this is an adapter alone; base_model_name_or_path wants the CLIP below it.")
            return cls(path=str(path), base=str(base), model_config=described.get("model_config") or {})
        # On the Hub the second names the adapter's own repository, whose configuration transformers then reads.
        base = described.get("clip_model_name_or_path") or described.get("base_model_name_or_path")
        if _has_weights(path, **download):
            base = str(path)
        elif not base:
            raise ValueError(f"{path}: this adapter neither holds its base model nor names it.")
        elif os.path.isdir(path):
            # Before the working directory, where something else may be called so.
            beside = os.path.abspath(os.path.join(path, base))
            if os.path.isdir(beside):
                base = beside
            elif is_missing_folder(base):
                raise ValueError(f"{path}: the base model of this adapter, {base!r}, is not there.")
        return cls(path=str(path), base=str(base), model_config=described.get("model_config") or {})


def read_json_object(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON object; `ValueError` with one sentence if the file holds something else."""
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{os.fspath(path)}: this is not a valid JSON file.") from error
    if not isinstance(content, dict):
        raise ValueError(f"{os.fspath(path)}: this JSON file holds no object.")
    return content


def read_description(path: str | os.PathLike) -> dict[str, Any]:
    """Read an adapter's description; `ValueError` with one sentence if it is broken."""
    described = read_json_object(path)
    for field, kind in FIELD_TYPES.items():
        if not isinstance(described.get(field), (kind, type(None))):
            raise ValueError(f"{os.fspath(path)}: {field} must be {NAMES_OF_TYPES[kind]}, not {described[field]!r}.")
    return described


def _has_weights(path: str | os.PathLike, **download: Any) -> bool:
    """Tell whether a folder or repository holds a model's own weights."""
    quietly = {"_raise_exceptions_for_missing_entries": False, **download}
    return any(cached_file(str(path), name, **quietly) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))


def is_missing_folder(place: str | os.PathLike) -> bool:
    """Tell whether this is no folder and no Hub id either: `owner/name`, where no folder `owner` lies."""
    owner, name = os.path.split(str(place))
    may_be_hub_id = bool(owner and name) and not owner.startswith(("/", "~", ".")) and "/" not in owner
    return not os.path.isdir(place) and (not may_be_hub_id or os.path.isdir(owner))


__all__ = ["DOWNLOAD_ARGUMENTS", "StoredAdapter", "is_missing_folder", "read_description", "read_json_object"]
