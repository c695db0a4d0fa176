"""Hashes of a model's files or of their sizes and times, to detect that results were made with another model."""

import hashlib
import os
from pathlib import Path

from transformers.utils import ADAPTER_CONFIG_NAME, CONFIG_NAME, cached_file
from transformers.utils.hub import extract_commit_hash

from zegclip.loading import base_of

# Configurations of a model, a processor and a tokenizer.
_SETTINGS = (
    *(CONFIG_NAME, "*processor_config.json", "tokenizer*", "vocab*", "merges.txt", "added_tokens.json"),
    "special_tokens_map.json",
)
_CLIP_FILES = (*_SETTINGS, "model*.safetensors*", "pytorch_model*.bin*")
_ADAPTER_FILES = ("adapter_model.*",)
_ALL_FILES = (*_CLIP_FILES, *_ADAPTER_FILES, ADAPTER_CONFIG_NAME)


def file_state(path: str | os.PathLike) -> dict[str, int]:
    """
    Return a file's size in bytes and its modification and change times in nanoseconds.

    A file that replaces it differs in one of them: one that is older, or whose modification time was set to the same,
    has another change time.
    """
    found = os.stat(path)
    return {"bytes": found.st_size, "modified_ns": found.st_mtime_ns, "changed_ns": found.st_ctime_ns}


def commit_of(place: str) -> str | None:
    """Return the commit of a Hub repository that is in use; `None` for a folder, or if it cannot be loaded."""
    if os.path.isdir(place):
        return None
    for name in (CONFIG_NAME, ADAPTER_CONFIG_NAME):
        try:
            found = cached_file(place, name, _raise_exceptions_for_missing_entries=False)
        except (OSError, ValueError):  # Loading the model reports the reason.
            return None
        if found is not None:
            return extract_commit_hash(found, None)
    return None


def name_revision(model: str) -> str:
    """Return `model`; a Hub id with its commit, as `owner/name@commit`."""
    commit = commit_of(model)
    return model if commit is None else f"{model}@{commit}"


def state_of_model(model: str) -> str:
    """
    Return a hash of the names, sizes and times of a model's files and of its commit on the Hub, its base's included.

    The files' content is not read.

    Args:
        model: Folder or Hub id, checked.
    """
    digest = hashlib.blake2b(digest_size=8)
    for place in dict.fromkeys((model, base_of(model))):
        digest.update(f"{commit_of(place)}\n".encode())
        for path in _files(place, _ALL_FILES):
            digest.update(f"{path.name} {file_state(path)}\n".encode())
    return digest.hexdigest()


def content_of_clip(model: str) -> str:
    """
    Return a hash of the files that a training reads of its model: CLIP, tokenizer and processor, but no adapter.

    For a Hub id, the commit.

    Args:
        model: Folder or Hub id, checked.
    """
    return ", ".join(_content(place, _CLIP_FILES) for place in dict.fromkeys((base_of(model), model)))


def content_of_adapter(adapter: str) -> str:
    """Return a hash of an adapter's weights or, for a Hub id, the commit."""
    return _content(adapter, _ADAPTER_FILES)


def _content(place: str, patterns: tuple[str, ...]) -> str:
    if not os.path.isdir(place):
        return name_revision(place)
    digest = hashlib.blake2b(digest_size=8)
    for path in _files(place, patterns):
        digest.update(path.name.encode())
        with path.open("rb") as file:
            digest.update(hashlib.file_digest(file, "blake2b").digest())
    return digest.hexdigest()


def _files(place: str, patterns: tuple[str, ...]) -> list[Path]:
    return sorted({path for pattern in patterns for path in Path(place).glob(pattern) if path.is_file()})
