"""The command `zegclip`: segment pictures, see a demo, convert official checkpoints, share models."""

import argparse
import io
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import zegclip
from zegclip.files import exiting_on_sigterm

# What needs time to import is imported by the commands that need it.
if TYPE_CHECKING:
    from zegclip.commands.segment import Outcome
    from zegclip.modeling.modeling_zegclip import ZegClipForSemanticSegmentation

CLIP_TOKENIZER = "openai/clip-vit-base-patch16"
"""All of OpenAI's CLIP models share its tokenizer, and the official checkpoints with them."""
DTYPES = ("float32", "float16", "bfloat16")


def main(argv: Sequence[str] | None = None) -> int:
    """
    Run a command.

    Args:
        argv: Arguments, by default those of the process.

    Returns:
        The exit status: 0, 1 if something failed (one sentence on stderr says what), 130 after Ctrl-C. Wrong usage
        raises `SystemExit(2)`, as argparse does, and SIGTERM `SystemExit(143)`.
    """
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper):
            # A file name or label that the terminal cannot show is no reason to stop.
            stream.reconfigure(errors="backslashreplace")
    arguments = build_parser().parse_args(argv)
    try:
        with exiting_on_sigterm():
            from transformers.utils import logging

            logging.disable_progress_bar()  # for the weights of a model; the commands have bars of their own
            # Of too many pixels and damaged EXIF data, which are reported in our own words or do not matter.
            warnings.filterwarnings("ignore", module=r"PIL\.")
            return arguments.run(arguments)
    except KeyboardInterrupt:
        _complain("interrupted.")
        return 130
    except Exception as error:
        from zegclip.errors import explain_fault

        sentence = explain_fault(error)
        if sentence is None and not isinstance(error, (ValueError, OSError)):
            raise
        _complain(sentence or _one_sentence(error))
        return 1


