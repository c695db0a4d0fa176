"""`zegclip eval` and `eval.py`: evaluate a model on seen and unseen classes."""

import argparse
from typing import Any


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers."""
    # As in `zegclip train`, all words are left to the parser of the fields.
    parser = commands.add_parser(
        "eval", help="evaluate a model (--help lists the fields)", prefix_chars="+", add_help=False
    )
    parser.add_argument("words", nargs="*", metavar="NAME_OR_YAML --field value")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from zegclip.training.evaluate import evaluate

    evaluate(arguments.words)
    return 0
