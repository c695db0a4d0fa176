"""`zegclip demo`: draw pictures and segment them with the embedded default model, and without training."""

import argparse
import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from zegclip.commands.options import add_output_option, check_output_folder, integer

if TYPE_CHECKING:
    import numpy as np
    from PIL.Image import Image

    from zegclip.picture_world.drawing import Scene

NUM_SCENES = 3
NUM_ABSENT = 2
"""Seen classes, and as many unseen ones, that no picture shows: the model has to leave them out."""
SCENE_SIZE = 192
# Far from the seeds of all data sets: the demo shows no picture that a model was chosen or measured on.
_FIRST_SEED = 3 << 60


def add_parser(commands: Any) -> None:
    """Add the command to the subparsers."""
    parser = commands.add_parser(
        "demo",
        help="segment generated pictures with the embedded model",
        description="Draw three pictures and segment them into classes whose masks the embedded model was trained on "
        "and classes whose masks it was not: with its CLIP alone, without training, with this model, and with both.",
    )
    add_output_option(parser, "zegclip-demo")
    parser.add_argument("--seed", type=integer(0), default=0, help="seed of the pictures (default: %(default)s)")
    parser.set_defaults(run=run)


def draw_demo_scenes(seed: int, seen: Sequence[str]) -> list["Scene"]:
    """
    Draw pictures with drawing parameters of the test set, each with a seen and two unseen objects on two grounds.

    Args:
        seed: Not negative.
        seen: Names of the classes whose masks were trained on.
    """
    import numpy as np

    from zegclip.picture_world.classes import GROUND_NAMES, OBJECT_NAMES, class_ids
    from zegclip.picture_world.drawing import draw_scene

    rng = np.random.default_rng([_FIRST_SEED, seed])
    known = rng.permutation([name for name in OBJECT_NAMES if name in seen]).tolist()
    unknown = rng.permutation([name for name in OBJECT_NAMES if name not in seen]).tolist()
    upper = rng.permutation(["sky", "night", "brick"]).tolist()
    lower = rng.permutation([name for name in GROUND_NAMES if name not in upper]).tolist()
    scenes = []
    for index in range(NUM_SCENES):
        objects = (*known[index : index + 1], *unknown[2 * index : 2 * index + 2])
        scenes.append(
            draw_scene(
                _FIRST_SEED + NUM_SCENES * seed + index,
                "test",
                size=SCENE_SIZE,
                objects=tuple(class_ids(objects)),
                grounds=tuple(class_ids((upper[index], lower[index]))),
            )
        )
    return scenes


def choose_labels(scenes: Sequence["Scene"], seen: Sequence[str], seed: int) -> list[str]:
    """Return the names of all classes in the scenes, and of a few seen and unseen classes that are not in them."""
    import numpy as np

    from zegclip.picture_world.classes import CLASS_NAMES

    shown = {CLASS_NAMES[index] for scene in scenes for index in np.unique(np.asarray(scene.mask))}
    others = np.random.default_rng([_FIRST_SEED, seed, 1]).permutation(
        [name for name in CLASS_NAMES if name not in shown]
    )
    absent = [name for name in others if name in seen][:NUM_ABSENT]
    absent += [name for name in others if name not in seen][:NUM_ABSENT]
    return [name for name in CLASS_NAMES if name in shown or name in absent]


def overlap(ids: "np.ndarray", truth: "np.ndarray", index: int, class_id: int) -> float:
    """Intersection over union of a label's pixels and the exact mask's; nan if neither has any."""
    found, drawn = ids == index, truth == class_id
    union = (found | drawn).sum()
    return (found & drawn).sum() / union if union else math.nan


def print_table(summary: Sequence[dict[str, Any]], overlaps: Sequence[Sequence[float]], seen: Sequence[str]) -> None:
    """
    Print one line per class.

    Args:
        summary: Share and score of each label with both together.
        overlaps: For each label, its IoU without training, trained, and with both.
        seen: Names of the classes whose masks were trained on.
    """

    def percent(value: float) -> str:
        return "-" if math.isnan(value) else f"{100 * value:.1f} %"

    columns = f"{'IoU untrained':>13}{'trained':>10}{'both':>10}{'share':>9}{'score':>8}"
    print(f"  {'class':<12}{'masks in training':<19}{columns}")
    for row, values in zip(summary, overlaps, strict=True):
        score = f"{row['score']:.2f}" if row["share"] else "-"
        known = "yes" if row["label"] in seen else "no"
        untrained, trained, both = map(percent, values)
        share = f"{100 * row['share']:.1f} %"
        print(f"  {row['label']:<12}{known:<19}{untrained:>13}{trained:>10}{both:>10}{share:>9}{score:>8}")