def build_parser() -> argparse.ArgumentParser:
    """Build the parser; each command's function is its `run`."""
    parser = argparse.ArgumentParser(prog="zegclip", description="Zero-shot semantic segmentation with CLIP.")
    parser.add_argument("--version", action="version", version=f"zegclip {zegclip.__version__}")
    commands = parser.add_subparsers(title="commands", metavar="COMMAND", required=True)

    segment = commands.add_parser(
        "segment",
        help="segment pictures into classes given by name",
        description="Segment pictures into classes given by name. For each picture STEM.* it writes STEM_overlay.png "
        "(classes in colour, with a legend), STEM_mask.png (index of the label in every pixel, 255 for none, with a "
        "palette; 16 bit and 65535 for none where there are more than 255 labels) and STEM.json (share of pixels and "
        "mean score of each label). Of pictures with the same stem, the second's results are called STEM_2*, and so "
        "on. Pictures whose results are there already, from the same file, model, labels and settings, are skipped: "
        "run the same command again to go on after an interruption. Under torchrun or accelerate launch (-m zegclip "
        "segment ...), the processes share the pictures, each on its own device.",
    )
    segment.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture file, or folder of picture files")
    names = segment.add_mutually_exclusive_group(required=True)
    names.add_argument("--labels", help='class names with commas between them, such as "cat, tree"')
    names.add_argument("--labels-file", type=Path, metavar="FILE", help="text file with one class name a line")
    segment.add_argument("--model", help="model folder or Hub id (default: the embedded model of a generated world)")
    segment.add_argument(
        "--output", type=Path, default=Path("zegclip-output"), metavar="DIR", help="folder (default: %(default)s)"
    )
    segment.add_argument(
        "--threshold",
        type=_share,
        metavar="SCORE",
        help="pixels with a lower score, 0 to 1, get no label (default: 0)",
    )
    segment.add_argument(
        "--window-size",
        type=_positive,
        metavar="PIXELS",
        help="side of the windows that the resized picture is segmented in (default: the model's)",
    )
    segment.add_argument(
        "--window-stride", type=_positive, metavar="PIXELS", help="distance between windows (default: the model's)"
    )
    segment.add_argument("--device", help="such as cpu or cuda:1 (default: an accelerator if there is one)")
    segment.add_argument(
        "--dtype",
        choices=DTYPES,
        default="float32",
        help="precision of the model; bfloat16 is faster on GPUs and on CPUs with matrix units (default: %(default)s)",
    )
    segment.add_argument("--overwrite", action="store_true", help="do pictures again that have results already")
    segment.set_defaults(run=run_segment)

    check = commands.add_parser(
        "check",
        help="read a data set through before training on it",
        description="Read every picture and mask of a data set, count pictures, classes and pixels, list what is "
        "broken, and draw a contact sheet. The status is 1 if something is broken.",
    )
    check.add_argument(
        "dataset",
        metavar="DATASET",
        help="voc, coco_stuff, pascal_context_59, pascal_context_60, a folder, or a Hub id such as owner/name",
    )
    check.add_argument("--data-dir", metavar="DIR", help="where one of the first four lies, in its standard layout")
    check.add_argument(
        "--classes-file",
        metavar="FILE",
        help="class names of a folder or Hub id: a text file, one a line by mask value from 0, or JSON from mask "
        "values to names (default: its own classes.txt or id2label.json)",
    )
    check.add_argument(
        "--unseen-classes", nargs="+", metavar="NAME", help="classes held out from training (default: the papers')"
    )
    check.add_argument(
        "--ignored-classes", nargs="+", metavar="NAME", default=(), help="classes that count as no class"
    )
    check.add_argument("--image-column", metavar="NAME", help="column of the pictures, where that is not clear")
    check.add_argument("--mask-column", metavar="NAME", help="column of the masks, where that is not clear")
    check.add_argument(
        "--output", type=Path, default=Path("zegclip-check"), metavar="DIR", help="folder (default: %(default)s)"
    )
    check.add_argument(
        "--workers",
        type=int,
        default=min(os.cpu_count() or 1, 8),
        metavar="N",
        help="processes that read; 0: only one (default: %(default)s)",
    )
    check.set_defaults(run=run_check)

    demo = commands.add_parser(
        "demo",
        help="segment generated pictures with the embedded model",
        description="Draw two pictures and segment them with the embedded model into classes of which it has seen "
        "masks in training and classes of which it has not.",
    )
    demo.add_argument(
        "--output", type=Path, default=Path("zegclip-demo"), metavar="DIR", help="folder (default: %(default)s)"
    )
    demo.add_argument("--seed", type=_not_negative, default=0, help="another number, other pictures")
    demo.set_defaults(run=run_demo)

    convert = commands.add_parser(
        "convert",
        help="turn an official checkpoint into a model folder",
        description="Turn an official checkpoint into a model folder. No code in the checkpoint is ever run.",
    )
    convert.add_argument("checkpoint", type=Path, metavar="CHECKPOINT", help=".pth or .safetensors file")
    convert.add_argument("output", type=Path, metavar="OUTPUT", help="model folder to make")
    convert.add_argument(
        "--method", choices=("zegclip", "spt-seg"), default="zegclip", help="the paper (default: %(default)s)"
    )
    convert.add_argument(
        "--tokenizer",
        metavar="PATH_OR_HUB_ID",
        help=f"CLIP's tokenizer (default: {CLIP_TOKENIZER} where it has been downloaded before)",
    )
    convert.add_argument(
        "--templates-file",
        type=Path,
        metavar="FILE",
        help="text file with one prompt template a line, such as the 15 of the COCO models (default: a photo of a {})",
    )
    convert.add_argument("--dtype", choices=DTYPES, default="float32", help="of the weights (default: %(default)s)")
    convert.set_defaults(run=run_convert)

    bundle = commands.add_parser(
        "bundle",
        help="put an adapter and its base into one folder",
        description="Put an adapter, the CLIP it was trained on and the processor into one self-contained folder.",
    )
    bundle.add_argument("adapter", metavar="ADAPTER", help="adapter folder or Hub id")
    bundle.add_argument("output", type=Path, metavar="OUTPUT", help="model folder to make")
    bundle.set_defaults(run=run_bundle)

    export = commands.add_parser(
        "export",
        help="write a model folder that loads anywhere",
        description="Write a model folder to share: weights, processor, pipeline, code and card. It loads with this "
        "package, and without it through trust_remote_code=True.",
    )
    push = commands.add_parser(
        "push",
        help="share a model on the Hub",
        description="Share on the Hub what `zegclip export` writes, in one commit. Log in before: hf auth login.",
    )
    for command in (export, push):
        command.add_argument("model", metavar="MODEL", help="model or adapter: folder or Hub id")
        kind = command.add_mutually_exclusive_group()
        kind.add_argument(
            "--whole",
            action="store_true",
            default=None,
            help="an adapter's base beside it (default: where the base is not on the Hub)",
        )
        kind.add_argument("--adapter-only", dest="whole", action="store_false", help="the adapter alone")
    export.add_argument("output", type=Path, metavar="OUTPUT", help="model folder to make")
    export.set_defaults(run=run_export)
    push.add_argument("repo_id", metavar="REPO_ID", help="owner/name on the Hub; made if it is not there")
    push.add_argument("--private", action="store_true", default=None, help="if it is made: for nobody else")
    push.add_argument("--revision", metavar="BRANCH", help="branch to commit to (default: main)")
    push.set_defaults(run=run_push)

    onnx = commands.add_parser(
        "onnx",
        help="write a model as ONNX files, which run without PyTorch",
        description="Write a model as ONNX files for any number and size of pictures and any number of names, check "
        "them against the model in onnxruntime, and print the largest difference. Needs the extra zegclip[onnx].",
    )
    onnx.add_argument("model", metavar="MODEL", help="model folder or Hub id")
    onnx.add_argument("output", type=Path, metavar="OUTPUT", help="folder to make")
    onnx.set_defaults(run=run_onnx)
    return parser


