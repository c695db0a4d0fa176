"""What a YAML configuration or the command line of `train.py` and `eval.py` can say."""

import argparse
import difflib
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any, NoReturn

import yaml
from huggingface_hub.errors import StrictDataclassError
from transformers import HfArgumentParser

from zegclip.modeling.configuration_zegclip import ZegClipConfig
from zegclip.trainer import ZegClipTrainingArguments


@dataclass
class ModelArguments:
    """Which CLIP, which decode head, which prompts."""

    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a CLIP or a zegclip model; none: the embedded one."}
    )
    decode_head_type: str | None = field(default=None, metadata={"help": "zegclip or similarity."})
    descriptor: list[str] | None = field(
        default=None, metadata={"help": "Terms of the relationship descriptor: product, text."}
    )
    num_decoder_layers: int | None = field(default=None, metadata={"help": "Layers of the decode head."})
    decoder_attention_heads: int | None = field(default=None, metadata={"help": "Heads of the decode head."})
    decoder_ffn_dim: int | None = field(default=None, metadata={"help": "Width of its feed-forward layers."})
    decoder_dropout: float | None = field(default=None, metadata={"help": "Dropout of the decode head."})
    decode_head_init: str | None = field(default=None, metadata={"help": "default or identity."})
    focal_weight: float | None = field(default=None, metadata={"help": "Weight of the focal loss."})
    dice_weight: float | None = field(default=None, metadata={"help": "Weight of the dice loss."})
    ignored_pixels_as_negatives: bool | None = field(
        default=None, metadata={"help": "Whether ignored pixels count as outside of every mask."}
    )
    prompt_templates: list[str] | None = field(default=None, metadata={"help": "Text templates, each with one {}."})
    num_prompt_tokens: int = field(default=10, metadata={"help": "Visual prompt tokens per layer."})
    num_deep_layers: int | None = field(
        default=None, metadata={"help": "Layers after the first with own prompts; none: all, 0: shallow, -n: last n."}
    )
    prompt_dropout: float = field(default=0.1, metadata={"help": "Dropout on the prompt tokens."})

    def config_overrides(self) -> dict[str, Any]:
        """The given fields of [`ZegClipConfig`]."""
        known = {item.name for item in fields(ZegClipConfig)}
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in given.items() if name in known and value is not None}


@dataclass
class DataArguments:
    """Which pictures, how they are cut, and what evaluation looks at."""

    dataset: str = field(default="picture_world", metadata={"help": "picture_world."})
    setting: str = field(default="inductive", metadata={"help": "inductive: masks of seen classes only."})
    num_train_pictures: int = field(default=4000, metadata={"help": "Scenes drawn for training."})
    num_eval_pictures: int = field(default=300, metadata={"help": "Scenes drawn for evaluation."})
    eval_split: str = field(default="tuning", metadata={"help": "tuning, for every choice; test, once at the end."})
    scene_seed: int = field(default=0, metadata={"help": "Seed of the drawn scenes."})
    crop_size: int | None = field(default=None, metadata={"help": "Side of training crops; none: the window size."})
    image_size: int | None = field(default=None, metadata={"help": "Short side of pictures; none: the processor's."})
    window_size: int | None = field(default=None, metadata={"help": "Side of sliding windows; none: the processor's."})
    window_stride: int | None = field(
        default=None, metadata={"help": "Step of sliding windows; none: the processor's."}
    )
    baseline: bool = field(
        default=True, metadata={"help": "eval.py: also evaluate the training-free baseline in the same windows."}
    )
    results_file: str | None = field(default=None, metadata={"help": "eval.py: write the figures there as JSON."})

    def image_processor_fields(self) -> dict[str, Any]:
        """The given fields of the image processor."""
        fields = {
            "size": None if self.image_size is None else {"shortest_edge": self.image_size},
            "window_size": self.window_size,
            "window_stride": self.window_stride,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def __post_init__(self) -> None:
        for name, allowed in {
            "dataset": ("picture_world",),
            "setting": ("inductive",),
            "eval_split": ("tuning", "test"),
        }.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}.")
        for name in (
            "num_train_pictures",
            "num_eval_pictures",
            "crop_size",
            "image_size",
            "window_size",
            "window_stride",
        ):
            if getattr(self, name) is not None and getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}.")


class _Parser(HfArgumentParser):
    """A parser whose complaints are exceptions, so that they come out as one sentence."""

    def error(self, message: str) -> NoReturn:
        raise ValueError(message)


def parse_arguments(
    argv: Sequence[str] | None = None, default_config: Path | None = None
) -> tuple[ModelArguments, DataArguments, ZegClipTrainingArguments]:
    """
    Read `[CONFIG.yaml] [--field value ...]`; the command line wins over the file, the file over the defaults.

    Args:
        argv: The words; `sys.argv[1:]` if not given.
        default_config: Read when no file is named; this is said in one line.

    Raises:
        ValueError: One sentence that names the file or field, for a missing file, YAML that is no mapping, an unknown
            field, a value of a wrong type, or values that contradict each other.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser([ModelArguments, DataArguments, ZegClipTrainingArguments])
    actions = {action.dest: action for action in parser._actions}
    path = default_config
    if words and not words[0].startswith("-"):
        path = Path(words.pop(0))
    elif path is not None and not {"-h", "--help"} & set(words):
        print(f"No configuration given: using {path.name} (the generated picture world, offline).")
    if path is not None:
        parser.set_defaults(**_read_yaml(path, actions))
    for word in words:
        if word.startswith("--") and (name := word[2:].split("=")[0].replace("-", "_")) not in actions:
            raise ValueError(f"The command line names the unknown field {name!r}.{_suggest(name, actions)}")
    return parser.parse_args_into_dataclasses(words, look_for_args_file=False)


def _read_yaml(path: Path, actions: Mapping[str, argparse.Action]) -> dict[str, Any]:
    """Read the fields of a file, with scalars as text, which argparse then turns into each field's type."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such configuration file.")
    try:
        content = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: not valid YAML ({str(error).splitlines()[0]}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a configuration is a mapping of fields to values.")
    for name, value in content.items():
        if name not in actions:
            raise ValueError(f"{path}: unknown field {name!r}.{_suggest(str(name), actions)}")
        takes_list = actions[name].nargs in ("+", "*")
        if takes_list != isinstance(value, list) and not (takes_list and value is None):
            raise ValueError(f"{path}: {name} must {'' if takes_list else 'not '}be a list, as it is {value!r}.")
        if value is None and actions[name].default is not None:
            raise ValueError(f"{path}: {name} has no value.")
        if isinstance(value, (bool, int, float)):
            content[name] = str(value)
    return content


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


@contextmanager
def complaints_of(script: str) -> Iterator[None]:
    """End the program with one sentence instead of a traceback where the user can mend what is wrong."""
    try:
        yield
    except StrictDataclassError as error:
        reason = str(error).strip().splitlines()[-1].strip()
        sys.exit(f"{script}: {reason.removeprefix('ValueError: ').removeprefix('TypeError: ')}")
    except (ValueError, OSError) as error:
        sys.exit(f"{script}: {str(error).strip().splitlines()[0]}")
