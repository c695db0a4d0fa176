"""`zegclip init`: write a configuration to train on a data set."""

import argparse
import os
import re
import shlex
from pathlib import Path
from typing import Any

from zegclip.commands.options import add_data_options, load_data_of
from zegclip.errors import UsageError


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "init",
        help="write a configuration to train on a data set",
        description="Write a YAML configuration for a data set: sizes by the CLIP and by the pictures, steps by their "
        "number, splits as they are, and a comment on each value. By default all classes are trained on, as all have "
        "masks; the file proposes some to hold out. Check the data first: zegclip check.",
    )
    add_data_options(parser)
    parser.add_argument(
        "--output", type=Path, metavar="FILE", help="file to write (default: NAME.yaml, of the data set's name)"
    )
    parser.add_argument(
        "--method",
        choices=("zegclip", "spt_seg", "ldvc"),
        default="zegclip",
        help="what to train (default: %(default)s)",
    )
    parser.add_argument(
        "--model",
        metavar="CLIP",
        help="folder or Hub id of a CLIP, such as openai/clip-vit-base-patch16, which photographs need (default: the "
        "embedded one of a generated world)",
    )
    parser.add_argument(
        "--unseen",
        metavar="N|NAMES",
        help="train in the inductive setting, without the masks of N classes, or of these, separated by commas",
    )
    parser.add_argument(
        "--ignored-classes",
        nargs="*",
        metavar="NAME",
        help='classes whose pixels are ignored (default: those called "void", "unlabelled" and the like)',
    )
    parser.add_argument("--overwrite", action="store_true", help="replace the file if it exists")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command."""
    from zegclip import DEFAULT_MODEL
    from zegclip.files import replacing
    from zegclip.loading import read_base_config
    from zegclip.processing.benchmarks import BENCHMARKS
    from zegclip.processing.names import find_unknown_words
    from zegclip.training.propose import METHODS, SAYS_NOTHING, Facts, choose_splits, propose, survey_sample

    dataset, file = arguments.dataset, arguments.output
    # Of "." too; the last part of a Hub id.
    name = os.path.basename(os.path.abspath(os.path.expanduser(dataset))) or "data"
    if file is None:
        file = Path(f"{name}{'' if arguments.method == 'zegclip' else f'_{arguments.method}'}.yaml")
    if file.is_dir():
        raise UsageError(f"{file}: the output must be a file, but this is a folder.")
    if file.exists() and not arguments.overwrite:
        raise UsageError(f"{file}: this exists already; --overwrite replaces it.")
    base = read_base_config(DEFAULT_MODEL if arguments.model is None else arguments.model)

    asked: str | None = arguments.unseen
    number = int(asked) if asked is not None and re.fullmatch(r"\s*[0-9]{1,6}\s*", asked) else None
    if number == 0 or (asked is not None and not asked.strip()):
        raise UsageError("--unseen: give a number from 1 on, or names; without it, no class is held out.")
    names = [part.strip() for part in asked.split(",")] if asked is not None and number is None else None
    ignored = arguments.ignored_classes
    data, split = load_data_of(arguments, unseen=names, ignored=ignored or ())
    if names is not None and not split.seen_ids:
        raise UsageError("--unseen: no class is left to train on.")
    if ignored is None:
        ignored = [label for label in split.names if label.lower() in SAYS_NOTHING]
        ignored = ignored if 0 < len(ignored) < len(split.names) and not set(ignored) & set(names or ()) else []
        if ignored:
            print(f"note: pixels of {', '.join(ignored)} are ignored; --ignored-classes chooses others, or none.")
            data, split = load_data_of(arguments, unseen=names, ignored=ignored)
    if arguments.model is None and dataset not in BENCHMARKS:
        unknown = find_unknown_words(split.all_names(), base.vocabulary, model="the embedded model")
        if unknown is not None:
            print(f"note: for a training without --model: {unknown}")

    surveys = survey_sample(data, split)
    for survey in surveys.values():
        if survey.broken:
            first = survey.describe_unnamed() or survey.broken[min(survey.broken)]
            print(f"note: training would stop here, so run zegclip check first: {first}")
    given = {field: getattr(arguments, field) for field in ("data_dir", "classes_file", "image_column", "mask_column")}
    given["ignored_classes"] = ignored or None
    sizes = {split_name: len(rows) for split_name, rows in data.items()}
    facts = Facts(
        dataset=dataset,
        arguments={field: value for field, value in given.items() if value is not None},
        split=split,
        sizes=sizes,
        surveys=surveys,
        model=arguments.model,
        base=base,
        unseen=names or number or 0,
    )
    output_dir = f"outputs/{file.stem}"
    place, outcome = (Path(part).expanduser().resolve() for part in (dataset, output_dir))
    if place.is_relative_to(outcome):  # The data lie there.
        output_dir += "_trained"
    text = propose(facts, arguments.method, str(file), output_dir)
    with replacing(file) as part:
        part.write_text(text, encoding="utf-8")
    train, evaluation, _ = choose_splits(sizes)
    if train == evaluation:
        print(f"note: {train} is the only split, so figures will say nothing about new pictures; see {file}.")
    print(f"{file}: {METHODS[arguments.method]} for {len(split.names)} classes.")
    print(f"Next: {shlex.join(['zegclip', 'train', str(file)])}")
    print(f"Then: {shlex.join(['zegclip', 'eval', str(file), '--model', output_dir])}")
    return 0
