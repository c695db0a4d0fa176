"""Types of options, and class names, that several commands read."""

import argparse
import os
import warnings
from collections.abc import Callable, Collection
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zegclip.errors import UsageError

if TYPE_CHECKING:
    from datasets import DatasetDict

    from zegclip.processing.class_split import ClassSplit

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


def add_data_options(parser: argparse.ArgumentParser) -> None:
    """Add what `load_pictures` needs to read pictures and masks."""
    parser.add_argument(
        "dataset",
        metavar="DATASET",
        help="a benchmark (voc, voc20, voc21, coco_stuff, coco_stuff171, coco_object, pascal_context_59, "
        "pascal_context_60, ade20k, cityscapes), a folder, or a Hub id such as owner/name",
    )
    parser.add_argument("--data-dir", metavar="DIR", help="folder of a benchmark, in its standard layout")
    parser.add_argument(
        "--classes-file",
        metavar="FILE",
        help="class names of a folder or Hub id: a text file, one per line in the order of mask values from 0, or "
        "JSON from mask values to names (default: its own classes.txt or id2label.json)",
    )
    parser.add_argument("--image-column", metavar="NAME", help="column of the pictures, if it is ambiguous")
    parser.add_argument("--mask-column", metavar="NAME", help="column of the masks, if it is ambiguous")


def load_data_of(
    arguments: argparse.Namespace, unseen: Collection[str] | None = None, ignored: Collection[str] = ()
) -> "tuple[DatasetDict, ClassSplit]":
    """Load what the options of [`add_data_options`] describe; see `load_pictures`."""
    from zegclip.processing.datasets import load_pictures

    return load_pictures(
        arguments.dataset,
        data_dir=arguments.data_dir,
        classes_file=arguments.classes_file,
        unseen=unseen,
        ignored=ignored,
        image_column=arguments.image_column,
        mask_column=arguments.mask_column,
    )


def add_output_option(parser: argparse.ArgumentParser, default: str) -> None:
    """Add `--output DIR`."""
    parser.add_argument(
        "--output", type=Path, default=Path(default), metavar="DIR", help="output folder (default: %(default)s)"
    )


def add_workers_option(parser: argparse.ArgumentParser) -> None:
    """Add `--workers N`."""
    parser.add_argument(
        "--workers",
        type=integer(0),
        default=min(os.cpu_count() or 1, 8),
        metavar="N",
        help="processes that read; 0: read in the main process (default: %(default)s)",
    )


def check_output_folder(output: Path) -> None:
    """Raise a [`UsageError`] if the output folder is a file."""
    if output.exists() and not output.is_dir():
        raise UsageError(f"{output}: the output must be a folder, but this is a file.")


def read_labels(path: Path) -> list[list[str]]:
    """
    Read class names from a UTF-8 text file, one class per line; blank lines are skipped.

    Returns:
        The names of each class, which "/" separates, as in "cat/kitten".

    Raises:
        UsageError: If it is not UTF-8 text, has no name or one that comes twice, or a comment.
        OSError: If it cannot be read.
    """
    from zegclip.processing.class_split import are_numbered
    from zegclip.processing.names import nested_classes, split_synonyms

    def read(lines: list[str]) -> list[list[str]]:
        if lines[0].startswith(("{", "[")):  # JSON would become names without an error
            raise UsageError(f"{path}: each line is a class name, but the first is {lines[0]!r}.")
        if are_numbered(lines):
            warnings.warn(f"{path}: the numbers are taken for part of the names, such as {lines[0]!r}.", stacklevel=2)
        return nested_classes(list(map(split_synonyms, lines)))

    return _read_lines(path, "class name", read)


def read_templates(path: Path) -> list[str]:
    """
    Read prompt templates from a UTF-8 text file, one per line; blank lines are skipped.

    Raises:
        UsageError: If it is not UTF-8 text, has no template or one without exactly one `{}`, or a comment.
        OSError: If it cannot be read.
    """
    from zegclip.processing.names import check_templates

    return _read_lines(path, "prompt template", check_templates)


def _read_lines(path: Path, what: str, check: Callable[[list[str]], list[Any]]) -> list[Any]:
    from zegclip.processing.class_split import refuse_comments
    from zegclip.processing.input_error import InputError

    try:
        text = path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise UsageError(f"{path}: this file is not UTF-8 text.") from error
    if "\0" in text:  # UTF-16 without a mark, for example
        raise UsageError(f"{path}: this file is not UTF-8 text.")
    # `str.splitlines` would also split at form feeds and other characters.
    lines = [line.strip() for line in text.split("\n") if line.strip()]
    if not lines:
        raise UsageError(f"{path}: this file is empty; give at least one {what}, one per line.")
    try:
        refuse_comments(lines, what)
        return check(lines)
    except InputError as error:
        raise UsageError(f"{path}: {error}") from error
