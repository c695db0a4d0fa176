"""`zegclip verify`: compare a real CLIP, and what is measured with it, with what others have stored and published."""

import argparse
import json
import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from zegclip.commands.options import add_output_option, check_output_folder
from zegclip.errors import UsageError

CLIP = "openai/clip-vit-base-patch16"
REFERENCE = Path(__file__).with_name("real_clip_vitb16.safetensors")
PUBLISHED = Path(__file__).with_name("published_figures.json")
# What the reference's tables of class embeddings are of: entries of class_lists.json, names and templates.
_TABLES = {
    "voc12_single": ("voc", "single"),
    "coco_single": ("coco_stuff", "single"),
    "coco_multi": ("coco_stuff", "multi"),
}
# The embeddings were computed and stored in half precision.
_COSINE_TOLERANCE = 1e-3
_POSITION_TOLERANCE = 1e-3  # Two different CLIPs differ by more than 0.1.
DATA_SETS = {
    "voc": ("training_free_voc20", "training_free_voc21"),
    "context": ("training_free_context59", "training_free_context60"),
    "coco": ("training_free_coco_stuff", "training_free_coco_object"),
    "ade20k": ("training_free_ade20k",),
    "cityscapes": ("training_free_cityscapes",),
}
"""The configurations that are run on the folder of each option."""
# What the name of a configuration's data set begins with.
_BEGINNINGS = {"voc": "voc", "context": "pascal_context", "coco": "coco", "ade20k": "ade", "cityscapes": "cityscapes"}


class Check(NamedTuple):
    """
    One row of the table.

    Attributes:
        what: What is compared.
        published: The stored or published figure; `None` if none is known.
        measured: What was measured here.
        tolerance: The largest difference that is accepted.
    """

    what: str
    published: float | None
    measured: float
    tolerance: float

    @property
    def is_outside(self) -> bool:
        """Whether the difference is too large; NaN is."""
        # A float's rounding must not decide at the tolerance itself.
        return self.published is not None and not abs(self.measured - self.published) <= self.tolerance + 1e-9


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "verify",
        help="compare a real CLIP, and figures measured with it, with published ones",
        description="Compare OpenAI's CLIP ViT-B/16 with stored pieces of it: its position table, and class "
        "embeddings of data sets' names. With folders of data sets, run the training-free configurations on them, and "
        "compare with the published figures; with --converted, also a model from `zegclip convert`. The exit status "
        "is 1 if a difference is larger than the tolerance. An interrupted evaluation continues.",
        epilog="Fields of `zegclip eval` for all of its runs come last, behind --: zegclip verify --voc "
        "VOCdevkit/VOC2012 -- --bf16 true",
    )
    parser.add_argument("--model", default=CLIP, help="folder or Hub id of that CLIP (default: %(default)s)")
    parser.add_argument(
        "--reference", type=Path, metavar="FILE", help="stored pieces of that CLIP (default: those included)"
    )
    for option in DATA_SETS:
        parser.add_argument(f"--{option}", metavar="DIR", help="folder of this data set, in its standard layout")
    parser.add_argument("--converted", metavar="FOLDER", help="model from `zegclip convert`, to be evaluated as well")
    parser.add_argument("--config", metavar="NAME_OR_YAML", help="its configuration, such as zegclip_voc_inductive")
    parser.add_argument(
        "--tolerance", type=float, default=0.5, metavar="POINTS", help="of figures, in per cent (default: %(default)s)"
    )
    add_output_option(parser, "zegclip-verify")
    parser.add_argument("words", nargs="*", metavar="--field value", help="fields of `zegclip eval`, behind --")
    parser.set_defaults(run=run)


def run(arguments: argparse.Namespace) -> int:
    """Run the command; return 1 if a difference is larger than the tolerance."""
    if (arguments.converted is None) != (arguments.config is None):
        raise UsageError(
            "--converted and --config belong together: a model, and the configuration to evaluate it with."
        )
    check_output_folder(arguments.output)
    folders = {option: getattr(arguments, option) for option in DATA_SETS if getattr(arguments, option) is not None}
    for folder in folders.values():
        if not Path(folder).is_dir():
            raise UsageError(f"{folder}: there is no such folder.")
    runs = []
    for option, folder in folders.items():
        runs += [(config, arguments.model, folder) for config in DATA_SETS[option]]
    if arguments.converted is not None:
        runs.append((arguments.config, arguments.converted, _folder_of(arguments.config, folders)))
    checks = compare_clip(arguments.model, arguments.reference or REFERENCE)
    try:
        for config, model, folder in runs:
            words = [*([] if folder is None else ["--data_dir", folder]), *arguments.words]
            checks += compare_run(config, model, words, arguments.output, read_figures(), arguments.tolerance)
    finally:  # also what was measured before an error
        print_checks(checks)
    return 1 if any(check.is_outside for check in checks) else 0


