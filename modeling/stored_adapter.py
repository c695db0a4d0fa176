"""Adapters on disk or on the Hub, before they are loaded."""

import json
import os
from dataclasses import dataclass
from typing import Any, ClassVar

from transformers.utils import (
    CONFIG_NAME,
    SAFE_WEIGHTS_INDEX_NAME,
    SAFE_WEIGHTS_NAME,
    cached_file,
    find_adapter_config_file,
)

from .model_error import ModelError

# Fields of an adapter's configuration that are read here, with their types.
FIELD_TYPES = {"base_model_name_or_path": str, "clip_model_name_or_path": str, "model_config": dict}
NAMES_OF_TYPES = {str: "text", dict: "an object"}
DOWNLOAD_ARGUMENTS = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}


@dataclass
class StoredAdapter:
    """
    An adapter folder or Hub repository, before it is loaded.

    Attributes:
        path: Folder or Hub id of the adapter.
        base: Folder or Hub id of the base's weights: `path` itself, or where the adapter was trained.
        model_config: The adapter's part of the model's configuration; empty if the file has none.
    """

    path: str
    base: str
    model_config: dict[str, Any]
    embedded: ClassVar[str | None] = None
    """Folder of the model that the package contains; registration sets it, code that came with a model has none."""

    def describe_on(self, base_config: dict[str, Any]) -> dict[str, Any]:
        """Return a base's configuration with the adapter's part, without what was chosen for another adapter."""
        other = {"label2id": None, "training_free_weight": 0.0} if self.model_config else {}
        return base_config | other | self.model_config

    def has_configuration(self, **download: Any) -> bool:
        """Return whether a `config.json` lies beside the adapter."""
        return cached_file(self.path, CONFIG_NAME, _raise_exceptions_for_missing_entries=False, **download) is not None

    def find_contradictions(self) -> list[str]:
        """Return the fields in which a `config.json` beside the adapter says something else."""
        path = os.path.join(self.path, CONFIG_NAME)
        described = read_json_object(path) if os.path.isfile(path) else {}
        if "decode_head_type" not in described:  # that of a plain CLIP
            return []
        return [name for name, value in self.model_config.items() if described.get(name, value) != value]

    @classmethod
    def find(
        cls, path: str | os.PathLike, *, base: str | os.PathLike | None = None, **kwargs: Any
    ) -> "StoredAdapter | None":
        """
        Look for an adapter; `None` if there is none.

        Args:
            path: A folder or a Hub id.
            base: Folder or Hub id of the base to use instead of the one that the adapter names.
            **kwargs: Those of `from_pretrained`; `cache_dir`, `revision`, `token` and the like are used.

        Raises:
            ModelError: If its configuration is damaged, or its base cannot be found.
        """
        download = {key: kwargs[key] for key in DOWNLOAD_ARGUMENTS & kwargs.keys()}
        file_name = find_adapter_config_file(str(path), **download)
        if file_name is None:
            return None
        described = read_description(file_name)
        if base is None:
            base = _find_base(path, described, **download)
        elif is_missing_folder(base):
            raise ModelError(f"{base}: there is no such model folder.")
        elif find_adapter_config_file(str(base), **download) is not None and not _has_weights(base, **download):
            raise ModelError(f"{base}: this is an adapter alone; base_model_name_or_path must name its CLIP.")
        return cls(path=str(path), base=str(base), model_config=described.get("model_config") or {})


def _find_base(path: str | os.PathLike, described: dict[str, Any], **download: Any) -> str:
    """Return where the base of an adapter is: beside it, or where its configuration says."""
    if _has_weights(path, **download):
        return str(path)
    # On the Hub the second names the adapter's own repository, whose configuration transformers then reads.
    base = described.get("clip_model_name_or_path") or described.get("base_model_name_or_path")
    if not base:
        raise ModelError(f"{path}: this adapter neither contains its base model nor names it.")
    if os.path.isdir(path):
        # Relative to the adapter first: the working directory may have another folder of this name.
        beside = os.path.abspath(os.path.join(path, base))
        if os.path.isdir(beside):
            return beside
        embedded = StoredAdapter.embedded
        if is_missing_folder(base):
            # The package may be installed elsewhere now.
            if embedded is not None and os.path.normpath(base).split(os.sep)[-2:] == embedded.split(os.sep)[-2:]:
                return embedded
            raise ModelError(
                f"{path}: the base model of this adapter, {base!r}, is not there: give another place of it as "
                "base_model_name_or_path."
            )
    return base


def read_json_object(path: str | os.PathLike) -> dict[str, Any]:
    """Read a JSON object; `ModelError` if the file holds something else."""
    try:
        with open(path, "rb") as file:
            content = json.loads(file.read())
    except (ValueError, RecursionError) as error:
        raise ModelError(f"{os.fspath(path)}: this is not a valid JSON file.") from error
    if not isinstance(content, dict):
        raise ModelError(f"{os.fspath(path)}: this JSON file does not contain an object.")
    return content


def read_description(path: str | os.PathLike) -> dict[str, Any]:
    """Read an `adapter_config.json`; `ModelError` if one of the fields that are read here has another type."""
    described = read_json_object(path)
    for field, kind in FIELD_TYPES.items():
        if not isinstance(described.get(field), (kind, type(None))):
            raise ModelError(f"{os.fspath(path)}: {field} must be {NAMES_OF_TYPES[kind]}, not {described[field]!r}.")
    return described


def _has_weights(path: str | os.PathLike, **download: Any) -> bool:
    """Return whether a folder or repository contains the weights of a whole model."""
    quietly = {"_raise_exceptions_for_missing_entries": False, **download}
    return any(cached_file(str(path), name, **quietly) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME))


def is_missing_folder(place: str | os.PathLike) -> bool:
    """Return whether this is neither a folder nor a valid Hub id: `owner/name`, unless there is a folder `owner`."""
    owner, name = os.path.split(str(place))
    may_be_hub_id = bool(owner and name) and not owner.startswith(("/", "~", ".")) and "/" not in owner
    return not os.path.isdir(place) and (not may_be_hub_id or os.path.isdir(owner))


__all__ = ["DOWNLOAD_ARGUMENTS", "StoredAdapter", "is_missing_folder", "read_description", "read_json_object"]
