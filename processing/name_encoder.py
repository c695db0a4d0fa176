"""Class embeddings of class names, each list encoded once, and prediction in evaluation mode."""

import os
import threading
import warnings
import weakref
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch.nn.utils.rnn import pad_sequence
from tqdm import tqdm

from .class_embeds_cache import ClassEmbedsCache, hash_text_tower
from .names import check_templates
from .processing_zegclip import ZegClipProcessor

# Rows of text, one for each name and template, per call of the text tower.
ROWS_AT_ONCE = 256
# Lists whose embeddings are kept: each picture may have one of its own.
LISTS_KEPT = 8
_DELAY = 3  # Seconds until a progress bar appears.
_LOCK = threading.Lock()
# For each model: how many threads predict with it, and whether it was in training mode before.
_PREDICTING: MutableMapping[Any, list[Any]] = weakref.WeakKeyDictionary()


class NameEncoder:
    """
    Encodes the names of one call of the pipeline, each list of them once.

    The model may switch its adapter in between; its weights are taken not to change.

    Args:
        model: Model.
        processor: For the tokens.
        hypothesis_template: Template or templates; `None` for those of the model's configuration.
        cache_folder: Folder in which embeddings are kept and looked for by the content of names, templates and text
            tower, such as [`default_cache_folder`]; `None` for none.
        show_progress: Whether to show a progress bar, after some seconds, on a terminal.
    """

    def __init__(
        self,
        model: Any,
        processor: ZegClipProcessor,
        hypothesis_template: Sequence[str] | str | None,
        cache_folder: str | os.PathLike | None = None,
        show_progress: bool = False,
    ):
        self.model = model
        self.processor = processor
        self.templates = None if hypothesis_template is None else check_templates(hypothesis_template)
        self.cache_folder = cache_folder
        self.show_progress = show_progress
        self.encoded: dict[Any, torch.Tensor] = {}
        self._caches: dict[str | None, ClassEmbedsCache | None] = {}

    def encode(self, labels: list[str], with_prompts: bool = True) -> torch.Tensor:
        """Class embeddings `(names, dim)`, L2-normalised, on the model's device, with or without text prompts."""
        templates = self.templates or list(self.model.config.prompt_templates)
        adapter = getattr(self.model.clip.text_model.encoder, "active_name", lambda: None)()  # with text prompts
        prompts = adapter if with_prompts else None
        key = (tuple(labels), tuple(templates), prompts)
        if key not in self.encoded:
            if self.templates is None and templates != self.processor.prompt_templates:
                warnings.warn(
                    f"Names are put into the templates of the model's configuration, {templates}, and not into the "
                    f"processor's, {self.processor.prompt_templates}; give hypothesis_template to choose others.",
                    stacklevel=3,
                )
            rows = self.processor.tokenize_names(labels, templates, self.model.config, stacklevel=4)
            if len(self.encoded) == LISTS_KEPT:
                del self.encoded[next(iter(self.encoded))]
            if prompts not in self._caches:
                self._caches[prompts] = self._open_cache(with_prompts)
            self.encoded[key] = self._look_up(list(rows.values()), self._caches[prompts], with_prompts)
        return self.encoded[key]

    def _open_cache(self, with_prompts: bool) -> ClassEmbedsCache | None:
        tower = None if self.cache_folder is None else hash_text_tower(self.model, with_prompts)
        return None if self.cache_folder is None or tower is None else ClassEmbedsCache(self.cache_folder, tower)

    def _look_up(
        self, rows_of_name: list[list[list[int]]], cache: ClassEmbedsCache | None, with_prompts: bool
    ) -> torch.Tensor:
        """Take from the cache what it has, and encode the others."""
        if cache is None:
            return self._encode(rows_of_name, with_prompts)
        embeds = [cache.read(rows) for rows in rows_of_name]
        missing = [index for index, found in enumerate(embeds) if found is None]
        if missing:
            encoded = self._encode([rows_of_name[index] for index in missing], with_prompts).cpu()
            kept = True  # until a write fails: a disk is full, or a folder is read-only
            for index, new in zip(missing, encoded, strict=True):
                embeds[index] = new
                kept = kept and cache.write(rows_of_name[index], new)
        return torch.stack([found for found in embeds if found is not None]).to(self.model.device)

    def _encode(self, rows_of_name: list[list[list[int]]], with_prompts: bool) -> torch.Tensor:
        # Rows of similar length are encoded together: padding all to a single long one would slow every other down.
        rows = [(index, torch.tensor(row)) for index, rows in enumerate(rows_of_name) for row in rows]
        rows.sort(key=lambda row: len(row[1]))
        disable = None if self.show_progress else True
        bar = tqdm(total=len(rows), desc="Encoding names", unit="text", delay=_DELAY, leave=False, disable=disable)
        with torch.no_grad(), in_eval_mode(self.model), bar:
            for start in range(0, len(rows), ROWS_AT_ONCE):
                names, ids = zip(*rows[start : start + ROWS_AT_ONCE], strict=True)
                mask = [torch.ones_like(row) for row in ids]
                embeds = self.model.get_class_embeds(
                    input_ids=pad_sequence(list(ids), batch_first=True).to(self.model.device),
                    attention_mask=pad_sequence(mask, batch_first=True).to(self.model.device),
                    num_templates=1,
                    with_prompts=with_prompts,
                )
                if start == 0:
                    # On the CPU, where the order of additions, and so the last bit, is the same each time.
                    dtype = torch.promote_types(embeds.dtype, torch.float32)
                    sums = torch.zeros(len(rows_of_name), embeds.shape[1], dtype=dtype)
                sums.index_add_(0, torch.tensor(names), embeds.to(sums))
                bar.update(len(ids))
        # Names of one text have length 1 already, and another norm would change last bits.
        return (sums if len(rows) == len(rows_of_name) else F.normalize(sums, dim=-1)).to(embeds)


@contextmanager
def in_eval_mode(model: Any) -> Iterator[None]:
    """
    Predict without dropout, then restore the mode: the pipeline may be called in the middle of a training.

    Where several threads predict, the last one restores it.
    """
    with _LOCK:
        state = _PREDICTING.setdefault(model, [0, model.training])
        state[0] += 1
        model.eval()
    try:
        yield
    finally:
        with _LOCK:
            state[0] -= 1
            if state[0] == 0:
                del _PREDICTING[model]
                model.train(state[1])


__all__ = ["NameEncoder", "in_eval_mode"]
