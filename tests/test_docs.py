"""Python blocks of the documents run, commands are accepted by their programs' parsers, and links have targets."""

import argparse
import contextlib
import os
import re
import runpy
import shlex
import shutil
import subprocess
import sys
from itertools import product
from pathlib import Path

import pytest
from accelerate.commands.launch import launch_command_parser
from PIL import Image
from torch.distributed.run import get_args_parser

from zegclip import DEFAULT_MODEL
from zegclip.commands.main import build_parser
from zegclip.loading import load_base, load_processor
from zegclip.training.arguments import DEFAULT_CONFIG, parse_arguments

pytestmark = pytest.mark.thorough

ROOT = Path(__file__).parents[1]
NAMES = ["README.md", "CONTRIBUTING.md", "picture_world/README.md"]
NAMES += sorted(f"docs/{path.name}" for path in ROOT.glob("docs/*.md"))
PAGES = {name: (ROOT / name).read_text(encoding="utf-8") for name in NAMES}
FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
PROGRAMS = ("python", "torchrun", "accelerate", "zegclip", "make")
IMAGE_OR_LINK = re.compile(r"\]\(([^)\s]+)\)")


def python_blocks(text):
    """The blocks of a page as one source, each at its own line, so that errors name it."""
    source = ""
    for match in FENCE.finditer(text):
        if match[1] == "python":
            line = text[: match.start(2)].count("\n")
            source += "\n" * (line - source.count("\n")) + match[2]
    return source


def shell_commands(text):
    """Commands as lists of words, from plain and shell blocks, indented blocks and inline code."""
    blocks = [match[2] for match in FENCE.finditer(text) if match[1] in ("", "bash", "sh")]
    prose = FENCE.sub("", text)
    blocks += [match[0] for match in re.finditer(r"(?:^ {4}.*\n)+", prose, re.MULTILINE)]
    lines = [line.strip() for block in blocks for line in block.replace("\\\n", " ").splitlines()]
    # Inline code may be broken over lines. One or two words are the name of a program, not a command.
    spans = [" ".join(span.split()) for span in re.findall(r"`([^`]+)`", prose)]
    lines += [span for span in spans if len(span.split()) > 2 and not span.startswith("accelerate launch --cpu ")]
    for line in lines:
        line = re.sub(r"^(\w+=\S+ )+", "", line)
        if line.split(" ")[0] in PROGRAMS and not line.startswith("make ("):
            for expanded in expand_braces(line):
                yield shlex.split(expanded, comments=True)


def expand_braces(line):
    """Do what a shell does with `a_{b,c}`: two words."""
    words = []
    for word in line.split(" "):
        parts = re.split(r"\{([^{}]*,[^{}]*)\}", word)
        options = [part.split(",") if index % 2 else [part] for index, part in enumerate(parts)]
        words += ["".join(choice) for choice in product(*options)]
    yield " ".join(words)


class Parsed(BaseException):
    """Raised as soon as a script has parsed its arguments."""


def parse_as_script(start, words, monkeypatch):
    """Start a script with arguments, and stop it when its own parser has accepted them."""
    parse = argparse.ArgumentParser.parse_known_args  # which all other ways of parsing call

    def parse_and_stop(self, *arguments, **options):
        _, unknown = parse(self, *arguments, **options)
        if unknown:
            self.error(f"unknown arguments {unknown}")
        raise Parsed

    with monkeypatch.context() as patch:
        patch.setattr(argparse.ArgumentParser, "parse_known_args", parse_and_stop)
        patch.setattr(sys, "argv", ["script", *words])
        with pytest.raises(Parsed):
            start()


