"""The error of this folder."""


class ModelError(ValueError):
    """A model, adapter, checkpoint or configuration that the user can mend: it does not fit or cannot be read."""


__all__ = ["ModelError"]
