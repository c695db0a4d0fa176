"""The error of this folder."""


class InputError(ValueError):
    """A picture, mask, data set or list of names that the user can mend: it cannot be read or contradicts itself."""


__all__ = ["InputError"]
