"""`zegclip bundle`, `export`, `push` and `onnx`: write or publish a model in a form that others can load."""

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

from zegclip.errors import UsageError

if TYPE_CHECKING:
    from zegclip.modeling.modeling_zegclip import ZegClipForSemanticSegmentation


def add_parser(commands: Any) -> None:
    """Add the four commands to the subparsers."""
    bundle = commands.add_parser(
        "bundle",
        help="merge an adapter and its base into one folder",
        description="Write an adapter, the CLIP it was trained on and the processor to one self-contained folder.",
    )
    bundle.add_argument("adapter", metavar="ADAPTER", help="adapter folder or Hub id")
    bundle.set_defaults(run=run_bundle)

    export = commands.add_parser(
        "export",
        help="write a model folder that loads anywhere",
        description="Write a model folder to share: weights, processor, pipeline, code and card. It loads with this "
        "package, and without it with trust_remote_code=True.",
    )
    push = commands.add_parser(
        "push",
        help="upload a model to the Hub",
        description="Upload what `zegclip export` writes to the Hub in one commit. Log in first: hf auth login.",
    )
    for command in (export, push):
        command.add_argument("model", metavar="MODEL", help="model or adapter: folder or Hub id")
        content = command.add_mutually_exclusive_group()
        content.add_argument(
            "--whole",
            action="store_true",
            default=None,
            help="include an adapter's base (default: if the base is not on the Hub)",
        )
        content.add_argument("--adapter-only", dest="whole", action="store_false", help="the adapter without its base")
    export.set_defaults(run=run_export)
    push.add_argument("repo_id", metavar="REPO_ID", help="owner/name on the Hub; created if it does not exist")
    push.add_argument("--private", action="store_true", default=None, help="create a private repository")
    push.add_argument("--revision", metavar="BRANCH", help="branch to commit to (default: main)")
    push.set_defaults(run=run_push)

    onnx = commands.add_parser(
        "onnx",
        help="write a model as ONNX files, which run without PyTorch",
        description="Write a model as ONNX files for any number and size of pictures and any number of names, check "
        "them against the model in onnxruntime, and print the largest difference. Needs the extra zegclip[onnx].",
    )
    onnx.add_argument("model", metavar="MODEL", help="model folder or Hub id")
    onnx.set_defaults(run=run_onnx)
    for command in (bundle, export, onnx):
        command.add_argument("output", type=Path, metavar="OUTPUT", help="model folder to create")


def run_bundle(arguments: argparse.Namespace) -> int:
    """Run `zegclip bundle`."""
    from zegclip.files import check_new_folder, new_folder
    from zegclip.loading import load_processor

    check_new_folder(arguments.output)
    model = _load_model(arguments.adapter)
    if not hasattr(model, "peft_config"):
        raise UsageError(f"{arguments.adapter}: there is no adapter to bundle; the model is complete as it is.")
    processor = load_processor(arguments.adapter)
    with new_folder(arguments.output) as folder:
        model.save_with_base(str(folder))
        processor.save_pretrained(folder)
    print(f"{arguments.adapter}: bundled with its base and processor in {arguments.output}.")
    return 0


def run_export(arguments: argparse.Namespace) -> int:
    """Run `zegclip export`."""
    from zegclip.files import check_new_folder
    from zegclip.sharing.publishing import export

    check_new_folder(arguments.output)
    model = _load_model(arguments.model)
    export(model, arguments.output, whole=arguments.whole, run=_run_folder(arguments.model))
    print(f"{arguments.model}: exported to {arguments.output}.")
    return 0


def run_push(arguments: argparse.Namespace) -> int:
    """Run `zegclip push`."""
    from zegclip.sharing.publishing import push

    address = push(
        _load_model(arguments.model),
        arguments.repo_id,
        whole=arguments.whole,
        run=_run_folder(arguments.model),
        private=arguments.private,
        revision=arguments.revision,
    )
    print(f"{arguments.model}: pushed, see {address}")
    return 0


def _load_model(model: str) -> "ZegClipForSemanticSegmentation":
    """Load a model; a decode head that an adapter's base lacks is always initialised alike, as it is saved."""
    import torch

    from zegclip.loading import load_model
    from zegclip.plain_clip import SENTENCE, is_plain_clip

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        loaded = load_model(model)
    if is_plain_clip(model):
        print(SENTENCE.format(model))
    return loaded


def _run_folder(model: str) -> Path | None:
    """Return a model's folder, which may have the records of its training; `None` for a Hub id or a plain CLIP."""
    from zegclip.plain_clip import is_plain_clip

    return Path(model) if os.path.isdir(model) and not is_plain_clip(model) else None


def run_onnx(arguments: argparse.Namespace) -> int:
    """Run `zegclip onnx`."""
    from zegclip.files import check_new_folder, new_folder
    from zegclip.loading import load_processor
    from zegclip.sharing import onnx as onnx_export

    check_new_folder(arguments.output)
    onnx_export.check_packages()
    model = _load_model(arguments.model).float()
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
    if weight := model.config.blend_weight:
        print(f"They give the trained scores alone, which the pipeline blends with {weight:g} of NACLIP's.")
    return 0
