"""`zegclip check`: read a data set before training on it."""

import argparse
from typing import Any

from zegclip.commands.options import (
    add_data_options,
    add_output_option,
    add_workers_option,
    check_output_folder,
    load_data_of,
)


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "check",
        help="check a data set before training on it",
        description="Read every picture and mask of a data set, count pictures, classes and pixels, list broken "
        "files, and draw a contact sheet. The exit status is 1 if a file is broken.",
    )
    add_data_options(parser)
    parser.add_argument(
        "--unseen-classes", nargs="*", metavar="NAME", help="classes held out from training (default: the papers')"
    )
    parser.add_argument(
        "--ignored-classes", nargs="*", metavar="NAME", default=(), help="classes whose pixels are ignored"
    )
    add_output_option(parser, "zegclip-check")
    add_workers_option(parser)
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return 1 if a picture or mask is broken."""
    from zegclip import DEFAULT_MODEL, ZegClipConfig
    from zegclip.files import remove_leftovers
    from zegclip.processing.benchmarks import BENCHMARKS, read_class_lists
    from zegclip.processing.names import find_unknown_words
    from zegclip.training.data_report import check_pictures

    check_output_folder(arguments.output)
    remove_leftovers(arguments.output)
    data, split = load_data_of(arguments, unseen=arguments.unseen_classes, ignored=arguments.ignored_classes)
    if arguments.dataset not in BENCHMARKS:  # whose configurations name a CLIP
        vocabulary = ZegClipConfig.from_pretrained(DEFAULT_MODEL).vocabulary
        unknown = find_unknown_words(split.all_names(), vocabulary, model="the embedded model")
        if unknown is not None:
            print(f"note: for a training without --model: {unknown}")
    num_expected = read_class_lists().get(arguments.dataset, {}).get("num_pictures")
    report = check_pictures(data, split, arguments.output, arguments.workers, num_expected)
    return 1 if report["num_broken"] else 0
