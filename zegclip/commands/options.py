"""Types of options, and class names, that several commands read."""

import argparse
from collections.abc import Callable
from pathlib import Path

from zegclip.errors import UsageError

DTYPES = ("float32", "float16", "bfloat16")


def integer(minimum: int) -> Callable[[str], int]:
    """Return an option type: an integer of at least `minimum`."""

    def convert(text: str) -> int:
        try:
            number = int(text)
        except ValueError:
            number = minimum - 1
        if number < minimum:
            raise argparse.ArgumentTypeError(f"must be an integer of at least {minimum}, not {text!r}")
        return number

    return convert


def fraction(text: str) -> float:
    """Option type: a number in [0, 1]."""
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return number


def add_output_option(parser: argparse.ArgumentParser, default: str) -> None:
    """Add `--output DIR`."""
    parser.add_argument(
        "--output", type=Path, default=Path(default), metavar="DIR", help="output folder (default: %(default)s)"
    )


def check_output_folder(output: Path) -> None:
    """Raise a [`UsageError`] if the output folder is a file."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: the output must be a folder, but this is a file.")


def read_labels(path: Path) -> list[str]:
    """
    Read class names from a UTF-8 text file, one per line; blank lines are skipped.

    Raises:
        UsageError: If it is not UTF-8 text, or has no name or one that comes twice.
        OSError: If it cannot be read.
    """
    from zegclip.processing.input_error import InputError
    from zegclip.processing.names import check_labels

    try:
        # `str.splitlines` would also split at form feeds and other characters.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: this file is not UTF-8 text.") from error
    try:
        return check_labels([line for line in lines if line.strip()])
    except InputError as error:
        raise UsageError(f"{path}: {error}") from error
