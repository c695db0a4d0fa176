"""The error of this folder, and what `@strict` of huggingface_hub says in one sentence."""

import re

from huggingface_hub.errors import StrictDataclassError


class ModelError(ValueError):
    """A model, adapter, checkpoint or configuration that the user can mend: it does not fit or cannot be read."""


def sentence_of_config_error(error: StrictDataclassError) -> str:
    """Return what is wrong with a configuration, in one sentence that names the field."""
    reason = str(error.__cause__)
    field = re.match("Validation error for field '(.+)'", str(error))
    return reason if field is None or field[1] in reason else f"{field[1]}: {reason}"


__all__ = ["ModelError", "sentence_of_config_error"]
