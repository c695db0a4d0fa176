"""
Write what users can rely on, one line each: commands, fields of configurations and of files, names in Python.

    python .ci/manifest.py > tests/public_surface.txt

Help texts and annotations of methods are left out: they may be reworded. `tests/test_public_surface.py` compares the
file with the code, so that a change of the surface is a change of that file.
"""

import argparse
import configparser
import enum
import inspect
import os
import re
import typing
from collections.abc import Callable, Iterator
from dataclasses import MISSING, fields, is_dataclass
from pathlib import Path
from typing import Any
from unittest import mock

import evaluate
import peft
import transformers
from transformers.pipelines import PIPELINE_REGISTRY

import zegclip
from zegclip.commands.main import build_parser
from zegclip.modeling.convert_official_checkpoint import convert
from zegclip.training.arguments import DataArguments, ModelArguments
from zegclip.training.training_arguments import ZegClipTrainingArguments

ROOT = Path(__file__).parents[1]
PIPELINE = zegclip.ZeroShotImageSegmentationPipeline


def manifest() -> str:
    """Return the sorted lines."""
    with mock.patch("os.cpu_count", return_value=8):  # the default of an option follows from it
        parser = build_parser()
    config = configparser.ConfigParser()
    config.read(ROOT / "setup.cfg")
    image_processor = zegclip.ZegClipImageProcessorPil().to_dict()
    del image_processor["image_processor_type"]
    lines = {
        *(f"script {line}" for line in config["options.entry_points"]["console_scripts"].split("\n") if line),
        *(f"configuration {path.stem}" for path in (ROOT / "configs").glob("*.yaml")),
        *commands(parser, "zegclip"),
        *new_fields("train.py, eval.py: model", ModelArguments),
        *new_fields("train.py, eval.py: data", DataArguments),
        *new_fields("train.py, eval.py: training", ZegClipTrainingArguments, transformers.TrainingArguments),
        *new_fields("ZegClipConfig", zegclip.ZegClipConfig, transformers.PreTrainedConfig),
        *new_fields("DeepPromptConfig", zegclip.DeepPromptConfig, peft.PeftConfig),
        *(f"image processor: {name} = {value!r}" for name, value in image_processor.items()),
        *(f"pipeline call: {line}" for line in documented_arguments(PIPELINE)),
        *(f"pipeline {name}" for name, task in PIPELINE_REGISTRY.supported_tasks.items() if task["impl"] is PIPELINE),
        f"model_type {zegclip.ZegClipConfig.model_type}",
        f"peft_type {zegclip.DeepPromptConfig().peft_type.value}",
        f"convert{signature(convert)}",
        f"METRIC compute{signature(evaluate.load(zegclip.METRIC)._compute)}",
    }
    output = inspect.signature(zegclip.ZegClipForSemanticSegmentation.forward).return_annotation
    lines |= set(new_fields("output of ZegClipForSemanticSegmentation", output))
    for name in zegclip.__all__:
        lines.add(f"zegclip.{name}")
        if inspect.isclass(getattr(zegclip, name)):
            lines |= set(own_members(name, getattr(zegclip, name)))
    return "\n".join(sorted(lines)) + "\n"


def commands(parser: argparse.ArgumentParser, prefix: str) -> Iterator[str]:
    """Yield a line for each option and argument of a parser and of its commands."""
    position = 0
    for action in parser._actions:
        if isinstance(action, argparse._HelpAction):
            continue
        if isinstance(action, argparse._SubParsersAction):
            for name, command in action.choices.items():
                yield f"{prefix} {name}"
                yield from commands(command, f"{prefix} {name}")
            continue
        nargs = "flag" if action.nargs == 0 else action.nargs
        # A function that checks a value says in its annotation what it returns.
        kind = action.type and typing.get_type_hints(action.type).get("return", action.type).__name__
        details = [str(item) for item in (nargs, kind, action.choices and list(action.choices)) if item]
        if action.option_strings:
            default = "required" if action.required else show(action.default)
            line = [", ".join(action.option_strings), *details, default]
        else:
            position += 1
            line = [f"{position}: {action.metavar or action.dest}", *details]
        yield " ".join([prefix, *line])
    for group in parser._mutually_exclusive_groups:
        names = [action.option_strings[0] for action in group._group_actions]
        yield f"{prefix} one of {' '.join(names)}{' required' if group.required else ''}"


def new_fields(title: str, cls: Any, parent: Any = None) -> Iterator[str]:
    """Yield a line for each field of a dataclass that `parent` does not have, or has with another default."""
    before = {} if parent is None else {item.name: default_of(item) for item in fields(parent)}
    # Not the types of `fields`, which HfArgumentParser changes.
    types = {name: kind for base in reversed(cls.__mro__) for name, kind in inspect.get_annotations(base).items()}
    for item in fields(cls):
        if item.name not in before or before[item.name] != default_of(item):
            kind = re.sub(r"\b(?:\w+\.)+(?=\w)", "", inspect.formatannotation(types[item.name]))
            yield f"{title}: {item.name}: {kind} = {show(default_of(item))}"


def default_of(item: Any) -> Any:
    """Return a field's default, also where it is made by a function."""
    return item.default if item.default_factory is MISSING else item.default_factory()


def documented_arguments(cls: type) -> list[str]:
    """Return the names in the "Args:" of a class's `__call__`, with what stands in brackets behind them."""
    text = (inspect.getdoc(cls.__call__) or "").split("\nArgs:\n")[1].split("\n\n")[0]
    names = re.findall(r"^ {4}(\w+(?: \(.*?\))?):", text, re.MULTILINE)
    return [name for name in names if name != "kwargs"]


def own_members(name: str, cls: type) -> Iterator[str]:
    """Yield a line for each public method and property that this package defines; what it overrides is marked."""
    ours = [base for base in cls.__mro__ if base.__module__.startswith("zegclip.")]
    others = [base for base in cls.__mro__ if base not in ours and base is not object]
    shown = ("__call__",) if is_dataclass(cls) else ("__call__", "__init__")
    for member in {member for base in ours for member in vars(base)}:
        mark = " (overrides)" if any(member in vars(base) for base in others) else ""
        if member.startswith("_") and member not in shown:
            continue
        if isinstance(inspect.getattr_static(cls, member), property):
            yield f"{name}.{member} property{mark}"
        elif inspect.isroutine(getattr(cls, member)):
            yield f"{name}.{member}{signature(getattr(cls, member))}{mark}"


def signature(function: Callable) -> str:
    """Return a signature without annotations."""
    found = inspect.signature(function)
    bare = [parameter.replace(annotation=inspect.Parameter.empty) for parameter in found.parameters.values()]
    return str(found.replace(parameters=bare, return_annotation=inspect.Signature.empty))


def show(value: Any) -> str:
    """Write a default as it is in a file or on the command line."""
    if isinstance(value, enum.Enum):
        return repr(value.value)
    return os.fspath(value) if isinstance(value, Path) else repr(value)


if __name__ == "__main__":
    print(manifest(), end="")
