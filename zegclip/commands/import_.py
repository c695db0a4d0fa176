"""`zegclip import`: turn what annotation tools leave into a folder that training reads."""

import argparse
import re
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zegclip.commands.options import add_workers_option, fraction
from zegclip.errors import UsageError
from zegclip.importing import FORMATS

if TYPE_CHECKING:
    from zegclip.importing.pixel_masks import UnnamedColoursError
    from zegclip.importing.write import Outcome

_MOST_PRINTED = 20


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "import",
        help="turn pictures and annotations of any tool into a folder to train on",
        description="Read pictures with their masks, outlines or brush strokes in the layouts of annotation tools and "
        "benchmarks, and write them as images/SPLIT, masks/SPLIT and classes.txt, with a report and a contact sheet. "
        "The exit status is 1 if a file was skipped.",
    )
    parser.add_argument("source", type=Path, metavar="SOURCE", help="folder of pictures and annotations")
    parser.add_argument("target", type=Path, metavar="TARGET", help="folder to create")
    parser.add_argument(
        "--format",
        choices=FORMATS,
        help="how the source is annotated, where it does not tell; masks: one mask per picture, which are ids, "
        "colours or binary as they prove",
    )
    parser.add_argument(
        "--classes",
        type=Path,
        metavar="FILE",
        help="class names where the source has none: one per line, JSON from mask values to names, or a CSV of names "
        "and colours",
    )
    parser.add_argument("--ignore", nargs="+", default=(), metavar="NAME", help="classes whose pixels are ignored")
    parser.add_argument(
        "--validation", type=fraction, metavar="SHARE", help="share of the training pictures to validate with"
    )
    parser.add_argument(
        "--group-by",
        metavar="REGEX",
        help="with --validation: pictures in whose names the pattern's first group is the same, such as frames of one "
        "video, stay in one split",
    )
    parser.add_argument("--seed", type=int, default=0, help="of --validation (default: %(default)s)")
    parser.add_argument("--pictures", metavar="FOLDER", help="folder of the pictures, if it has an unusual name")
    parser.add_argument("--masks", metavar="FOLDER", help="folder of the masks, if it has an unusual name")
    parser.add_argument("--variable", metavar="NAME", help="array in .mat files, if there are several")
    parser.add_argument(
        "--copy", action="store_true", help="copy pictures (default: hard links, and copies where there are none)"
    )
    add_workers_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return 1 if a file was skipped or is broken."""
    from zegclip.importing.listing import list_source
    from zegclip.importing.pixel_masks import UnnamedColoursError
    from zegclip.importing.recognise import read_source
    from zegclip.importing.splitting import split_off_validation
    from zegclip.importing.write import describe_import, find_finished, outcome_of, write_source
    from zegclip.processing.datasets import load_pictures
    from zegclip.training.data_report import check_pictures

    source, target = arguments.source, arguments.target
    _check(arguments)
    listing = list_source(source, arguments.pictures, arguments.masks)
    names = ("format", "ignore", "validation", "group_by", "seed", "pictures", "masks", "variable", "copy")
    options = {name: getattr(arguments, name) for name in names}
    options["ignore"] = sorted(arguments.ignore)
    settings = describe_import(listing, options, arguments.classes)
    finished = find_finished(target, settings)
    if finished is not None:
        outcome = outcome_of(finished)
    else:
        try:
            found = read_source(listing, arguments.format, arguments.classes, arguments.variable, arguments.workers)
        except UnnamedColoursError as error:
            _list_colours(error, arguments)
            return 1
        if arguments.validation:
            items = split_off_validation(found.items, arguments.validation, arguments.seed, arguments.group_by)
            found.items = items
        print(f"{source}: read as {found.format}, {len(found.class_names)} classes.")
        outcome = write_source(
            found, target, settings, arguments.ignore, copy=arguments.copy, num_workers=arguments.workers
        )
    _print_outcome(outcome, arguments)
    if not outcome.splits:
        return 1
    data, split = load_pictures(str(target))
    report = check_pictures(data, split, target / "check", arguments.workers)
    return 1 if outcome.skipped or report["num_broken"] else 0


def _check(arguments: argparse.Namespace) -> None:
    source, target = arguments.source.resolve(), arguments.target.resolve()
    if target.is_relative_to(source) or source.is_relative_to(target):
        raise UsageError(f"{arguments.target}: source and target must lie beside each other, not one in the other.")
    if arguments.group_by is not None:
        if not arguments.validation:
            raise UsageError("--group-by is for --validation, which is missing.")
        try:
            re.compile(arguments.group_by)
        except re.error as error:
            raise UsageError(f"--group-by {arguments.group_by!r} is not a regular expression: {error}.") from error
    if arguments.validation == 1:
        raise UsageError("--validation 1 leaves nothing to train on.")


def _list_colours(error: "UnnamedColoursError", arguments: argparse.Namespace) -> None:
    """Print the colours, write a file to fill in, and raise the error that says so."""
    from zegclip.importing.colours import write_colours

    for colour, share in error.colours:
        numbers = " ".join(f"{channel:>3}" for channel in colour)
        print(f"  #{bytes(colour).hex()}  {numbers}  {100 * share:>6.2f} %")
    if error.other > 0:
        print(f"  other colours, such as those between two:  {100 * error.other:>6.2f} %")
    path = arguments.target.with_name(f"{arguments.target.name}_colours.csv")
    written = not path.exists()
    if written:
        write_colours(path, error.colours)
    raise UsageError(
        f"{error} Fill in the names in {path}{'' if written else ', which existed before,'} (a colour without a name "
        f"is ignored), and run the same command with --classes {path}."
    )


def _print_outcome(outcome: "Outcome", arguments: argparse.Namespace) -> None:
    from zegclip.importing.write import RECORD

    target = arguments.target
    for note in outcome.notes:
        print(f"note: {note}")
    total = outcome.pixels.total()
    if unlisted := outcome.pixels["unlisted"]:
        print(f"note: {100 * unlisted / total:.2f} % of the pixels are near no listed colour, and are ignored.")
    for skipped in outcome.skipped[:_MOST_PRINTED]:
        print(f"skipped: {skipped.file}: {skipped.reason}")
    if len(outcome.skipped) > _MOST_PRINTED:
        print(f"skipped: {len(outcome.skipped) - _MOST_PRINTED} more, see {target / RECORD}")
    splits = ", ".join(f"{count} in {split}" for split, count in sorted(outcome.splits.items())) or "no pictures"
    before = f" ({outcome.done_before} were done before)" if outcome.done_before else ""
    print(f"{target}: {splits}{before}; {len(outcome.skipped)} skipped.")
    if outcome.linked:
        print(
            f"{outcome.linked} pictures are hard links: they stay if {arguments.source} is moved or deleted, but a "
            "picture that is edited in place changes in both; --copy makes copies."
        )
    if outcome.copied and not arguments.copy:
        print(f"{outcome.copied} pictures were copied, as they cannot be linked from there.")