def run_segment(arguments: argparse.Namespace) -> int:
    """Run `zegclip segment`, in one process or as one of several."""
    from zegclip import files
    from zegclip.commands import segment
    from zegclip.identity import name_revision, state_of_model
    from zegclip.loading import check_model_path
    from zegclip.processing.processing_zegclip import UnknownWordsWarning, find_unknown_words

    labels = read_labels(arguments.labels_file) if arguments.labels is None else split_labels(arguments.labels)
    output = arguments.output
    _check_results_folder(output, arguments.pictures)
    settings = {name: getattr(arguments, name) for name in ("threshold", "window_size", "window_stride")}
    settings = {name: value for name, value in settings.items() if value is not None}
    model = check_model_path(arguments.model or zegclip.DEFAULT_MODEL)
    model_name, model_state = name_revision(model), state_of_model(model)
    if os.path.isdir(model):
        model_name = "embedded default model" if arguments.model is None else os.path.abspath(model)
    if arguments.dtype != "float32":
        model_name = f"{model_name}, {arguments.dtype}"

    processes = segment.Processes()
    pictures = segment.find_pictures(arguments.pictures)
    total = len(pictures)
    names = segment.take_share(pictures, processes)
    del pictures  # There may be a million, most of them the other processes'.
    if processes.is_main and arguments.model is None:
        print("Without --model: the embedded default model, offline; it knows a small generated picture world only.")
    if processes.local_rank == 0:
        files.remove_leftovers(output)
    todo = names
    if not arguments.overwrite:
        todo = segment.find_unfinished(
            names,
            labels,
            output,
            model_name,
            model_state,
            show_progress=processes.is_main,
            **settings,
        )
    outcome = segment.Outcome()
    if todo:
        segmenter = segment.load_segmenter(model, processes.choose_device(arguments.device), arguments.dtype)
        # Said here, once for all processes, instead of by the pipeline.
        warnings.simplefilter("ignore", UnknownWordsWarning)
        unknown = find_unknown_words(
            labels,
            segmenter.model.config.vocabulary,
            segmenter.processor.prompt_templates,
            model="the embedded model" if arguments.model is None else "this model",
        )
        if unknown is not None and processes.is_main:
            _complain(f"warning: {unknown} Give another model with --model.")
        outcome = segment.segment_pictures(
            segmenter, todo, labels, output, model_name, model_state, show_progress=processes.is_main, **settings
        )
    outcome.done_before = len(names) - len(todo)

    # As soon as one process has failed, a launcher ends the others. So none leaves before all are ready, and it is the
    # main process, when it has told what became of all pictures, that fails.
    outcomes = processes.gather(outcome)
    if not processes.is_main:
        return 0
    _print_outcomes(outcomes, total, names, output)
    return 1 if any(outcome.failures for outcome in outcomes) else 0


def run_check(arguments: argparse.Namespace) -> int:
    """Run `zegclip check`."""
    from zegclip.commands import check

    return check.run_check(arguments)


def run_demo(arguments: argparse.Namespace) -> int:
    """Run `zegclip demo`."""
    from zegclip.commands import demo

    _check_results_folder(arguments.output, [])
    demo.run_demo(arguments.output, arguments.seed)
    return 0


