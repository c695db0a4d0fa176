"""What a YAML configuration or the command line of `train.py` and `eval.py` can say."""

import argparse
import difflib
import os
import re
import reprlib
import signal
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, field, fields
from importlib.resources import files
from pathlib import Path
from types import NoneType
from typing import Any, ClassVar, NoReturn, get_args

import yaml
from huggingface_hub.errors import StrictDataclassError
from tqdm import tqdm
from transformers import HfArgumentParser
from transformers.hf_argparser import string_to_bool

from zegclip.errors import explain_fault, sentence_of
from zegclip.files import exiting_on_sigterm
from zegclip.modeling.configuration_zegclip import ZegClipConfig
from zegclip.modeling.model_error import sentence_of_config_error
from zegclip.modeling.prompt_config import DeepPromptConfig
from zegclip.processing.benchmarks import BENCHMARKS
from zegclip.processing.class_split import Setting
from zegclip.training.trainer import ZegClipTrainingArguments


@dataclass
class ModelArguments:
    """Which CLIP, which decode head, which prompts."""

    model: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of a CLIP or a zegclip model; none: the embedded one."}
    )
    init_adapter: str | None = field(
        default=None, metadata={"help": "Folder or Hub id of an adapter to go on from; none: fresh prompts and head."}
    )
    decode_head_type: str | None = field(
        default=None, metadata={"help": "zegclip, spectral, consensus or similarity."}
    )
    descriptor: list[str] | None = field(
        default=None, metadata={"help": "Terms of the relationship descriptor: product, text, difference."}
    )
    num_decoder_layers: int | None = field(default=None, metadata={"help": "Layers of the decode head."})
    decoder_attention_heads: int | None = field(default=None, metadata={"help": "Heads of the decode head."})
    decoder_ffn_dim: int | None = field(default=None, metadata={"help": "Width of its feed-forward layers."})
    decoder_dropout: float | None = field(default=None, metadata={"help": "Dropout of the decode head."})
    decoder_window_size: int | None = field(default=None, metadata={"help": "Spectral, consensus: side of windows."})
    decoder_low_frequency_heads: int | None = field(
        default=None, metadata={"help": "Spectral: how many of the heads look at low frequencies."}
    )
    decoder_top_k: int | None = field(
        default=None, metadata={"help": "Consensus: at how many windows a window looks; 0: no self-attention."}
    )
    out_indices: list[int] | None = field(
        default=None, metadata={"help": "Consensus: layers of the vision tower that enter it, counted from 0."}
    )
    decode_head_init: str | None = field(default=None, metadata={"help": "default or identity."})
    focal_weight: float | None = field(default=None, metadata={"help": "Weight of the focal loss."})
    dice_weight: float | None = field(default=None, metadata={"help": "Weight of the dice loss."})
    ssim_weight: float | None = field(default=None, metadata={"help": "Weight of the structural similarity loss."})
    ssim_of_probabilities: bool | None = field(
        default=None, metadata={"help": "Whether that loss looks at probabilities instead of logits."}
    )
    cross_entropy_weight: float | None = field(default=None, metadata={"help": "Weight of a cross-entropy."})
    ignored_pixels_as_negatives: bool | None = field(
        default=None, metadata={"help": "Whether ignored pixels count as outside of every mask."}
    )
    prompt_templates: list[str] | None = field(default=None, metadata={"help": "Text templates, each with one {}."})
    num_prompt_tokens: int = field(default=10, metadata={"help": "Visual prompt tokens per layer; 0: none."})
    num_deep_layers: int | None = field(
        default=None, metadata={"help": "Layers after the first with own prompts; none: all, 0: shallow, -n: last n."}
    )
    prompt_dropout: float = field(default=0.1, metadata={"help": "Dropout on the prompt tokens."})
    spectral_prompt: bool = field(default=False, metadata={"help": "Whether patches get a spectral prompt."})
    spectral_layers: list[int] = field(
        default_factory=lambda: [0, 1], metadata={"help": "Layers whose incoming patches get the spectral prompt."}
    )
    spectral_grid_size: int | None = field(
        default=None, metadata={"help": "Side of the patch grid that its filter is for; none: that of training crops."}
    )

    double_class_embedding: bool = field(
        default=False, metadata={"help": "Whether the class embedding is added twice, as in the official code."}
    )
    text_prompts: str | None = field(
        default=None,
        metadata={
            "help": "whole: a text prompt for each token of the template, start and end included; words: for its "
            "words alone; none: the text tower is frozen."
        },
    )
    text_prompt_init: str = field(
        default="template", metadata={"help": "template or random: what text prompts start from."}
    )

    def __post_init__(self) -> None:
        if self.text_prompts == "none":  # the only way to take them out of a file on the command line
            self.text_prompts = None

    def config_overrides(self) -> dict[str, Any]:
        """The given fields of [`ZegClipConfig`]."""
        known = {item.name for item in fields(ZegClipConfig)}
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in given.items() if name in known and value is not None}

    def prompt_config(self, grid_size: int | None, text_prompt_ids: list[int] | None = None) -> DeepPromptConfig:
        """
        The adapter's configuration.

        Args:
            grid_size: Side of the training crops in patches.
            text_prompt_ids: Of the template that text prompts stand for, see [`DeepPromptConfig`].
        """
        if self.spectral_grid_size is not None or not self.spectral_prompt:
            grid_size = self.spectral_grid_size
        return DeepPromptConfig(
            num_tokens=self.num_prompt_tokens,
            num_deep_layers=self.num_deep_layers,
            dropout=self.prompt_dropout,
            spectral_prompt=self.spectral_prompt,
            spectral_layers=self.spectral_layers,
            spectral_grid_size=grid_size,
            double_class_embedding=self.double_class_embedding,
            text_prompts=self.text_prompts,  # type: ignore[arg-type]  # checked there
            text_prompt_ids=text_prompt_ids,
            text_prompt_init=self.text_prompt_init,  # type: ignore[arg-type]
        )


