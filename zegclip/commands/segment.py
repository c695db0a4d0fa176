"""`zegclip segment`: segment pictures into classes given by name."""

import argparse
import json
import os
import sys
import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zegclip.commands.options import (
    DTYPES,
    add_output_option,
    check_output_folder,
    fraction,
    integer,
    read_labels,
)
from zegclip.errors import UsageError

FORMATS = ("png", "coco", "geojson", "scores")

if TYPE_CHECKING:
    from zegclip.segmenting.segmenter import Outcome, ProgressPipeline


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "segment",
        help="segment pictures into classes given by name",
        description="Segment pictures into classes given by name. For each picture STEM.* it writes STEM_overlay.png "
        "(classes in colour, with a legend), STEM_mask.png (index of the label of each pixel, 255 for none, with a "
        "palette; 16 bit and 65535 for none with more than 255 labels) and STEM.json (share of pixels and mean score "
        "of each label). If several pictures have the same stem, or the output folder has results of another one, the "
        "second one's results are named STEM_2*, and so on. Pictures that have results already, from the same file, "
        "model, labels and settings, are skipped: run the same command again to resume after an interruption. Under "
        "torchrun or accelerate launch (-m zegclip segment ...), the processes share the pictures, each on its own "
        "device.",
        epilog='Example: zegclip segment street.jpg --labels "road, car, tree" --threshold 0.2. Without a threshold, '
        "every pixel gets one of several labels, even if none of them is there; with a trained model, the command "
        "says so where the mean score is low.",
    )
    parser.add_argument("pictures", nargs="+", metavar="PICTURE", help="picture file, folder of picture files, or URL")
    parser.add_argument("--recursive", action="store_true", help="look for pictures in subfolders too")
    names = parser.add_mutually_exclusive_group(required=True)
    names.add_argument(
        "--labels", help='comma-separated class names, such as "cat, tree"; "cat/kitten, tree" gives a class two names'
    )
    names.add_argument("--labels-file", type=Path, metavar="FILE", help="text file with one class per line")
    parser.add_argument(
        "--model",
        help="folder or Hub id of a model, or of any CLIP, such as openai/clip-vit-base-patch16, which segments "
        "without training (default: the embedded model of a generated world)",
    )
    add_output_option(parser, "zegclip-output")
    parser.add_argument(
        "--format",
        type=_formats,
        default=["png"],
        metavar="NAMES",
        help="comma-separated; png: the index mask, coco: run lengths of each label's mask in STEM.json, geojson: its "
        "polygons, in pixels, as STEM.geojson, scores: the scores of each label, (labels, height, width) float16, as "
        "STEM_scores.npy (default: png)",
    )
    parser.add_argument("--no-overlay", action="store_true", help="write no overlays")
    parser.add_argument(
        "--threshold",
        type=fraction,
        metavar="SCORE",
        help="pixels with a lower score, 0 to 1, get no label (default: 0)",
    )
    parser.add_argument(
        "--background",
        action="store_true",
        help="let 26 usual names of backgrounds, such as sky, wall and floor, compete with the labels: their pixels "
        "get no label (default: only for a single label, without training or blended with it)",
    )
    parser.add_argument(
        "--background-words", metavar="NAMES", help="comma-separated names to compete instead of these 26"
    )
    parser.add_argument(
        "--refine",
        action="store_true",
        help="let masks follow the outlines in the picture (PAMR); it takes longer",
    )
    parser.add_argument(
        "--training-free-weight",
        type=fraction,
        metavar="WEIGHT",
        help="weight, 0 to 1, of what the CLIP says without training in the scores of a trained model; it takes a "
        "second pass (default: the model's)",
    )
    parser.add_argument(
        "--window-size",
        type=integer(1),
        metavar="PIXELS",
        help="side of the sliding windows over the resized picture (default: the model's)",
    )
    parser.add_argument(
        "--window-stride", type=integer(1), metavar="PIXELS", help="stride of the windows (default: the model's)"
    )
    parser.add_argument("--device", help="such as cpu or cuda:1 (default: an accelerator if there is one)")
    parser.add_argument(
        "--dtype",
        choices=(*DTYPES, "int8"),
        default="float32",
        help="precision of the model; bfloat16 is faster on GPUs and on CPUs with matrix units, int8 on CPUs, where "
        "torchao is installed (default: %(default)s)",
    )
    parser.add_argument("--overwrite", action="store_true", help="segment pictures again that have results already")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command, in one process or as one of several; return 1 if a picture could not be segmented."""
    import zegclip
    from zegclip.files import remove_leftovers
    from zegclip.loading import check_model_path
    from zegclip.plain_clip import SENTENCE, is_plain_clip
    from zegclip.processing.names import nested_classes, read_classes
    from zegclip.run_lengths import check_installed
    from zegclip.segmenting import segmenter as segmenting
    from zegclip.segmenting.pictures import find_pictures, take_share
    from zegclip.segmenting.processes import Processes
    from zegclip.segmenting.results import find_unfinished, identify_model

    labels = read_labels(arguments.labels_file) if arguments.labels is None else nested_classes(arguments.labels)
    if "coco" in arguments.format:
        check_installed()
    unsplit = [
        names[0]
        for names in labels
        if len(names) == 1 and not {",", ";", "|", "\uff0c", "\u3001"}.isdisjoint(names[0])
    ]
    output = arguments.output
    _check_output(output, arguments.pictures)
    model = check_model_path(zegclip.DEFAULT_MODEL if arguments.model is None else arguments.model)
    identity = identify_model(arguments.model, arguments.dtype)
    processes = Processes()
    pictures = find_pictures(arguments.pictures, arguments.recursive, without=output)
    total = len(pictures)
    names = take_share(pictures, processes, output)
    del pictures  # There may be a million, most of them the other processes'.
    if processes.is_main and arguments.model is None:
        print("Without --model: the embedded default model, offline; it knows a small generated picture world only.")
    if processes.local_rank == 0:
        remove_leftovers(output)
    if processes.is_main and is_plain_clip(model):
        print(SENTENCE.format(arguments.model))
    settings = {name: getattr(arguments, name) for name in ("threshold", "window_size", "window_stride")}
    settings["training_free_weight"] = arguments.training_free_weight
    settings["refine"] = arguments.refine or None
    settings["background"] = arguments.background or None
    if arguments.background_words is not None:
        settings["background"], _ = read_classes(arguments.background_words)
    job: dict[str, Any] = {name: value for name, value in settings.items() if value is not None}
    job["formats"] = [*arguments.format, *([] if arguments.no_overlay else ["overlay"])]
    job |= {**identity, "show_progress": processes.is_main}
    todo = names if arguments.overwrite else find_unfinished(names, labels, output, **job)
    if processes.is_main and unsplit and todo:
        print(f"note: {unsplit[0]!r} is one label: commas separate those of --labels, and lines those of a file.")
    outcome = segmenting.Outcome()
    if todo:
        segmenter = segmenting.load_segmenter(model, processes.choose_device(arguments.device), arguments.dtype)
        names_of_all, class_of_name = read_classes(labels)
        softmax = segmenter.model.config.score_function == "softmax"
        compares = softmax or segmenter.blend_weight(arguments.training_free_weight) > 0
        if processes.is_main and compares and not any(class_of_name) and "background" not in job:
            with_what = "without training" if softmax else "blended with scores without training"
            print(f"note: {with_what}, a single label competes with 26 usual backgrounds, such as sky and wall.")
        backgrounds = job["background"] if isinstance(job.get("background"), list) else []
        _warn_of_unknown_words(
            segmenter, [*names_of_all, *backgrounds], embedded=arguments.model is None, silent=not processes.is_main
        )
        outcome = segmenting.segment_pictures(segmenter, todo, labels, output, **job)
    outcome.done_before = len(names) - len(todo)

    # A launcher stops all processes when one exits with an error. So every process waits here for the others, and
    # the main process alone returns an error, after it has reported all outcomes.
    outcomes = processes.gather(outcome)
    if not processes.is_main:
        return 0
    _print_outcomes(outcomes, total, names, output)
    return 1 if any(outcome.failures for outcome in outcomes) else 0


def _formats(text: str) -> list[str]:
    """Option type: names of `FORMATS`."""
    names = text.replace(",", " ").split()
    if not names or not set(names) <= set(FORMATS):
        raise argparse.ArgumentTypeError(f"must be one or several of {', '.join(FORMATS)}, not {text!r}")
    return names


def _check_output(output: Path, sources: Sequence[str]) -> None:
    check_output_folder(output)
    folders = {os.path.realpath(source if os.path.isdir(source) else os.path.dirname(source)) for source in sources}
    if os.path.realpath(output) in folders:
        raise UsageError(
            f"{output}: the output must be another folder than the pictures', where results could replace pictures."
        )


def _warn_of_unknown_words(
    segmenter: "ProgressPipeline", labels: Sequence[str], *, embedded: bool, silent: bool
) -> None:
    """Print one warning about words that the model cannot know, instead of the pipeline's in each process."""
    from zegclip.processing.names import UnknownWordsWarning, find_unknown_words

    warnings.simplefilter("ignore", UnknownWordsWarning)
    unknown = find_unknown_words(
        labels,
        segmenter.model.config.vocabulary,
        segmenter.model.config.prompt_templates,
        model="the embedded model" if embedded else "this model",
    )
    if unknown is not None and not silent:
        _complain(f"warning: {unknown} Give another model with --model.")


