"""Files with one class id per pixel: pictures, and arrays of NumPy and MATLAB."""

from pathlib import Path
from typing import Any

import numpy as np

from zegclip.importing.listing import one_line
from zegclip.processing.image_reading import load_class_ids
from zegclip.processing.input_error import InputError


def load_ids(path: Path, variable: str | None = None) -> np.ndarray:
    """Read the ids of a mask: of a file that Pillow opens, of NumPy or of MATLAB. Raises as [`load_class_ids`]."""
    suffix = path.suffix.lower()
    if suffix == ".npy":
        try:
            values = np.load(path, allow_pickle=False)
        except (ValueError, EOFError) as error:
            raise InputError(f"{one_line(path)} is not a file of NumPy: {error}") from error
    elif suffix == ".mat":
        values = _load_mat(path, variable)
    else:
        return load_class_ids(path, equal_channels=True)
    if values.ndim == 3 and 1 in (values.shape[0], values.shape[2]):
        values = values[0] if values.shape[0] == 1 else values[..., 0]
    if values.ndim != 2 or values.size == 0 or values.dtype.kind not in "biuf":
        raise InputError(f"{one_line(path)} has {values.dtype} values of shape {values.shape}, which is no class map.")
    if values.dtype.kind == "f" and not (np.isfinite(values).all() and (values == np.rint(values)).all()):
        raise InputError(f"{one_line(path)} has fractions, which are no classes.")
    return values.astype(np.int64)


def _load_mat(path: Path, variable: str | None) -> np.ndarray:
    from scipy.io import loadmat

    try:
        content = loadmat(path, squeeze_me=False, struct_as_record=True)  # or a mask of one row is a list
    except Exception as error:  # Of many types for a damaged file; NotImplementedError for version 7.3.
        raise InputError(f"{one_line(path)} cannot be read as a file of MATLAB up to version 7.2: {error}") from error
    arrays = {
        name: array
        for variable_name, value in content.items()
        if not variable_name.startswith("__")
        for name, array in _arrays_in(variable_name, value)
    }
    # Beside a mask, a single number is something else.
    arrays = {name: array for name, array in arrays.items() if array.size > 1} or arrays
    if variable is not None:
        if variable not in arrays:
            raise InputError(f"{one_line(path)} has no array {variable!r}; it has {', '.join(arrays) or 'none'}.")
        return arrays[variable]
    if len(arrays) != 1:
        raise InputError(
            f"{one_line(path)} has {'several arrays' if arrays else 'no array'} of two dimensions "
            f"({', '.join(arrays)}): choose one with --variable."
        )
    return next(iter(arrays.values()))


def _arrays_in(name: str, value: Any) -> list[tuple[str, np.ndarray]]:
    """Return the arrays of two dimensions with numbers in a variable, also in the fields of structs."""
    if not isinstance(value, np.ndarray):
        return []
    if value.dtype.names is not None and value.size == 1:
        fields = value.ravel()[0]
        return [found for field in value.dtype.names for found in _arrays_in(f"{name}.{field}", fields[field])]
    return [(name, value)] if value.ndim == 2 and value.size and value.dtype.kind in "biuf" else []