CONFIGS = Path(str(files("zegclip.configs")))
DEFAULT_CONFIG = CONFIGS / "zegclip_picture_world_inductive.yaml"
NAMED_DATASETS = ("picture_world", *BENCHMARKS)
SETTINGS = (*get_args(Setting), "cross_dataset")


@dataclass
class DataArguments:
    """Which pictures, how they are cut, and what evaluation looks at."""

    dataset: str = field(
        default="picture_world",
        metadata={"help": f"picture_world, {', '.join(BENCHMARKS)}, a folder of pictures and masks, or a Hub id."},
    )
    data_dir: str | None = field(
        default=None, metadata={"help": "Where VOC, COCO-Stuff or PASCAL Context lie, in their standard layout."}
    )
    classes_file: str | None = field(
        default=None,
        metadata={"help": "Class names: a text file, one a line by mask value, or id2label as JSON."},
    )
    seen_classes: list[str] | None = field(default=None, metadata={"help": "Names trained on; none: all but unseen."})
    unseen_classes: list[str] | None = field(
        default=None, metadata={"help": "Names held out; none: the data set's own, and for a folder or Hub id no one."}
    )
    ignored_classes: list[str] | None = field(
        default=None, metadata={"help": "Names taken out of the list; their pixels belong to no class."}
    )
    image_column: str | None = field(default=None, metadata={"help": "Of a Hub id, where it is not clear."})
    mask_column: str | None = field(default=None, metadata={"help": "Of a Hub id, where it is not clear."})
    setting: str = field(
        default="inductive",
        metadata={
            "help": "inductive: masks of seen classes only; transductive: then self-training on unseen ones; "
            "fully_supervised: masks of all; cross_dataset (eval.py): other classes than those trained on."
        },
    )
    self_training_steps: int | None = field(
        default=None, metadata={"help": "Transductive: steps of max_steps for the second stage; none: half of them."}
    )
    train_split: str = field(default="train", metadata={"help": "Name of the training split."})
    eval_split: str | None = field(
        default=None,
        metadata={"help": "Name of the evaluation split; none: validation, and tuning in the picture world."},
    )
    num_train_pictures: int | None = field(
        default=None, metadata={"help": "As many, evenly spread; none: all, and 4000 scenes of the picture world."}
    )
    num_eval_pictures: int | None = field(
        default=None, metadata={"help": "As many, evenly spread; none: all, and 300 scenes of the picture world."}
    )
    scene_seed: int = field(default=0, metadata={"help": "Seed of the picture world's scenes."})
    skip_bad_samples: bool = field(
        default=False,
        metadata={"help": "List pictures that cannot be read and go on, instead of stopping."},
    )
    crop_size: int | None = field(default=None, metadata={"help": "Side of training crops; none: the window size."})
    scale_range: list[float] | None = field(
        default_factory=lambda: [0.5, 2.0],
        metadata={"help": "Bounds of the random factor on image_size in training; empty: the picture's own size."},
    )
    long_side: int = field(default=2048, metadata={"help": "Times that factor: the longest that a side may become."})
    max_category_share: float = field(
        default=0.75, metadata={"help": "A crop with a larger share of one class is drawn again; 1: never."}
    )
    flip_probability: float = field(default=0.5, metadata={"help": "Of mirroring a training crop."})
    photometric_distortion: bool = field(default=True, metadata={"help": "Random brightness, contrast, colours."})
    image_size: int | None = field(default=None, metadata={"help": "Short side of pictures; none: the processor's."})
    window_size: int | None = field(default=None, metadata={"help": "Side of sliding windows; none: the processor's."})
    window_stride: int | None = field(
        default=None, metadata={"help": "Step of sliding windows; none: the processor's."}
    )
    baseline: bool = field(
        default=False, metadata={"help": "eval.py: also evaluate the training-free baseline in the same windows."}
    )
    results_dir: str | None = field(
        default=None, metadata={"help": "eval.py: folder for figures; none: eval_DATASET_SPLIT in output_dir."}
    )
    save_predictions: bool = field(default=False, metadata={"help": "eval.py: also save the predicted masks there."})

    def image_processor_fields(self) -> dict[str, Any]:
        """The given fields of the image processor."""
        fields = {
            "size": None if self.image_size is None else {"shortest_edge": self.image_size},
            "window_size": self.window_size,
            "window_stride": self.window_stride,
        }
        return {name: value for name, value in fields.items() if value is not None}

    def __post_init__(self) -> None:
        if self.setting not in SETTINGS:
            raise ValueError(f"setting must be one of {', '.join(SETTINGS)}, not {self.setting!r}.")
        if self.eval_split is None:
            self.eval_split = "tuning" if self.dataset == "picture_world" else "validation"
        if self.dataset == "picture_world" and self.eval_split not in ("tuning", "test"):
            raise ValueError(f"eval_split of the picture world must be tuning or test, not {self.eval_split!r}.")
        if self.dataset in BENCHMARKS and self.data_dir is None:
            raise ValueError(f"data_dir is missing: say where {self.dataset} lies, for example --data_dir data/voc.")
        for name in (
            "num_train_pictures",
            "num_eval_pictures",
            "self_training_steps",
            "crop_size",
            "long_side",
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
        known = word.split("=")[0] in parser._option_string_actions
        if word.startswith("--") and not known and (name := word[2:].split("=")[0].replace("-", "_")) not in actions:
            raise ValueError(f"The command line names the unknown field {name!r}.{_suggest(name, actions)}")
    parsed = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if parsed[-1].world_size != launched:
        # Without this, each would train on its own, into the same folder.
        raise ValueError(
            f"{launched} processes were launched, but they don't see each other, as there is no GPU for them: add "
            "--use_cpu, or launch one."
        )
    return parsed


def _read_yaml(path: Path, actions: Mapping[str, argparse.Action]) -> dict[str, Any]:
    """Read the fields of a file, with scalars as they are written, which argparse turns into each field's type."""
    if not path.is_file():
        raise ValueError(f"{path}: there is no such configuration file.")
    try:
        content = yaml.load(path.read_text(encoding="utf-8"), Loader=_YamlLoader)  # noqa: S506 (it is a SafeLoader)
    except Exception as error:  # Tags have constructors of their own: there is no 30th of February.
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise ValueError(f"{path}: not valid YAML ({reason}).") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: a configuration is a mapping of fields to values.")
    for name, value in content.items():
        if name not in actions:
            raise ValueError(f"{path}: unknown field {name!r}.{_suggest(str(name), actions)}")
        takes_list = actions[name].nargs in ("+", "*")
        if takes_list != isinstance(value, list) and not (takes_list and value is None):
            raise ValueError(f"{path}: {name} must {'' if takes_list else 'not '}be a list, as it is {_brief(value)}.")
        if value is None and actions[name].default is not None:
            raise ValueError(f"{path}: {name} has no value.")
        if isinstance(value, dict) and name in ZegClipTrainingArguments._VALID_DICT_FIELDS:
            continue
        if actions[name].type is string_to_bool and value in ("on", "On", "ON", "off", "Off", "OFF"):
            content[name] = str(value.lower() == "on")  # which YAML 1.1 has too, and argparse has not
        if isinstance(value, list):
            content[name] = _convert_items(path, name, value, actions[name].type)
        elif not isinstance(value, (str, NoneType)):  # argparse would take it as it is
            raise ValueError(f"{path}: {name} must be text or a number, as it is {_brief(value)}.")
    return content


def _convert_items(path: Path, name: str, items: list, wanted: Any) -> list:
    """Do for a list what argparse does for text alone."""
    if any(isinstance(item, (list, dict)) for item in items):
        raise ValueError(f"{path}: {name} must be a list of text or numbers, not {_brief(items)}.")
    if None in items:
        raise ValueError(f"{path}: {name} has an item without a value; a name such as null needs quotes.")
    if wanted not in (int, float):
        return [str(item) for item in items]
    try:
        return [wanted(str(item)) for item in items]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: {name} must be a list of numbers, not {_brief(items)}.") from error


def _brief(value: Any) -> str:
    """Show a value, of which anchors in a few lines can make a long one."""
    shown = reprlib.Repr()
    shown.maxlevel = 2
    shown.maxstring = shown.maxother = 80
    return shown.repr(value)


class _YamlLoader(yaml.SafeLoader):
    """
    Safe, and keeps the scalars of fields and lists as they are written.

    YAML 1.1, which PyYAML follows, would read the class names `no` and `on` as truth values, `12:30` as 750 and `010`
    as 8, and call a folder `2026_01` 202601. What a value is, its field says; in mappings, whose parts no field
    declares, numbers are decimal (`010` is 10) and truth values come in any form.
    """

    yaml_implicit_resolvers: ClassVar[dict[str, list]] = {
        first: [(tag, written) for tag, written in resolvers if not tag.endswith((":int", ":float", ":timestamp"))]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_document(self, node: yaml.Node) -> Any:
        """Build the whole from its nodes."""
        if isinstance(node, yaml.MappingNode):
            keys = [key.value for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
            for key in keys:
                if keys.count(key) > 1:  # The last one would win without a word.
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


def _suggest(name: str, known: Iterable[str]) -> str:
    close = difflib.get_close_matches(name, list(known), n=1)
    return f" Did you mean {close[0]!r}?" if close else ""


@contextmanager
def complaints_of(script: str) -> Iterator[None]:
    """
    End the program with one sentence instead of a traceback where the user can mend what is wrong.

    SIGTERM is an exit like any other, without leftovers. Not among several processes: where one waits for the others
    it would not notice, so SIGTERM ends it as it is, and the next run clears up.
    """
    alone = os.environ.get("WORLD_SIZE", "1") == "1"
    try:
        with exiting_on_sigterm() if alone else nullcontext():
            yield
    except StrictDataclassError as error:
        _end(f"{script}: {sentence_of_config_error(error)}")
    except KeyboardInterrupt:
        _end(f"{script}: interrupted; the same command goes on from what has been saved.", 130)
    except Exception as error:
        if (fault := explain_fault(error)) is not None:
            _end(f"{script}: {fault} The same command goes on from what has been saved.")
        # Such as `report_to: wandb` without it.
        lacks_package = isinstance(error, RuntimeError) and "to be installed" in str(error)
        if not lacks_package and not isinstance(error, (ValueError, OSError, FloatingPointError)):
            raise
        _end(f"{script}: {sentence_of(error).removeprefix('ValueError: ').removeprefix('OSError: ')}")


def _end(sentence: str, status: int = 1) -> NoReturn:
    """Leave with a sentence on a line of its own, below all progress bars."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # or a data loader could complain of a dead worker once more
    for bar in list(tqdm._instances):
        bar.close()
    print(sentence, file=sys.stderr)
    sys.exit(status)
