"""Class embeddings of class names, each list encoded once, and prediction in evaluation mode."""

import itertools
import threading
import warnings
import weakref
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch
from torch.nn.utils.rnn import pad_sequence

from .names import check_templates
from .processing_zegclip import ZegClipProcessor

# Names per call of the text tower.
NAMES_AT_ONCE = 64
# Lists whose embeddings are kept: each picture may have one of its own.
LISTS_KEPT = 8
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
    """

    def __init__(self, model: Any, processor: ZegClipProcessor, hypothesis_template: Sequence[str] | str | None):
        self.model = model
        self.processor = processor
        self.templates = None if hypothesis_template is None else check_templates(hypothesis_template)
        self.encoded: dict[Any, torch.Tensor] = {}

    def encode(self, labels: list[str], with_prompts: bool = True) -> torch.Tensor:
        """Class embeddings `(names, dim)`, L2-normalised, on the model's device, with or without text prompts."""
        templates = self.templates or list(self.model.config.prompt_templates)
        adapter = getattr(self.model.clip.text_model.encoder, "active_name", lambda: None)()  # with text prompts
        key = (tuple(labels), tuple(templates), adapter if with_prompts else None)
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
            self.encoded[key] = self._encode(list(rows.values()), with_prompts)
        return self.encoded[key]

    def _encode(self, rows_of_name: list[list[list[int]]], with_prompts: bool) -> torch.Tensor:
        # Names of similar length are encoded together: padding all to a single long name would slow every other down.
        order = sorted(range(len(rows_of_name)), key=lambda index: max(map(len, rows_of_name[index])))
        encoded = []
        with torch.no_grad(), in_eval_mode(self.model):
            for start in range(0, len(order), NAMES_AT_ONCE):
                some = [rows_of_name[index] for index in order[start : start + NAMES_AT_ONCE]]
                rows = [torch.tensor(row) for row in itertools.chain(*some)]
                batch = {"input_ids": rows, "attention_mask": [torch.ones_like(row) for row in rows]}
                inputs = {key: pad_sequence(ids, batch_first=True).to(self.model.device) for key, ids in batch.items()}
                encoded.append(
                    self.model.get_class_embeds(**inputs, num_templates=len(some[0]), with_prompts=with_prompts)
                )
        return torch.cat(encoded)[np.argsort(order).tolist()]


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