def check_command(words, monkeypatch):
    """Let the real parser of each program in a command read it; raises where that refuses it."""
    program, *rest = words
    if program == "make":
        targets = re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE)
        assert {word for word in rest if "=" not in word} <= set(targets)
        return
    if program in ("torchrun", "accelerate"):
        if program == "accelerate":
            assert rest.pop(0) == "launch"
        parser = get_args_parser() if program == "torchrun" else launch_command_parser()
        arguments = parser.parse_args(rest)
        rest = ["-m"] * bool(arguments.module) + [arguments.training_script, *arguments.training_script_args]
    elif program == "zegclip":
        rest = ["-m", "zegclip", *rest]
    if rest[:2] == ["-m", "zegclip"]:
        arguments = build_parser().parse_args(rest[2:])
        if arguments.command in ("train", "eval"):
            parse_arguments([*arguments.words, "--use_cpu"], DEFAULT_CONFIG)
    elif rest[0] == "-m":
        with contextlib.suppress(KeyError):
            monkeypatch.delitem(sys.modules, rest[1])
        parse_as_script(lambda: runpy.run_module(rest[1], run_name="__main__"), rest[2:], monkeypatch)
    elif rest[0] in ("train.py", "eval.py"):
        # Without a GPU, some settings ask for a CPU by name.
        parse_arguments([*rest[1:], "--use_cpu"], DEFAULT_CONFIG)
    else:
        monkeypatch.syspath_prepend(ROOT / "benchmarks")
        parse_as_script(lambda: runpy.run_path(rest[0], run_name="__main__"), rest[1:], monkeypatch)
    for word in words:
        if word.startswith(("configs/", "benchmarks/")):
            assert Path(word).exists(), f"{word}: there is no such file"


def complaint(words, monkeypatch, capsys):
    """The error message of a command in one line, empty if it is accepted."""
    try:
        check_command(words, monkeypatch)
    except (Exception, SystemExit) as error:
        printed = capsys.readouterr().err.strip().splitlines()
        return printed[-1] if printed and isinstance(error, SystemExit) else f"{type(error).__name__}: {error}"
    return ""


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A folder that looks like the repository's root to a command, with the files that the pages assume."""
    for name in (".ci", "configs", "benchmarks", "examples", "train.py", "eval.py"):
        (tmp_path / name).symlink_to(ROOT / name)
    shutil.copy(ROOT / "configs" / "zegclip_folder.yaml", tmp_path / "my-data.yaml")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("WORLD_SIZE", "1")
    return tmp_path


# The picture world's own page draws a thousand scenes, which its own tests do with fewer.
RUNNING = [page for page, text in PAGES.items() if python_blocks(text) and not page.startswith("picture_world")]


@pytest.mark.parametrize("page", RUNNING)
def test_python_blocks_run(page, tmp_path, monkeypatch):
    """Each page from top to bottom, beside a picture, a trained model where the commands leave theirs, and a CLIP."""
    monkeypatch.chdir(tmp_path)
    Image.effect_noise((120, 96), 80).convert("RGB").save("picture.png")
    Path("outputs").mkdir()
    Path("outputs/my-data").symlink_to(DEFAULT_MODEL)
    if "openai/clip" in python_blocks(PAGES[page]):  # A folder stands in for the Hub id.
        load_base(DEFAULT_MODEL, {}).clip.save_pretrained("openai/clip-vit-base-patch16")
        load_processor(DEFAULT_MODEL).save_pretrained("openai/clip-vit-base-patch16")
    exec(compile(python_blocks(PAGES[page]), page, "exec"), {"__name__": "__main__"})


COMMANDS = [(page, words) for page, text in PAGES.items() for words in shell_commands(text)]


@pytest.mark.parametrize("page", PAGES)
def test_commands_are_those_that_their_programs_know(page, place, monkeypatch, capsys):
    reasons = {shlex.join(words): complaint(words, monkeypatch, capsys) for named, words in COMMANDS if named == page}
    assert not {command: reason for command, reason in reasons.items() if reason}


