"""Class embeddings of class names, each list encoded once, and prediction in evaluation mode."""

import threading
import warnings
import weakref
from collections.abc import Iterator, MutableMapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np
import torch

from .input_error import InputError
from .names import check_templates, warn_of_unknown_words
from .processing_zegclip import ZegClipProcessor

# Names per call of the text tower.
NAMES_AT_ONCE = 64
_LOCK = threading.Lock()
# For each model: how many threads predict with it, and whether it was in training mode before.
_PREDICTING: MutableMapping[Any, list[Any]] = weakref.WeakKeyDictionary()


class NameEncoder:
    """
    Encodes the names of one call, each list of them once.

    Args:
        model: In whatever state it is when a picture is processed.
        processor: For the tokens.
        hypothesis_template: Template or templates; `None` for those of the model's configuration.
    """

    def __init__(self, model: Any, processor: ZegClipProcessor, hypothesis_template: Sequence[str] | str | None):
        self.model = model
        self.processor = processor
        self.templates = None if hypothesis_template is None else check_templates(hypothesis_template)
        self.encoded: dict[Any, torch.Tensor] = {}

    def encode(self, labels: list[str]) -> torch.Tensor:
        """Class embeddings of the model in its current state, `(names, dim)`, L2-normalised, on its device."""
        templates = self.templates or list(self.model.config.prompt_templates)
        adapter = getattr(self.model.clip.text_model.encoder, "active_name", lambda: None)()  # with text prompts
        key = (*labels, *templates, adapter)
        if key not in self.encoded:
            if self.templates is None and templates != self.processor.prompt_templates:
                warnings.warn(
                    f"Names are put into the templates of the model's configuration, {templates}, and not into the "
                    f"processor's, {self.processor.prompt_templates}; give hypothesis_template to choose others.",
                    stacklevel=3,
                )
            warn_of_unknown_words(labels, self.model.config.vocabulary, templates, stacklevel=4)
            self.encoded[key] = self._encode(labels, templates)
        return self.encoded[key]

    def _encode(self, labels: list[str], templates: list[str]) -> torch.Tensor:
        tokens = self.processor(text=labels, prompt_templates=templates, return_tensors="pt")
        num_templates = int(tokens.pop("num_templates"))
        largest, vocab_size = int(tokens["input_ids"].max()), self.model.clip.config.text_config.vocab_size
        if largest >= vocab_size:
            raise InputError(
                f"The tokenizer does not match the model: it returns the token id {largest}, but the text tower has "
                f"{vocab_size} tokens."
            )
        by_name = {key: rows.view(len(labels), num_templates, -1) for key, rows in tokens.items()}
        # Names of similar length are encoded together, cut to their longest: padding all to a single long name would
        # slow every other down.
        order = sorted(range(len(labels)), key=lambda index: len(labels[index]))
        encoded = []
        with torch.no_grad(), in_eval_mode(self.model):
            for start in range(0, len(order), NAMES_AT_ONCE):
                some = order[start : start + NAMES_AT_ONCE]
                longest = int(by_name["attention_mask"][some].sum(dim=-1).max())
                batch = {
                    key: rows[some, :, :longest].flatten(0, 1).to(self.model.device) for key, rows in by_name.items()
                }
                encoded.append(self.model.get_class_embeds(**batch, num_templates=num_templates))
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
