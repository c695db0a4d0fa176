"""`zegclip train` and `train.py`: train a zero-shot segmentation adapter."""

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers."""
    # Without options of its own (no "-" among the prefixes), all words are left to the parser of the fields, whose
    # dataclasses take seconds to import.
    parser = commands.add_parser(
        "train", help="train an adapter (--help lists the fields)", prefix_chars="+", add_help=False
    )
    parser.add_argument("words", nargs="*", metavar="NAME_OR_YAML --field value")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from zegclip.training.train import train

    train(arguments.words)
    return 0