def test_commands_are_found():
    """In all the forms in which they are written."""
    text = """
`zegclip segment` is a name, `zegclip bundle a b` a command, and so is `python train.py
configs/{x,y}.yaml --seed 1`.

    zegclip check folder    # a comment
    python eval.py \\
        --model there

```
A=1 torchrun -m zegclip segment a
what it prints
```
```yaml
zegclip: no command
```
"""
    assert list(shell_commands(text)) == [
        ["torchrun", "-m", "zegclip", "segment", "a"],
        ["zegclip", "check", "folder"],
        ["python", "eval.py", "--model", "there"],
        ["zegclip", "bundle", "a", "b"],
        ["python", "train.py", "configs/x.yaml", "configs/y.yaml", "--seed", "1"],
    ]
    found = [page for page, _ in COMMANDS]
    assert found.count("README.md") > 10
    assert found.count("docs/own_data.md") > 8


@pytest.mark.parametrize(
    ("command", "reason"),
    [
        ("python train.py configs/zegclip_voc_inductive.yaml --lerning_rate 1", "lerning_rate"),
        ("zegclip train zegclip_voc_inductiv", "zegclip_voc_inductive"),
        ("zegclip eval --modle there", "'modle'"),
        ("python trian.py", "No such file"),
        ("zegclip segmnt picture.png --labels cat", "invalid choice"),
        ("python benchmarks/not_there.py", "No such file"),
        ("python benchmarks/accuracy.py precision configs/not_there.yaml", "no such configuration file"),
        ("python benchmarks/speed.py inference --nams 2", "unknown arguments"),
        ("python -m zegclip.picture_world.dataset there --scenes 2", "unknown arguments"),
        ("torchrun --proc 2 train.py", "unrecognized arguments"),
        ("accelerate launch --config_file configs/not_there.yaml train.py", "there is no such file"),
        ("make tea", "tea"),
    ],
)
def test_a_wrong_command_is_noticed(command, reason, place, monkeypatch, capsys):
    assert reason in complaint(shlex.split(command), monkeypatch, capsys)


@pytest.mark.parametrize("page", PAGES)
def test_relative_links_lead_somewhere(page):
    prose = FENCE.sub("", PAGES[page])
    targets = [target for target in IMAGE_OR_LINK.findall(prose) if not target.startswith(("http", "#", "mailto:"))]
    missing = [target for target in targets if not (ROOT / page).parent.joinpath(target.split("#")[0]).exists()]
    assert not missing


@pytest.mark.slow
def test_the_page_on_own_data_works_from_top_to_bottom(place):
    """With a few scenes and steps instead of thousands."""
    fewer = {
        "examples/peoples_data.py": "--num-train 6 --num-val 6",
        "zegclip init": "--overwrite",
        "zegclip train": "--max_steps 3 --num_eval_pictures 2 --total_train_batch_size 2 --use_cpu",
        "zegclip eval": "--num_eval_pictures 2 --use_cpu",
        "zegclip import": "--workers 0",
        "zegclip check": "--workers 0",
        "zegclip segment": "",
        "zegclip export-data": "",
        "zegclip bundle": "",
    }
    page = "docs/own_data.md"
    text = PAGES[page]
    done = set()
    for words in shell_commands(text):
        line = shlex.join(words)
        (kind,) = [kind for kind in fewer if kind in line]
        start = [sys.executable] if words[0] == "python" else [sys.executable, "-m", words[0]]
        finished = subprocess.run(
            [*start, *words[1:], *fewer[kind].split()], cwd=place, capture_output=True, text=True, env=os.environ
        )
        assert finished.returncode == 0, f"{line}\n{finished.stderr[-2000:]}"
        done.add(kind)
    assert done == set(fewer)
    for name in ("check", "my-data/curves.png", "my-data/per_class.md", "with_baseline/results.json"):
        assert (place / "outputs" / name).exists()
    assert list((place / "outputs" / "my-data").glob("samples/step_*.png"))
    assert len(list((place / "outputs" / "masks").glob("*_mask.png"))) == 6
    assert (place / "outputs" / "my-data_whole" / "model.safetensors").is_file()
    Image.effect_noise((120, 96), 80).convert("RGB").save("picture.png")
    exec(compile(python_blocks(text), page, "exec"), {"__name__": "__main__"})
