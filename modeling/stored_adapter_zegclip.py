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

DOWNLOAD_ARGUMENTS = {"cache_dir", "force_download", "local_files_only", "proxies", "revision", "subfolder", "token"}


@dataclass
class StoredAdapter:
    """
    An adapter folder or Hub repository, before it is loaded.

    Attributes:
        path: What `from_pretrained` was given.
        base: Where the weights of its base are: the same place, or where it was trained.
        base_is_relative: Whether it was named by its way from the adapter's folder; `base` is absolute then.
        model_config: The decode head's configuration and the class names it was trained with, if it says so.
    """

    path: str
    base: str
    base_is_relative: bool
    model_config: dict[str, Any]

    @classmethod
    def find(cls, path: str | os.PathLike, **kwargs: Any) -> "StoredAdapter | None":
        """
        Look for an adapter.

        Args:
            path: A folder or a Hub id.
            **kwargs: `from_pretrained`'s own; those that say where to find files are used.

        Raises:
            ValueError: If there is one, but its base is nowhere.
        """
        download = {key: kwargs[key] for key in DOWNLOAD_ARGUMENTS & kwargs.keys()}
        file_name = find_adapter_config_file(str(path), **download)
        if file_name is None:
            return None
        with open(file_name, encoding="utf-8") as file:
            described = json.load(file)
        # On the Hub the second names the adapter's own repository, whose configuration transformers then reads.
        base = described.get("clip_model_name_or_path") or described.get("base_model_name_or_path")
        base_is_relative = False
        quietly = {"_raise_exceptions_for_missing_entries": False, **download}
        if any(cached_file(str(path), name, **quietly) for name in (SAFE_WEIGHTS_NAME, SAFE_WEIGHTS_INDEX_NAME)):
            base = str(path)
        elif not base:
            raise ValueError(f"{path}: this adapter neither holds its base model nor names it.")
        elif os.path.isdir(path) and not os.path.isdir(base):
            beside = os.path.abspath(os.path.join(path, base))
            base_is_relative = os.path.isdir(beside)
            if base_is_relative:
                base = beside
            elif os.path.isabs(base) or base.count("/") != 1 or os.path.isdir(os.path.dirname(base)):
                raise ValueError(f"{path}: the base model of this adapter, {base}, is not there.")
        return cls(str(path), base, base_is_relative, described.get("model_config") or {})


__all__ = ["DOWNLOAD_ARGUMENTS", "StoredAdapter"]
