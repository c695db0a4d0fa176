"""The command line as a whole: usage errors, help and the version, and what is imported for them."""

import subprocess
import sys

import pytest

import zegclip
from zegclip.commands.main import main


@pytest.mark.parametrize(
    "arguments",
    [
        [],
        ["segment", "a.png"],
        ["segment", "--labels", "cat"],
        ["segment", "a.png", "--labels", "cat", "--labels-file", "b.txt"],
        ["segment", "a.png", "--labels", "cat", "--threshold", "nan"],
        ["segment", "a.png", "--labels", "cat", "--threshold", "much"],
        ["segment", "a.png", "--labels", "cat", "--window-size", "0"],
        ["demo", "--seed", "-1"],
        ["check", "there", "--workers", "-1"],
        ["convert", "a.pth"],
        ["convert", "a.pth", "b", "--method", "other"],
        ["fly"],
    ],
)
def test_wrong_usage(arguments, capsys):
    with pytest.raises(SystemExit) as error:
        main(arguments)
    assert error.value.code == 2
    assert "usage: zegclip" in capsys.readouterr().err


def test_help_waits_for_no_library_that_takes_seconds():
    code = "import sys; from zegclip.commands.main import build_parser; build_parser(); print(*sys.modules)"
    imported = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.split()
    assert not {"torch", "transformers", "datasets", "numpy", "PIL", "yaml"} & set(imported)


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--version"], f"zegclip {zegclip.__version__}\n"),
        *(([*words, "--help"], "usage: zegclip") for words in ([], ["segment"], ["push"], ["train"], ["eval"])),
    ],
)
def test_help_and_version(words, expected, capsys):
    with pytest.raises(SystemExit) as error:
        main(words)
    assert error.value.code == 0
    assert expected in capsys.readouterr().out
