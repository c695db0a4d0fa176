"""The fields of a training or evaluation, from a YAML configuration and the command line."""

import argparse
import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, NoReturn, get_args

from transformers import HfArgumentParser
from transformers.hf_argparser import HfArg

from zegclip.errors import UsageError, as_usage_errors
from zegclip.modeling.configuration_zegclip import ZegClipConfig
from zegclip.modeling.dense_attention import DenseEncoder
from zegclip.modeling.prompt_config import DeepPromptConfig
from zegclip.processing.benchmarks import BENCHMARKS
from zegclip.processing.class_split import Setting
from zegclip.training.config_file import CONFIGS, find_config, read_config, suggest
from zegclip.training.training_arguments import ZegClipTrainingArguments


@dataclass
class ModelArguments:
    """CLIP, decode head and prompts."""

    model: str | None = HfArg(
        default=None, help="Folder or Hub id of a CLIP or a zegclip model. Default: the embedded one."
    )
    init_adapter: str | None = HfArg(
        default=None, help="Folder or Hub id of an adapter to start from. Default: new prompts and head."
    )
    decode_head_type: str | None = HfArg(default=None, help="zegclip, spectral, consensus or similarity.")
    descriptor: list[str] | None = HfArg(
        default=None, help="Terms of the relationship descriptor: product, text, difference."
    )
    num_decoder_layers: int | None = HfArg(default=None, help="Layers of the decode head.")
    decoder_attention_heads: int | None = HfArg(default=None, help="Heads of the decode head.")
    decoder_ffn_dim: int | None = HfArg(default=None, help="Width of the decode head's feed-forward layers.")
    decoder_dropout: float | None = HfArg(default=None, help="Dropout of the decode head.")
    decoder_window_size: int | None = HfArg(default=None, help="Spectral, consensus: side of windows.")
    decoder_low_frequency_heads: int | None = HfArg(
        default=None, help="Spectral: number of heads for low frequencies."
    )
    decoder_top_k: int | None = HfArg(
        default=None, help="Consensus: number of windows that a window attends to; 0: no self-attention."
    )
    out_indices: list[int] | None = HfArg(
        default=None, help="Consensus: layers of the vision tower that it uses, counted from 0."
    )
    decode_head_init: str | None = HfArg(default=None, help="default or identity.")
    dense_attention: str | None = HfArg(
        default=None,
        help="Last layer of a vision tower without prompts: plain, maskclip, sclip, clearclip or naclip. Default: the "
        "model's.",
    )
    naclip_sigma: float | None = HfArg(default=None, help="NACLIP: width of the neighbourhood, in patches.")
    similarity_scale: float | None = HfArg(
        default=None, help="Similarity: factor of the cosines before their softmax. Default: the model's."
    )
    training_free_weight: float | None = HfArg(
        default=None,
        help="Weight, from 0 to 1, of what the CLIP says without training (NACLIP) in the scores of a trained model, "
        "which stores it. It takes a second pass. Default: 0 in training, the model's in evaluation.",
    )
    focal_weight: float | None = HfArg(default=None, help="Weight of the focal loss.")
    dice_weight: float | None = HfArg(default=None, help="Weight of the dice loss.")
    ssim_weight: float | None = HfArg(default=None, help="Weight of the structural similarity loss.")
    ssim_of_probabilities: bool | None = HfArg(
        default=None, help="Whether that loss compares probabilities instead of logits."
    )
    cross_entropy_weight: float | None = HfArg(default=None, help="Weight of a cross-entropy.")
    ignored_pixels_as_negatives: bool | None = HfArg(
        default=None, help="Whether ignored pixels count as negatives of every class."
    )
    prompt_templates: list[str] | None = HfArg(default=None, help="Prompt templates, each with one {}.")
    num_prompt_tokens: int = HfArg(default=10, help="Visual prompt tokens per layer; 0: no visual prompts.")
    num_deep_layers: int | None = HfArg(
        default=None, help="Number of layers after the first with prompts; 0: shallow, -n: the last n. Default: all."
    )
    prompt_dropout: float = HfArg(default=0.1, help="Dropout on the prompt tokens.")
    spectral_prompt: bool = HfArg(default=False, help="Whether to add a spectral prompt to the patches.")
    spectral_layers: list[int] = HfArg(
        default_factory=lambda: [0, 1], help="Layers with a spectral prompt at their input."
    )
    spectral_grid_size: int | None = HfArg(
        default=None, help="Side of its filter in patches. Default: that of training crops."
    )

    double_class_embedding: bool = HfArg(
        default=False, help="Whether to add the class embedding twice, as the official code does."
    )
    text_prompts: str | None = HfArg(
        default=None,
        help="whole: a text prompt for each token of the template, including start and end; words: for its "
        "words only; none: the text tower is frozen.",
    )
    text_prompt_init: str = HfArg(default="template", help="template or random: initialization of text prompts.")

    def __post_init__(self) -> None:
        if self.text_prompts not in (None, "whole", "words", "none"):
            raise UsageError(f"text_prompts must be whole, words or none, not {self.text_prompts!r}.")
        if self.text_prompts == "none":  # the only way to override a file on the command line
            self.text_prompts = None

    def config_overrides(self) -> dict[str, Any]:
        """Return the given fields of [`ZegClipConfig`]."""
        known = {item.name for item in fields(ZegClipConfig)}
        given = {item.name: getattr(self, item.name) for item in fields(self)}
        return {name: value for name, value in given.items() if name in known and value is not None}

    def training_free_overrides(self) -> dict[str, Any]:
        """Return those of [`config_overrides`] that also apply to a model that is not trained any more."""
        names = ("dense_attention", "naclip_sigma", "similarity_scale", "training_free_weight")
        return {name: value for name, value in self.config_overrides().items() if name in names}

    @staticmethod
    def has_dense_attention(model: Any) -> bool:
        """Return whether `dense_attention` decides how a model attends; visual prompts replace its encoder."""
        return isinstance(model.clip.vision_model.encoder, DenseEncoder)

    def prompt_config(self, grid_size: int | None, text_prompt_ids: list[int] | None = None) -> DeepPromptConfig:
        """
        Return the adapter's configuration.

        Args:
            grid_size: Side of the training crops in patches.
            text_prompt_ids: Of the template that text prompts replace, see [`DeepPromptConfig`].
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


DEFAULT_CONFIG = "zegclip_picture_world_inductive"
NAMED_DATASETS = ("picture_world", *BENCHMARKS)
SETTINGS = (*get_args(Setting), "cross_dataset")


@dataclass
class DataArguments:
    """Data set, classes, crops and evaluation."""

    dataset: str = HfArg(
        default="picture_world",
        help=f"picture_world, {', '.join(BENCHMARKS)}, a folder of pictures and masks, or a Hub id.",
    )
    data_dir: str | None = HfArg(
        default=None, help="Folder of a benchmark, such as VOC or COCO-Stuff, in its standard layout."
    )
    classes_file: str | None = HfArg(
        default=None, help="Class names: a text file, one per line by mask value, or id2label as JSON."
    )
    seen_classes: list[str] | None = HfArg(default=None, help="Names of seen classes. Default: all but the unseen.")
    unseen_classes: list[str] | None = HfArg(
        default=None,
        help="Names of unseen classes. Default: the papers'; for a folder or Hub id none. Of the picture world: some.",
    )
    ignored_classes: list[str] | None = HfArg(default=None, help="Names of classes whose pixels are ignored.")
    image_column: str | None = HfArg(default=None, help="Column of the pictures, if it is ambiguous.")
    mask_column: str | None = HfArg(default=None, help="Column of the masks, if it is ambiguous.")
    setting: str = HfArg(
        default="inductive",
        help="inductive: masks of seen classes only; transductive: then self-training on unseen ones; "
        "fully_supervised: masks of all; cross_dataset (evaluation only): other classes than in training.",
    )
    self_training_steps: int | None = HfArg(
        default=None, help="Transductive: steps of the second stage, out of max_steps. Default: half of them."
    )
    train_split: str = HfArg(default="train", help="Name of the training split.")
    eval_split: str | None = HfArg(
        default=None, help="Name of the evaluation split. Default: validation, and tuning in the picture world."
    )
    num_train_pictures: int | None = HfArg(
        default=None, help="Number of pictures, evenly spread. Default: all, and 4000 scenes of the picture world."
    )
    num_eval_pictures: int | None = HfArg(
        default=None, help="Number of pictures, evenly spread. Default: all, and 300 scenes of the picture world."
    )
    scene_seed: int = HfArg(default=0, help="Seed of the picture world's scenes.")
    skip_bad_samples: bool = HfArg(
        default=False, help="Skip and list pictures that cannot be read, instead of stopping."
    )
    crop_size: int | None = HfArg(default=None, help="Side of training crops. Default: the window size.")
    scale_range: list[float] | None = HfArg(
        default_factory=lambda: [0.5, 2.0],
        help="Bounds of the random factor on image_size in training; empty: no resizing.",
    )
    long_side: int = HfArg(default=2048, help="Largest length of the long side, times that factor.")
    max_category_share: float = HfArg(
        default=0.75, help="A crop with a larger share of one class is drawn again; 1: never."
    )
    flip_probability: float = HfArg(default=0.5, help="Probability of a horizontal flip.")
    photometric_distortion: bool = HfArg(default=True, help="Random brightness, contrast and colours.")
    image_size: int | None = HfArg(default=None, help="Short side of pictures. Default: the processor's.")
    window_size: int | None = HfArg(
        default=None, help="Side of sliding windows; 0: the whole picture at once. Default: the processor's."
    )
    window_stride: int | None = HfArg(default=None, help="Stride of sliding windows. Default: the processor's.")
    baseline: bool = HfArg(
        default=False,
        help="Evaluation: also evaluate what the CLIP says without training (NACLIP), in the same windows.",
    )
    baseline_attention: str = HfArg(
        default="naclip", help="Its last layer: plain, maskclip, sclip, clearclip or naclip."
    )
    background_threshold: float = HfArg(
        default=0.0,
        help="Evaluation: pixels whose best score is lower belong to the data set's background, its first class.",
    )
    refine: bool = HfArg(
        default=False, help="Evaluation: whether masks follow the outlines in the picture (PAMR), which takes longer."
    )
    results_dir: str | None = HfArg(
        default=None, help="Evaluation: folder for results. Default: eval_DATASET_SPLIT in output_dir."
    )
    save_predictions: bool = HfArg(
        default=False,
        help="Evaluation: also save the predicted masks there, with the pictures' names and the masks' values.",
    )

    def image_processor_fields(self) -> dict[str, Any]:
        """Return the given fields of the image processor."""
        fields = {
            "size": None if self.image_size is None else {"shortest_edge": self.image_size},
            "window_size": self.window_size,
            "window_stride": self.window_stride,
        }
        whole = {"window_size": None, "window_stride": None} if self.window_size == 0 else {}
        return {name: value for name, value in fields.items() if value is not None} | whole

    def __post_init__(self) -> None:
        if self.setting not in SETTINGS:
            raise UsageError(f"setting must be one of {', '.join(SETTINGS)}, not {self.setting!r}.")
        if self.eval_split is None:
            self.eval_split = "tuning" if self.dataset == "picture_world" else "validation"
        if self.dataset == "picture_world" and self.eval_split not in ("tuning", "test"):
            raise UsageError(f"eval_split of the picture world must be tuning or test, not {self.eval_split!r}.")
        if self.dataset in BENCHMARKS and self.data_dir is None:
            raise UsageError(f"data_dir is missing: say where {self.dataset} lies, for example --data_dir data/voc.")
        sizes = ("crop_size", "long_side", "image_size", "window_size", "window_stride")
        for name in ("num_train_pictures", "num_eval_pictures", "self_training_steps", *sizes):
            least = 0 if name == "window_size" else 1
            if getattr(self, name) is not None and getattr(self, name) < least:
                raise UsageError(f"{name} must be at least {least}, not {getattr(self, name)}.")
        if not 0 <= self.background_threshold <= 1:
            raise UsageError(f"background_threshold must be between 0 and 1, not {self.background_threshold}.")


class _Formatter(argparse.ArgumentDefaultsHelpFormatter):
    """Shows a default only where the text has none."""

    def _get_help_string(self, action: argparse.Action) -> str | None:
        said = action.default is None or "default:" in str(action.help).lower()
        return action.help if said else super()._get_help_string(action)


class _Parser(HfArgumentParser):
    """
    Raises errors instead of exiting, so that they are reported like all others.

    A list may be empty, which overrides the one of a file.
    """

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, formatter_class=_Formatter, **kwargs)
        for action in self._actions:
            if action.nargs == "+":
                action.nargs = "*"

    def error(self, message: str) -> NoReturn:
        raise UsageError(message if len(message) <= 500 else f"{message[:500]} ...")


def parse_arguments(
    argv: Sequence[str] | None = None, default_config: str | None = None, program: str = "train.py"
) -> tuple[ModelArguments, DataArguments, ZegClipTrainingArguments]:
    """
    Parse `[NAME_OR_YAML] [--field value ...]`; the command line overrides the file, the file the defaults.

    Args:
        argv: The words, by default `sys.argv[1:]`.
        default_config: Name of the configuration if `argv` begins with none; one line announces it.
        program: Start of the usage line that `--help` prints.

    Raises:
        UsageError: For a missing file, YAML that is not a mapping, an unknown field, a value of a wrong type, or
            values that contradict each other; it names the file or field.
    """
    words = list(sys.argv[1:] if argv is None else argv)
    parser = _Parser(
        [ModelArguments, DataArguments, ZegClipTrainingArguments],
        usage=f"{program} [NAME_OR_YAML] [--field value ...]",
        description="The configuration is a YAML file, or the name of one that comes with the package.",
    )
    actions = {action.dest: action for action in parser._actions}
    named = bool(words) and not words[0].startswith("-")
    config = words.pop(0) if named else default_config
    if config is not None:
        parser.set_defaults(**read_config(find_config(config), actions))
    for word in words:
        known = word.split("=")[0] in parser._option_string_actions
        if word.startswith("--") and not known and (name := word[2:].split("=")[0].replace("-", "_")) not in actions:
            raise UsageError(f"The command line names the unknown field {name!r}.{suggest(name, actions)}")
    if config is not None and not named:
        dataset = parser.parse_known_args(words)[0].dataset
        if dataset != "picture_world":
            suitable = f"zegclip_{dataset.rstrip('_0569')}_inductive" if dataset in BENCHMARKS else "zegclip_folder"
            if not (CONFIGS / f"{suitable}.yaml").is_file():
                suitable = f"training_free_{dataset.removesuffix('171')}"
            raise UsageError(
                f"dataset {dataset}: give a configuration first, such as {suitable}. Without one it is the "
                "picture world's, whose eval_split, sizes and schedule do not fit other data."
            )
        print(f"No configuration given: using {config} (the generated picture world, offline).")
    with as_usage_errors():
        parsed = parser.parse_args_into_dataclasses(words, look_for_args_file=False)
    for name, folder in {"output_dir": parsed[2].output_dir, "results_dir": parsed[1].results_dir}.items():
        if folder is not None and os.path.exists(folder) and not os.path.isdir(folder):
            raise UsageError(f"{name} must be a folder, but {folder} is a file.")
    launched = int(os.environ.get("WORLD_SIZE", "1"))
    if parsed[-1].world_size != launched:
        # Without this, each would train on its own, into the same folder.
        raise UsageError(
            f"{launched} processes were launched, but they cannot see each other, as there is no GPU for them: add "
            "--use_cpu, or launch one."
        )
    return parsed
