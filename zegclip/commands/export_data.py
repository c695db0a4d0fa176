"""`zegclip export-data`: write a data set, or predictions, in the format of another tool."""

import argparse
import sys
from pathlib import Path
from typing import Any

from zegclip.commands.options import add_data_options, load_data_of
from zegclip.errors import UsageError

_MOST_PRINTED = 20  # Broken files.


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "export-data",
        help="write a data set, or predictions, for annotation tools",
        description="Write pictures and masks in the format of other tools: COCO JSON with run lengths (coco), colour "
        "masks with labelmap.txt as in CVAT's Segmentation mask 1.1 (colours), or a black and white mask for each "
        "class and picture as in Label Studio's brush export (binary). DATASET may also be an output folder of "
        "zegclip segment, so that people can correct predictions. Pictures that cannot be read are listed and left "
        "out; then the exit status is 1.",
    )
    add_data_options(parser)
    parser.add_argument("target", type=Path, metavar="TARGET", help="new folder to write")
    parser.add_argument("--to", choices=("coco", "colours", "binary"), required=True, help="the format")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return 1 if a picture was left out."""
    from zegclip.exporting.export import export_data
    from zegclip.exporting.predictions import has_predictions, load_predictions
    from zegclip.files import check_new_folder

    check_new_folder(arguments.target)
    folder = Path(arguments.dataset)
    predicted = has_predictions(folder)
    places = (folder, *folder.glob("*/"))
    with_masks = any((place / "images").is_dir() and (place / "masks").is_dir() for place in places)
    if predicted and (with_masks or (folder / "metadata.jsonl").is_file()):
        raise UsageError(
            f"{folder} is a data set and has results of zegclip segment as well: move one of them to another folder."
        )
    for option in ("data-dir", "classes-file", "image-column", "mask-column"):
        if predicted and getattr(arguments, option.replace("-", "_")) is not None:
            raise UsageError(f"{folder} has results of zegclip segment, for which --{option} has no meaning.")
    data, split = load_predictions(folder) if predicted else load_data_of(arguments)
    done = export_data(data, split, arguments.target, arguments.to)
    for sentence in done.broken[:_MOST_PRINTED]:
        print(f"broken: {sentence}", file=sys.stderr)
    if len(done.broken) > _MOST_PRINTED:
        print(f"broken: {len(done.broken) - _MOST_PRINTED} more", file=sys.stderr)
    pictures = ", ".join(f"{name} {number}" for name, number in done.pictures.items())
    print(f"{arguments.target}: {len(split.names)} classes, pictures: {pictures}.")
    if done.ignored_share:
        print(f"note: {100 * done.ignored_share:.1f} % of the pixels are ignored: {_WHERE_IGNORED[arguments.to]}.")
    return 1 if done.broken else 0


_WHERE_IGNORED = {
    "coco": "they are in no annotation",
    "colours": "in labelmap.txt, they are background, or ignored where background is a class",
    "binary": "they are black in all masks",
}
