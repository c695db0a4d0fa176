"""The command `zegclip`: the parser of all commands, and one way to report their errors."""

import argparse
import io
import os
import sys
import warnings
from collections.abc import Sequence
from contextlib import nullcontext

import zegclip
from zegclip.commands import check, convert, demo, evaluate, export_data, import_, init, segment, share, train, verify
from zegclip.errors import TRACEBACK_VARIABLE, report_error
from zegclip.files import exiting_on_sigterm

COMMANDS = (segment, demo, import_, check, init, train, evaluate, export_data, convert, share, verify)
"""Each module imports what takes time only when it runs, so that help and usage errors come at once."""
RESUMABLE = ("segment", "train", "eval", "import", "verify")
"""Commands that continue from what has been saved."""


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; `run` of its result is the function of the command."""
    parser = argparse.ArgumentParser(
        prog="zegclip",
        description="Zero-shot semantic segmentation with CLIP.",
        epilog=f"What you can fix is reported in one sentence. {TRACEBACK_VARIABLE}=1 in the environment also prints "
        "its traceback.",
    )
    parser.add_argument("--version", action="version", version=f"zegclip {zegclip.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", dest="command", required=True)
    for command in COMMANDS:
        command.add_parser(commands)
    return parser


def main(argv: Sequence[str] | None = None, program: str = "zegclip") -> int:
    """
    Run a command.

    Args:
        argv: Arguments, by default those of the process.
        program: Prefix of error messages.

    Returns:
        The exit status: 0, 1 after an error (reported in one sentence on stderr), 130 after Ctrl-C. A usage error
        raises `SystemExit(2)`, as in argparse, and SIGTERM raises `SystemExit(143)`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name or label that the terminal cannot show is no reason to stop.
            stream.reconfigure(errors="backslashreplace")
    arguments = build_parser().parse_args(argv)
    # A process that waits for others in a collective operation would not notice the signal, so there SIGTERM keeps its
    # default action, and the next run removes temporary files. `zegclip segment` waits in Python.
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    try:
        with exiting_on_sigterm() if alone or arguments.command == "segment" else nullcontext():
            from huggingface_hub import constants
            from huggingface_hub.utils import enable_progress_bars
            from transformers.utils import logging

            logging.disable_progress_bar()  # for the weights of a model; the commands have bars of their own
            if not constants.HF_HUB_DISABLE_PROGRESS_BARS:
                enable_progress_bars()  # for downloads, which may take minutes
            # Too many pixels are reported in our own words, and damaged EXIF data does not matter.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            return arguments.run(arguments)
    except (Exception, KeyboardInterrupt) as error:
        return report_error(error, program, resumable=arguments.command in RESUMABLE)
