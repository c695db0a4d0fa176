"""
The cards of configured runs that nobody has made yet.

    python benchmarks/model_cards.py            # writes model_cards/CONFIGURATION.md
    python benchmarks/model_cards.py --check    # says whether they are as this would write them

They say what will be trained, that it has not been run, and what the authors have published. A card of a real run is
written by `train.py` and `eval.py` into the run's folder.
"""

import argparse
import sys
from dataclasses import asdict
from itertools import product
from pathlib import Path

from zegclip.files import replacing
from zegclip.processing.benchmarks import benchmark_split
from zegclip.sharing.cards import DATASET_TITLES, Described, describe_head, render_card
from zegclip.training.arguments import parse_arguments
from zegclip.training.run_folder import describe_run

ROOT = Path(__file__).parents[1]
METHODS = ("zegclip", "spt_seg", "ldvc")
DATA_SETS = ("voc", "coco_stuff", "pascal_context")
SETTINGS = ("inductive", "transductive", "fully_supervised")
CROSS_DATASET = ("zegclip_coco_to_voc", "zegclip_coco_to_context")
NAMES = (*map("_".join, product(METHODS, DATA_SETS, SETTINGS)), *CROSS_DATASET)

ZEGCLIP_README = "the README of the official code, github.com/ZiqinZhou66/ZegCLIP"
LDVC_PAPER = "the paper, arXiv:2403.08426"
# pAcc, mIoU of seen and of unseen classes, hIoU, in per cent, and where they were read. Only what was read in the
# authors' own paper or repository, which SPT-SEG's were not. For ZegCLIP on COCO-Stuff, inductive, a second reading
# has 41.1 of unseen classes; 41.4 agrees with the hIoU.
PUBLISHED: dict[str, tuple[float | None, float, float, float, str]] = {
    "zegclip_voc_inductive": (94.6, 91.9, 77.8, 84.3, ZEGCLIP_README),
    "zegclip_coco_stuff_inductive": (62.0, 40.2, 41.4, 40.8, ZEGCLIP_README),
    "zegclip_pascal_context_inductive": (76.2, 46.0, 54.6, 49.9, ZEGCLIP_README),
    "zegclip_voc_transductive": (96.2, 92.3, 89.9, 91.1, ZEGCLIP_README),
    "zegclip_coco_stuff_transductive": (69.2, 40.7, 59.9, 48.5, ZEGCLIP_README),
    "zegclip_pascal_context_transductive": (77.3, 46.8, 68.5, 55.6, ZEGCLIP_README),
    "zegclip_voc_fully_supervised": (96.3, 92.4, 90.9, 91.6, ZEGCLIP_README),
    "zegclip_coco_stuff_fully_supervised": (69.9, 40.7, 63.2, 49.6, ZEGCLIP_README),
    "zegclip_pascal_context_fully_supervised": (None, 46.5, 78.7, 56.9, ZEGCLIP_README),
    "ldvc_voc_inductive": (95.5, 92.5, 82.3, 87.2, LDVC_PAPER),
    "ldvc_coco_stuff_inductive": (64.3, 43.2, 45.0, 44.1, LDVC_PAPER),
}


def render_stub(name: str) -> str:
    """
    Make the card of a configuration.

    Args:
        name: The file's name in `configs/`, without its ending.
    """
    config = f"configs/{name}.yaml"
    trained_by = "configs/zegclip_coco_stuff_inductive.yaml" if name in CROSS_DATASET else config
    _, evaluated, _ = parse_arguments([str(ROOT / config), "--use_cpu"])
    model_args, data_args, training_args = parse_arguments([str(ROOT / trained_by), "--use_cpu"])
    split = benchmark_split(data_args.dataset)
    seen = list(split.names) if data_args.setting == "fully_supervised" else split.seen_names
    head = describe_head(
        model_args.config_overrides() | {"seen_class_names": seen, "id2label": dict(enumerate(split.names))}
    )
    head["prompt_templates"] = model_args.prompt_templates or head["prompt_templates"]
    # Ids of the template are for the tokenizer to give, and stand in no card.
    prompts = asdict(model_args.prompt_config(None, [0, 1, 2] if model_args.text_prompts else None))
    run = describe_run(model_args, data_args, training_args)
    described = Described(head, prompts, run, base=str(model_args.model), base_id=model_args.model)

    title = None
    blocks = ["None have been measured. Two commands do:"]
    if name in CROSS_DATASET:
        target = DATASET_TITLES[evaluated.dataset]
        title = f"ZegCLIP from {DATASET_TITLES[data_args.dataset]} to {target}"
        blocks = [f"None have been measured. Two commands do; all classes of {target} count as seen:"]
    commands = (
        f"python train.py {trained_by} --data_dir {data_args.data_dir}",
        f"python eval.py {config} --data_dir {evaluated.data_dir} --model {training_args.output_dir}",
    )
    blocks.append("```\n{}\n{}\n```".format(*commands))
    if name in PUBLISHED:
        pacc, *means, source = PUBLISHED[name]
        figures = " | ".join("-" if value is None else f"{value:.1f}" for value in (pacc, *means))
        blocks += [
            f"As published by the method's authors, **not by this code**, per cent (read in {source}):",
            f"| pAcc | mIoU seen | mIoU unseen | hIoU |\n| --- | --- | --- | --- |\n| {figures} |",
        ]
    else:
        blocks.append("Figures that the method's authors have published for this were not at hand.")
    return render_card(described, title=title, not_run=config, figures="\n\n".join(blocks))


def main() -> int:
    """Write the cards, or compare them; returns the exit status."""
    parser = argparse.ArgumentParser(description="Write the cards of configured runs that nobody has made yet.")
    parser.add_argument("--check", action="store_true", help="write nothing; fail if a card would be another")
    check = parser.parse_args().check
    status = 0
    for name in NAMES:
        path, text = ROOT / "model_cards" / f"{name}.md", render_stub(name)
        if check and (not path.is_file() or path.read_text(encoding="utf-8") != text):
            print(f"{path.relative_to(ROOT)} is not as it would be written.", file=sys.stderr)
            status = 1
        elif not check:
            with replacing(path) as part:
                part.write_text(text, encoding="utf-8")
    return status


if __name__ == "__main__":
    sys.exit(main())
