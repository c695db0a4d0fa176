"""Configuration files: their names, and YAML that is read as the fields' types ask for."""

import argparse
import difflib
import re
import reprlib
from collections.abc import Iterable, Mapping
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar

import yaml
from transformers import TrainingArguments
from transformers.hf_argparser import string_to_bool

from zegclip.errors import UsageError

CONFIGS = Path(str(files("zegclip.configs")))
"""Folder of the configurations that come with the package."""


def find_config(name: str) -> Path:
    """
    Return the configuration file at a path, or else the one of this name that comes with the package.

    Raises:
        UsageError: If there is neither.
    """
    if Path(name).is_file():
        return Path(name)
    packaged = {path.stem: path for path in CONFIGS.glob("*.yaml")}
    if name not in packaged:
        raise UsageError(f"{name}: there is no such configuration file or name.{suggest(Path(name).stem, packaged)}")
    return packaged[name]


def suggest(name: str, known: Iterable[str]) -> str:
    """Return a question about the most similar name, or nothing if none is similar."""
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


def read_config(path: Path, actions: Mapping[str, argparse.Action]) -> dict[str, Any]:
    """
    Read a configuration file.

    Args:
        path: YAML, a mapping of fields to values.
        actions: By field, of the parser that converts the values.

    Returns:
        Scalars as text, as they are written: argparse converts them to the type of the field. Lists converted.

    Raises:
        UsageError: If it is not valid YAML, or has an unknown field or a value that does not fit one.
    """
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_YamlLoader)  # noqa: S506 (it is a SafeLoader)
    except Exception as error:  # Constructors of tags raise errors of their own: there is no 30th of February.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise UsageError(f"{path}: not valid YAML ({reason}).") from error
    if not isinstance(content, dict):
        raise UsageError(f"{path}: a configuration is a mapping of fields to values.")
    for name, value in content.items():
        if name not in actions:
            raise UsageError(f"{path}: unknown field {name!r}.{suggest(str(name), actions)}")
        content[name] = _convert_value(f"{path}: {name}", value, actions[name])
    return content


def _convert_value(field: str, value: Any, action: argparse.Action) -> Any:
    takes_list = action.nargs in ("+", "*")
    if takes_list != isinstance(value, list) and not (takes_list and value is None):
        raise UsageError(f"{field} must {'' if takes_list else 'not '}be a list, as it is {_brief(value)}.")
    if value is None and action.default is not None:
        raise UsageError(f"{field} has no value.")
    if isinstance(value, list):
        return _convert_items(field, value, action.type)
    if isinstance(value, dict) and action.dest in TrainingArguments._VALID_DICT_FIELDS:
        return value
    if not isinstance(value, (str, NoneType)):  # argparse would take it as it is
        raise UsageError(f"{field} must be text or a number, as it is {_brief(value)}.")
    if action.type is string_to_bool and value in ("on", "On", "ON", "off", "Off", "OFF"):
        return str(value.lower() == "on")  # valid in YAML 1.1, but not in argparse
    return value


def _convert_items(field: str, items: list, wanted: Any) -> list:
    """Convert a list, since argparse converts the defaults that are text alone."""
    if any(isinstance(item, (list, dict)) for item in items):
        raise UsageError(f"{field} must be a list of text or numbers, not {_brief(items)}.")
    if None in items:
        raise UsageError(f"{field} has an item without a value; a name such as null needs quotes.")
    if wanted not in (int, float):
        return [str(item) for item in items]
    try:
        return [wanted(str(item)) for item in items]
    except (TypeError, ValueError) as error:
        raise UsageError(f"{field} must be a list of numbers, not {_brief(items)}.") from error


def _brief(value: Any) -> str:
    """Shorten a value: with YAML anchors, a few lines can make a very long one."""
    shown = reprlib.Repr()
    shown.maxlevel = 2
    shown.maxstring = shown.maxother = 80
    return shown.repr(value)


class _YamlLoader(yaml.SafeLoader):
    """
    A safe loader that keeps the scalars of fields and lists as they are written.

    YAML 1.1, which PyYAML implements, reads the class names `no` and `on` as booleans, `12:30` as 750, `010` as 8, and
    a folder's name `2026_01` as 202601. Here the type of the field decides. In mappings, whose items have no declared
    types, numbers are decimal (`010` is 10) and booleans may have any form.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list]] = {
        first: [(tag, written) for tag, written in resolvers if not tag.endswith((":int", ":float", ":timestamp"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_document(self, node: yaml.Node) -> Any:
        """Build the document from its nodes."""
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in keys:
                if keys.count(key) > 1:  # The last one would silently win.
                    raise yaml.YAMLError(f"{_brief(key)} comes twice")
            self.flatten_mapping(node)
            for key, value in node.value:
                for item in (key, *value.value) if isinstance(value, yaml.SequenceNode) else (key, value):
                    if item.tag in _TYPES_OF_TEXT:
                        item.tag = self.DEFAULT_SCALAR_TAG
        return super().construct_document(node)


_TYPES_OF_TEXT = {f"tag:yaml.org,2002:{name}" for name in ("bool", "float", "int", "timestamp")}
_DIGITS = list("-+.0123456789")
_YamlLoader.add_implicit_resolver("tag:yaml.org,2002:int", re.compile(r"^[-+]?(0|[1-9]\d*)$"), _DIGITS)
_YamlLoader.add_implicit_resolver(
    "tag:yaml.org,2002:float", re.compile(r"^[-+]?(\d+(\.\d*)?|\.\d+)([eE][-+]?\d+)?$"), _DIGITS
)
