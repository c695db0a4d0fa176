"""Class embeddings on disk, one file per name, found by a hash of all that determines them."""

import hashlib
import json
import os
import time
import uuid
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import torch
from huggingface_hub import constants
from peft.tuners.tuners_utils import BaseTunerLayer
from peft.utils import ModulesToSaveWrapper
from safetensors import SafetensorError
from safetensors.torch import load, save

# Part of every key: another number where the same tokens and weights give other embeddings, or files another format.
VERSION = 1
MAX_BYTES = 200 * 2**20
CACHE_VARIABLE = "ZEGCLIP_CACHE"
_SUFFIX, _UNFINISHED = ".safetensors", ".part"
_BLOCK = 4096  # What a small file takes on disk.
_FILES_BETWEEN_CLEANINGS = 1000
_ABANDONED_AFTER = 24 * 3600  # Seconds; writing a file takes less than one.
# Of a text tower's configuration: where it comes from and how it is stored, not what it computes.
_OF_FILES = {"architectures", "chunk_size_feed_forward", "dtype", "id2label", "label2id", "transformers_version"}


def default_cache_folder() -> str | None:
    """
    Return the folder in which commands keep class embeddings.

    It is `zegclip/class_embeds` in the cache of Hugging Face, or `class_embeds` in the folder that `ZEGCLIP_CACHE`
    names; `None`, for no cache, if that variable is `0` or empty.
    """
    place = os.environ.get(CACHE_VARIABLE, os.path.join(constants.HF_HOME, "zegclip"))
    return None if place in ("", "0") else os.path.join(os.path.expanduser(place), "class_embeds")


def hash_text_tower(model: Any, with_prompts: bool = True) -> str | None:
    """
    Return a hash of all of a model that decides what the embedding of a row of tokens is.

    That is the content of the text tower's and its projection's weights, the text tower's configuration, the active
    adapter's text prompts unless they are not used, and precision and kind of device.

    Returns:
        `None` if it cannot be known: weights are offloaded, quantised or distributed, or adapters are not ours.
    """
    text_model, projection = model.clip.text_model, model.clip.text_projection
    encoder = text_model.encoder
    adapter = getattr(encoder, "active_name", lambda: None)() if with_prompts else None
    for part in (*text_model.modules(), *projection.modules()):
        ours = part is encoder and hasattr(encoder, "prompt_configs")
        if isinstance(part, (BaseTunerLayer, ModulesToSaveWrapper)) and not ours:
            return None
    tensors = text_model.state_dict() | projection.state_dict(prefix="projection.")
    if any(tensor.is_meta or type(tensor) is not torch.Tensor for tensor in tensors.values()):
        return None
    prompts = {} if adapter is None else encoder.prompt_configs[adapter].to_dict()
    config = {name: value for name, value in text_model.config.to_dict().items() if not name.startswith("_")}
    device = model.device.type
    settings = [
        VERSION,
        {name: value for name, value in config.items() if name not in _OF_FILES},
        getattr(text_model, "eos_token_id", None),
        {name: value for name, value in prompts.items() if name.startswith("text_prompt")},
        device,
        str(torch.get_autocast_dtype(device)) if torch.is_autocast_enabled(device) else None,
    ]
    digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode())
    for name, tensor in sorted(tensors.items()):
        own = name.replace(".base_layer.", ".")
        if ".deep_prompt_" in own:
            if own.rpartition(".")[2] != adapter:
                continue
            own = own.rpartition(".")[0]  # whatever the adapter is called
        digest.update(f"{own} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        digest.update(tensor.detach().cpu().contiguous().reshape(-1).view(torch.uint8).numpy())
    return digest.hexdigest()


class ClassEmbedsCache:
    """
    Class embeddings of one text tower in a folder that all text towers and processes share.

    What cannot be read, or is damaged, counts as missing; what cannot be written is not kept. Above `MAX_BYTES`, the
    files that were not used for the longest time are removed.

    Args:
        folder: Created when something is written.
        tower: From [`hash_text_tower`].
    """

    def __init__(self, folder: str | os.PathLike, tower: str):
        self.folder = os.fspath(folder)
        self.tower = tower
        self._until_cleaning = 0

    def read(self, rows: list[list[int]]) -> torch.Tensor | None:
        """
        Return the embedding `(dim,)` of a name, on the CPU; `None` if it is not there.

        Args:
            rows: The token ids of the name in each template.
        """
        path = self._path(rows)
        try:
            with open(path, "rb") as file:
                stored = load(file.read())
            embeds, checksum = stored["class_embeds"], stored["checksum"]
        except (OSError, SafetensorError, LookupError, ValueError):
            return None
        if not torch.equal(checksum, _checksum(embeds)):
            return None
        with suppress(OSError):  # A folder may be read-only.
            os.utime(path)
        return embeds

    def write(self, rows: list[list[int]], embeds: torch.Tensor) -> bool:
        """
        Keep the embedding `(dim,)` of a name; return whether that was possible.

        Args:
            rows: As for `read`.
            embeds: On any device.
        """
        embeds = embeds.detach().cpu().contiguous().clone()
        path = self._path(rows)
        part = os.path.join(self.folder, f"{uuid.uuid4().hex}{_UNFINISHED}")
        try:
            os.makedirs(self.folder, exist_ok=True)
            if self._until_cleaning == 0:
                self._clean()
                self._until_cleaning = _FILES_BETWEEN_CLEANINGS
            self._until_cleaning -= 1
            try:
                with open(part, "xb") as file:
                    file.write(save({"class_embeds": embeds, "checksum": _checksum(embeds)}))
                os.replace(part, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(part)
                raise
        except OSError:
            return False
        return True

    def _path(self, rows: list[list[int]]) -> str:
        key = hashlib.sha256(json.dumps([self.tower, rows]).encode()).hexdigest()
        return os.path.join(self.folder, key + _SUFFIX)

    def _clean(self) -> None:
        """Remove what killed processes left and, above the limit, what was not used for the longest time."""
        files = sorted(self._files())
        total = sum(size for _, size, _ in files)
        excess = total - 0.9 * MAX_BYTES if total > MAX_BYTES else 0
        for used, size, path in files:
            if time.time() - used > _ABANDONED_AFTER if path.endswith(_UNFINISHED) else excess > 0:
                with suppress(OSError):  # Another process has just removed it.
                    os.unlink(path)
                excess -= size

    def _files(self) -> Iterator[tuple[float, int, str]]:
        with os.scandir(self.folder) as entries:
            for entry in entries:
                if entry.name.endswith((_SUFFIX, _UNFINISHED)):
                    with suppress(OSError):
                        found = entry.stat()
                        yield found.st_mtime, max(found.st_size, _BLOCK), entry.path


def _checksum(tensor: torch.Tensor) -> torch.Tensor:
    digest = hashlib.sha256(tensor.contiguous().view(torch.uint8).numpy().tobytes()).digest()
    return torch.tensor(list(digest), dtype=torch.uint8)


__all__ = ["CACHE_VARIABLE", "ClassEmbedsCache", "default_cache_folder", "hash_text_tower"]