def run_convert(arguments: argparse.Namespace) -> int:
    """Run `zegclip convert`."""
    import torch

    from zegclip import ZegClipConfig, ZegClipImageProcessor, ZegClipProcessor
    from zegclip.files import check_new_folder, new_folder
    from zegclip.modeling.convert_official_checkpoint import convert

    check_new_folder(arguments.output)
    config = ZegClipConfig()
    if arguments.templates_file is not None:
        config.prompt_templates = read_labels(arguments.templates_file)
    try:
        model = convert(arguments.checkpoint, method=arguments.method, config=config)
    except ValueError as error:
        named = str(arguments.checkpoint) in str(error)
        raise error if named else ValueError(f"{arguments.checkpoint}: {error}") from error
    model.to(getattr(torch, arguments.dtype))
    tokenizer = _load_tokenizer(arguments.tokenizer, model)
    image_processor = ZegClipImageProcessor()
    processor = image_processor
    if tokenizer is not None:
        processor = ZegClipProcessor(image_processor, tokenizer, model.config.prompt_templates)
    with new_folder(arguments.output) as folder:
        model.save_with_base(str(folder))
        processor.save_pretrained(folder)
    print(f"{arguments.checkpoint}: converted to {arguments.output}.")
    if tokenizer is None:
        print(
            f"{arguments.output} still needs a CLIP tokenizer: put one there with AutoTokenizer.from_pretrained"
            f"({CLIP_TOKENIZER!r}).save_pretrained({str(arguments.output)!r}), or convert with --tokenizer."
        )
    return 0


def run_bundle(arguments: argparse.Namespace) -> int:
    """Run `zegclip bundle`."""
    from zegclip.files import check_new_folder, new_folder
    from zegclip.loading import load_model, load_processor

    check_new_folder(arguments.output)
    model = load_model(arguments.adapter)
    if not hasattr(model, "peft_config"):
        raise ValueError(f"{arguments.adapter}: there is no adapter to bundle; the model is complete as it is.")
    processor = load_processor(arguments.adapter)
    with new_folder(arguments.output) as folder:
        model.save_with_base(str(folder))
        processor.save_pretrained(folder)
    print(f"{arguments.adapter}: bundled with its base and processor in {arguments.output}.")
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """Run `zegclip export`."""
    from zegclip.files import check_new_folder
    from zegclip.loading import load_model
    from zegclip.sharing.publishing import export

    check_new_folder(arguments.output)
    model = load_model(arguments.model)
    export(model, arguments.output, whole=arguments.whole, run=_local(arguments.model))
    print(f"{arguments.model}: exported to {arguments.output}.")
    return 0


def run_push(arguments: argparse.Namespace) -> int:
    """Run `zegclip push`."""
    from zegclip.loading import load_model
    from zegclip.sharing.publishing import push

    address = push(
        load_model(arguments.model),
        arguments.repo_id,
        whole=arguments.whole,
        run=_local(arguments.model),
        private=arguments.private,
        revision=arguments.revision,
    )
    print(f"{arguments.model}: pushed, see {address}")
    return 0


def _local(model: str) -> Path | None:
    return Path(model) if os.path.isdir(model) else None


def run_onnx(arguments: argparse.Namespace) -> int:
    """Run `zegclip onnx`."""
    from zegclip.files import check_new_folder, new_folder
    from zegclip.loading import load_model, load_processor
    from zegclip.sharing import onnx as onnx_export

    check_new_folder(arguments.output)
    onnx_export.check_packages()
    model = load_model(arguments.model).float()
    processor = load_processor(arguments.model)
    with new_folder(arguments.output) as folder:
        folder.mkdir()
        onnx_export.export_onnx(model, processor, folder)
        differences = onnx_export.check_onnx(model, processor, folder)
        sizes = {path.name: path.stat().st_size for path in sorted(folder.iterdir())}
    for name, size in sizes.items():
        print(f"  {name:<16}{size / 1e6:>9.2f} MB")
    largest = ", ".join(f"{difference:.1e} for {name}" for name, difference in differences.items())
    print(f"{arguments.model}: exported to {arguments.output}; largest difference to the model: {largest}.")
    return 0


def split_labels(text: str) -> list[str]:
    """
    Split class names at commas.

    Raises:
        ValueError: If there is none, one is blank or comes twice, or the text is not UTF-8; one sentence.
    """
    from zegclip.processing.processing_zegclip import check_labels

    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise ValueError("--labels is not valid UTF-8 text.") from error
    return check_labels(text.split(",") if text.strip() else [])


def read_labels(path: Path) -> list[str]:
    """
    Read class names from a UTF-8 text file, one a line; blank lines don't count.

    Raises:
        ValueError: As [`split_labels`], with the file's name.
        OSError: If the file cannot be read.
    """
    from zegclip.processing.processing_zegclip import check_labels

    try:
        # Not `splitlines`, which takes form feeds and others for line breaks too.
        lines = path.read_text(encoding="utf-8-sig").split("\n")
    except UnicodeDecodeError as error:
        raise ValueError(f"{path}: this file is not UTF-8 text.") from error
    try:
        return check_labels([line for line in lines if line.strip()])
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error


