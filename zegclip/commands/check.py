"""`zegclip check`: read a data set before training on it."""

import argparse
import os
from typing import Any

from zegclip.commands.options import add_output_option, check_output_folder, integer


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "check",
        help="check a data set before training on it",
        description="Read every picture and mask of a data set, count pictures, classes and pixels, list broken "
        "files, and draw a contact sheet. The exit status is 1 if a file is broken.",
    )
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
    parser.add_argument(
        "--unseen-classes", nargs="*", metavar="NAME", help="classes held out from training (default: the papers')"
    )
    parser.add_argument(
        "--ignored-classes", nargs="*", metavar="NAME", default=(), help="classes whose pixels are ignored"
    )
    parser.add_argument("--image-column", metavar="NAME", help="column of the pictures, if it is ambiguous")
    parser.add_argument("--mask-column", metavar="NAME", help="column of the masks, if it is ambiguous")
    add_output_option(parser, "zegclip-check")
    parser.add_argument(
        "--workers",
        type=integer(0),
        default=min(os.cpu_count() or 1, 8),
        metavar="N",
        help="processes that read; 0: read in the main process (default: %(default)s)",
    )
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return 1 if a picture or mask is broken."""
    from zegclip import DEFAULT_MODEL, ZegClipConfig
    from zegclip.files import remove_leftovers
    from zegclip.processing.benchmarks import BENCHMARKS, read_class_lists
    from zegclip.processing.datasets import load_pictures
    from zegclip.processing.names import find_unknown_words
    from zegclip.training.data_report import check_pictures

    check_output_folder(arguments.output)
    remove_leftovers(arguments.output)
    data, split = load_pictures(
        arguments.dataset,
        data_dir=arguments.data_dir,
        classes_file=arguments.classes_file,
        unseen=arguments.unseen_classes,
        ignored=arguments.ignored_classes,
        image_column=arguments.image_column,
        mask_column=arguments.mask_column,
    )
    if arguments.dataset not in BENCHMARKS:  # whose configurations name a CLIP
        vocabulary = ZegClipConfig.from_pretrained(DEFAULT_MODEL).vocabulary
        unknown = find_unknown_words(split.all_names(), vocabulary, model="the embedded model")
        if unknown is not None:
            print(f"note: for a training without --model: {unknown}")
    num_expected = read_class_lists().get(arguments.dataset, {}).get("num_pictures")
    report = check_pictures(data, split, arguments.output, arguments.workers, num_expected)
    return 1 if report["num_broken"] else 0