def compare_clip(model: str, reference: Path) -> list[Check]:
    """
    Compare a CLIP's position table, and our embeddings of names, with stored ones.

    Args:
        model: Folder or Hub id.
        reference: File with the table, `position_table` `(positions, width)` or some rows of it, `position_rows`; and
            class embeddings `(names, dim)`, `voc12_single`, `coco_single` and `coco_multi`.

    Raises:
        ModelError: If the CLIP cannot be loaded.
        UsageError: If the file is missing or has none of these tables, or one has another size than the CLIP's.
    """
    import torch.nn.functional as F
    from safetensors.torch import load_file

    from zegclip.loading import load_base, load_processor
    from zegclip.processing.benchmarks import read_class_lists
    from zegclip.processing.name_encoder import NameEncoder

    if not reference.is_file():
        raise UsageError(f"{reference}: there is no such file.")
    stored = load_file(reference)
    if not stored.keys() & {"position_table", *_TABLES}:
        raise UsageError(f"{reference}: this file has nothing to compare a CLIP with.")
    loaded = load_base(model, {"decode_head_type": "similarity"}).eval()
    processor = load_processor(model)
    lists = read_class_lists()
    checks = []
    for name in ("position_table", *_TABLES):
        if name not in stored:
            continue
        expected = stored[name].float()
        if name == "position_table":
            found = loaded.clip.vision_model.embeddings.position_embedding.weight.detach().float()
            if "position_rows" in stored and found.shape[0] > int(stored["position_rows"].max()):
                found = found[stored["position_rows"].long()]
        else:
            names, templates = _TABLES[name]
            encoder = NameEncoder(loaded, processor, lists["templates"][templates], show_progress=True)
            found = encoder.encode(lists[names]["names"]).float()
        if found.shape != expected.shape:
            raise UsageError(
                f"{model}: this is another CLIP than that of {reference.name}: for its {name}, of size "
                f"{tuple(expected.shape)}, it has one of size {tuple(found.shape)}."
            )
        if name == "position_table":
            largest = float((found - expected).abs().max())
            checks.append(Check("position table, largest difference", 0.0, largest, _POSITION_TOLERANCE))
        else:
            smallest = float(F.cosine_similarity(found, expected, dim=-1).min())
            title = (
                f"{len(expected)} names of {names}, {len(lists['templates'][templates])} templates: smallest cosine"
            )
            checks.append(Check(title, 1.0, smallest, _COSINE_TOLERANCE))
    return checks


def compare_run(
    config: str,
    model: str,
    words: Sequence[str],
    output: Path,
    figures: Mapping[str, Mapping[str, float]],
    tolerance: float,
) -> list[Check]:
    """
    Evaluate a model under the papers' protocol, and compare with what was published for the configuration.

    Args:
        config: Name or file of the configuration.
        model: Folder or Hub id.
        words: Fields of the evaluation.
        output: Folder in which it has a folder of its own.
        figures: From [`read_figures`].
        tolerance: In per cent.

    Returns:
        A row for each published figure; the mIoU alone if there is none.
    """
    from zegclip.training.evaluate import PAPERS, evaluate

    stem = Path(config).stem
    rows = evaluate([config, "--model", model, "--results_dir", str(output / stem), *words])
    # Refinement and the like are said behind.
    found = next(figures for title, figures in rows.items() if title.startswith(f"model, {PAPERS}"))
    published = figures.get(stem, {})
    return [
        Check(f"{stem}, {name}", published.get(name), found.get(name, math.nan), tolerance)
        for name in published or ("miou",)
    ]


def read_figures() -> dict[str, dict[str, float]]:
    """
    Read the published figures, in per cent: for each configuration, metrics of an evaluation by name.

    Those of ZegCLIP's fully supervised training on PASCAL Context are missing: 46.5, 78.7 and a harmonic mean of 56.9
    contradict each other.
    """
    by_source = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return {config: figures for configs in by_source.values() for config, figures in configs.items()}


def print_checks(checks: Sequence[Check]) -> None:
    """Print the table."""
    import pandas as pd
    from accelerate import PartialState

    rows = [
        {
            "": check.what,
            "published": "-" if check.published is None else f"{check.published:g}",
            "measured": f"{check.measured:.6g}",
            "difference": "-" if check.published is None else f"{check.measured - check.published:+.2g}",
            "tolerance": f"{check.tolerance:g}",
            "result": "no figure" if check.published is None else "OUTSIDE" if check.is_outside else "within",
        }
        for check in checks
    ]
    PartialState().print(f"\n{pd.DataFrame(rows).to_string(index=False)}")


def _folder_of(config: str, folders: Mapping[str, str]) -> str | None:
    """Return the folder that was given for a configuration's data set; `None` for the configuration's own."""
    from zegclip.training.arguments import parse_arguments

    _, data_args, _ = parse_arguments([config], program="zegclip verify")
    fitting = [option for option, start in _BEGINNINGS.items() if data_args.dataset.startswith(start)]
    return folders.get(fitting[0]) if fitting else None