def draw_strip(
    picture: "Image", truth: "np.ndarray", maps: dict[str, "np.ndarray"], labels: Sequence[str], seen: Sequence[str]
) -> "Image":
    """
    Put a picture and maps of it side by side, with the share of right pixels above and unseen classes marked.

    Args:
        picture: RGB.
        truth: `(height, width)` indices into `labels`.
        maps: By title, the same of what was predicted.
        labels: Names of the classes.
        seen: Names of the classes whose masks were trained on.
    """
    import numpy as np

    from zegclip.drawing.overlay import class_panes, class_shares
    from zegclip.processing.class_split import ClassSplit

    unseen_ids = tuple(index for index, label in enumerate(labels) if label not in seen)
    seen_ids = tuple(index for index in range(len(labels)) if index not in unseen_ids)
    split = ClassSplit(tuple(labels), seen_ids, unseen_ids)
    titled = {f"{title}: {100 * (ids == truth).mean():.0f} % right": ids for title, ids in maps.items()}
    shown, _ = class_shares(np.concatenate([truth, *maps.values()]), len(labels))
    return class_panes(picture, titled, split, shown, [""] * len(shown))


def run(arguments: argparse.Namespace) -> int:
    """Run the command: draw pictures, segment them, print tables and write all results to the output folder."""
    import numpy as np

    from zegclip import DEFAULT_MODEL
    from zegclip.files import remove_leftovers, writing_to
    from zegclip.identity import file_state
    from zegclip.loading import load_base
    from zegclip.picture_world.classes import CLASS_NAMES
    from zegclip.plain_clip import training_free_fields
    from zegclip.segmenting.pictures import absolute
    from zegclip.segmenting.results import summarise, write_results
    from zegclip.segmenting.segmenter import ProgressPipeline, load_segmenter

    output, seed = arguments.output, arguments.seed
    check_output_folder(output)
    remove_leftovers(output)
    print("The embedded default model on generated pictures, offline.")
    segmenter = load_segmenter(DEFAULT_MODEL)
    config = segmenter.model.config
    fields = training_free_fields(config.vocabulary) | {"prompt_templates": config.prompt_templates}
    untrained = ProgressPipeline(
        model=load_base(DEFAULT_MODEL, fields).eval(),
        processor=segmenter.processor,
        device=segmenter.device,
        task=segmenter.task,
        output_type="class_map",
    )
    seen = config.seen_class_names or []
    scenes = draw_demo_scenes(seed, seen)
    labels = choose_labels(scenes, seen, seed)
    for number, scene in enumerate(scenes, start=1):
        name = f"scene_{number}"
        result = segmenter(scene.image, candidate_labels=labels)
        maps = {
            "without training": untrained(scene.image, candidate_labels=labels)["segmentation"],
            "trained": segmenter(scene.image, candidate_labels=labels, training_free_weight=0.0)["segmentation"],
            "both": result["segmentation"],
        }
        mask = np.asarray(scene.mask)
        truth = np.zeros(mask.shape, dtype=np.int64)
        for index, label in enumerate(labels):
            truth[mask == CLASS_NAMES.index(label)] = index
        with writing_to(output) as folder:
            scene.image.save(folder / f"{name}.png")
            draw_strip(scene.image, truth, maps, labels, seen).save(folder / f"{name}_strip.png")
        path = output / f"{name}.png"
        described = {"image": absolute(str(path)), "image_file": file_state(path), "model": "embedded default model"}
        write_results(output, name, scene.image, result, described)
        overlaps = [[overlap(ids, truth, index, index) for ids in maps.values()] for index in range(len(labels))]
        print(f"\n{output / name}.png")
        print_table(summarise(result["segmentation"], result["scores"], labels), overlaps, seen)
        print(f"  side by side: {output / name}_strip.png")
    return 0