def _check_results_folder(output: Path, sources: Sequence[str]) -> None:
    if output.exists() and not output.is_dir():
        raise ValueError(f"{output}: the output must be a folder, but this is a file.")
    if any(Path(source).is_dir() and Path(source).resolve() == output.resolve() for source in sources):
        raise ValueError(
            f"{output}: the output must be another folder than the pictures', or overlays would be taken for pictures "
            "the next time."
        )


def _load_tokenizer(name: str | None, model: "ZegClipForSemanticSegmentation") -> Any:
    """Load a tokenizer that fits a model, or CLIP's own where it is on this machine; `None` if it is not."""
    from huggingface_hub import try_to_load_from_cache
    from transformers import AutoTokenizer

    place = name
    if place is None:
        # `local_files_only` would still ask the Hub a question; a folder does not.
        cached = try_to_load_from_cache(CLIP_TOKENIZER, "tokenizer_config.json")
        if not isinstance(cached, str):
            return None
        place = os.path.dirname(cached)
    try:
        tokenizer = AutoTokenizer.from_pretrained(place)
    except (OSError, ValueError) as error:
        if name is None:
            return None
        raise ValueError(f"{name}: there is no tokenizer of this name ({_one_sentence(error)})") from error
    text_config = model.config.clip_config.text_config
    if len(tokenizer) > text_config.vocab_size or tokenizer.eos_token_id != text_config.eos_token_id:
        if name is None:
            return None
        raise ValueError(
            f"{name}: this tokenizer does not fit; it has {len(tokenizer)} tokens and ends texts with number "
            f"{tokenizer.eos_token_id}, the model has {text_config.vocab_size} and number {text_config.eos_token_id}."
        )
    tokenizer.model_max_length = min(tokenizer.model_max_length, text_config.max_position_embeddings)
    return tokenizer


def _print_outcomes(outcomes: Sequence["Outcome"], total: int, names: Mapping[str, str], output: Path) -> None:
    """Print what became of `total` pictures; `names` has the result's name of the first."""
    segmented = sum(outcome.segmented for outcome in outcomes)
    done_before = sum(outcome.done_before for outcome in outcomes)
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    if total == 1 and not failures:
        [(path, name)] = names.items()
        _print_summary(json.loads((output / f"{name}.json").read_text(encoding="utf-8"))["labels"])
        print(f"{path}: see {output / name}_overlay.png; mask and JSON file lie beside it.")
    elif segmented:
        print(f"{_count(segmented)} segmented: overlays, masks and JSON files are in {output}.")
    if done_before:
        were, them = ("was", "it") if total == 1 else ("were", "them")
        print(f"{done_before} of {_count(total)} {were} done before; --overwrite does {them} again.")
    if failures and total > 1:
        _complain(f"{len(failures)} of {_count(total)} could not be segmented:")
    for failure in failures:
        _complain(failure)


def _print_summary(summary: Sequence[dict[str, Any]]) -> None:
    width = max(len(row["label"]) for row in summary)
    for row in summary:
        score = f"score {row['score']:.2f}" if row["share"] else ""
        print(f"  {row['label']:<{width}}{100 * row['share']:>7.1f} %  {score}".rstrip())


def _count(number: int) -> str:
    return f"{number} picture{'' if number == 1 else 's'}"


def _complain(text: str) -> None:
    print(f"zegclip: {text}", file=sys.stderr)


def _one_sentence(error: Exception) -> str:
    if isinstance(error, OSError) and error.strerror:
        return f"{error.filename}: {error.strerror}." if error.filename else f"{error.strerror}."
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)


def _positive(text: str) -> int:
    return _whole_number(text, at_least=1)


def _not_negative(text: str) -> int:
    return _whole_number(text, at_least=0)


def _whole_number(text: str, at_least: int) -> int:
    try:
        number = int(text)
    except ValueError:
        number = at_least - 1
    if number < at_least:
        raise argparse.ArgumentTypeError(f"must be a whole number of at least {at_least}, not {text!r}")
    return number


def _share(text: str) -> float:
    try:
        number = float(text)
    except ValueError:
        number = -1
    if not 0 <= number <= 1:
        raise argparse.ArgumentTypeError(f"must be a number from 0 to 1, not {text!r}")
    return number