def _print_outcomes(outcomes: Sequence["Outcome"], total: int, names: Mapping[str, str], output: Path) -> None:
    """
    Print the outcomes of all processes.

    Args:
        outcomes: One per process.
        total: Number of pictures.
        names: The main process's pictures, with the stems of their results' names.
        output: Folder of the results.
    """
    from zegclip.segmenting.segmenter import LOW_SCORE

    segmented = sum(outcome.segmented for outcome in outcomes)
    done_before = sum(outcome.done_before for outcome in outcomes)
    failures = [failure for outcome in outcomes for failure in outcome.failures]
    if total == 1 and not failures:
        [(path, name)] = names.items()
        _print_summary(json.loads((output / f"{name}.json").read_text(encoding="utf-8"))["labels"])
        if os.path.exists(overlay := f"{output / name}_overlay.png"):
            print(f"{path}: see {overlay}; the other results lie beside it.")
        else:
            print(f"{path}: the results are {output / name}*.")
    elif segmented:
        print(f"{_count(segmented)} segmented: the results are in {output}.")
    if doubtful := [path for outcome in outcomes for path in outcome.doubtful]:
        more = f" and {len(doubtful) - 1} more" if len(doubtful) > 1 else ""
        print(
            f"note: the mean score of {doubtful[0]}{more} is below {LOW_SCORE}, so perhaps none of the labels is "
            f"there: with --threshold {LOW_SCORE}, for example, pixels with lower scores get no label."
        )
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
