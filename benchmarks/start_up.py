"""
How long it takes from nothing to the first mask, and what a loaded pipeline holds at rest.

    python benchmarks/start_up.py

Each step is a process of its own; they take turns, so files come from the operating system's memory for all of them.
`zegclip segment` segments one picture with the embedded model into three names.
"""

import subprocess
import sys
import tempfile
from functools import partial
from pathlib import Path

import psutil
from measuring import TIMES, ArgumentParser, alternate, print_table, spread, write_report
from PIL import Image

IMPORTS = {
    "python alone": "pass",
    "import torch": "import torch",
    "import transformers": "import transformers",
    "transformers' own CLIPModel and pipeline": "from transformers import CLIPModel, pipeline",
    "import zegclip": "import zegclip",
    "import zegclip, and a class of it": "from zegclip import ZegClipForSemanticSegmentation",
    "the default pipeline": "import zegclip\nfrom transformers import pipeline\n"
    "segmenter = pipeline('zero-shot-image-segmentation', model=zegclip.DEFAULT_MODEL)",
}


def python(code: str) -> list[str]:
    """Return the command for a program."""
    return [sys.executable, "-c", code]


def at_rest(code: str) -> float:
    """MB that a process holds after a program."""
    words = python(f"{code}\nprint('ready', flush=True)\nimport sys; sys.stdin.read()")
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        while process.stdout.readline().strip() != "ready":
            if process.poll() is not None:
                raise RuntimeError(f"{code!r} has ended with status {process.returncode}.")
        held = psutil.Process(process.pid).memory_info().rss / 1e6
        process.communicate("")
    return held


COLUMNS = {"step": "{step}", **TIMES, "memory at rest, MB": "{at_rest_mb:.0f}"}


def main() -> None:
    """Parse the command line, measure, print the table and save it as JSON."""
    arguments = ArgumentParser(__doc__, "start_up.json", repeats=7).parse_args()
    with tempfile.TemporaryDirectory() as text:
        folder = Path(text)
        Image.effect_noise((640, 480), 60).convert("RGB").save(folder / "picture.png")
        segment = ["-m", "zegclip", "segment", str(folder / "picture.png"), "--labels", "house, boat, sky"]
        commands = {name: python(code) for name, code in IMPORTS.items()}
        commands["zegclip --help"] = [sys.executable, "-m", "zegclip", "--help"]
        commands["zegclip segment"] = [sys.executable, *segment, "--overwrite", "--output", str(folder / "masks")]
        steps = {
            name: partial(subprocess.run, words, check=True, capture_output=True) for name, words in commands.items()
        }
        times = alternate(steps, arguments.repeats, title="start-up")
    rows = [{"step": name, **spread(seconds)} for name, seconds in times.items()]
    for row in rows[: len(IMPORTS)]:
        row["at_rest_mb"] = at_rest(IMPORTS[row["step"]])
    print_table(rows, COLUMNS)
    write_report(arguments.output, {"rows": rows})


if __name__ == "__main__":
    main()
