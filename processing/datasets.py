"""Any data set by name: a benchmark, a folder or a Hub id, with its classes."""

import difflib
import os
import re
from collections.abc import Collection

from datasets import DatasetDict

from .benchmarks import BENCHMARKS, SPLITS, read_class_lists, split_benchmark
from .class_split import ClassSplit, split_classes
from .folders import NAMES_FILES, find_class_labels, find_names_file, load_with_features, read_class_names


def load_pictures(
    dataset: str,
    data_dir: str | os.PathLike | None = None,
    classes_file: str | os.PathLike | None = None,
    seen: Collection[str] | None = None,
    unseen: Collection[str] | None = None,
    ignored: Collection[str] = (),
    image_column: str | None = None,
    mask_column: str | None = None,
    splits: Collection[str] | None = None,
) -> tuple[DatasetDict, ClassSplit]:
    """
    Load a data set and its classes.

    Args:
        dataset: `voc`, `coco_stuff`, `pascal_context_59`, `pascal_context_60`, a folder or a Hub id (`owner/name`).
        data_dir: Where a benchmark lies.
        classes_file: Class names of a folder or Hub data set, see [`read_class_names`]; `None`: its own.
        seen: Names of seen classes, see [`split_classes`].
        unseen: Names of unseen classes. If neither is given, a benchmark has the papers' split.
        ignored: Names that are taken out of the list.
        image_column: As in [`load_hub`].
        mask_column: As in [`load_hub`].
        splits: Which of a benchmark's splits are needed; `None`: both. Files of the other need not be there.

    Returns:
        The splits with the columns `image` and `mask`, and the classes.

    Raises:
        ValueError: One sentence, where something is missing, broken, unknown or contradictory.
    """
    if dataset in BENCHMARKS:
        given = {"classes_file": classes_file, "image_column": image_column, "mask_column": mask_column}
        for name, value in given.items():
            if value is not None:
                raise ValueError(f"{name} is for folders and Hub data sets; {dataset} has its own.")
        if data_dir is None:
            raise ValueError(f"data_dir is missing: say which folder {dataset} lies in.")
        if seen is None and unseen is None:
            unseen = [name for name in read_class_lists()[dataset]["unseen_names"] if name not in ignored]
        split = split_benchmark(dataset, seen=seen, unseen=unseen, ignored=ignored)
        needed = [name for name in SPLITS if splits is None or name in splits] or SPLITS
        return BENCHMARKS[dataset](os.path.expanduser(data_dir), needed), split
    if data_dir is not None:
        raise ValueError(f"data_dir is for the benchmarks {', '.join(BENCHMARKS)}, of which {dataset!r} is none.")

    place = os.path.expanduser(dataset)
    if not os.path.isdir(place):
        _check_hub_id(dataset)
    data, features = load_with_features(place, image_column, mask_column)
    source = find_names_file(place) if classes_file is None else os.path.expanduser(classes_file)
    if source is None and not find_class_labels(features):
        raise ValueError(
            f"There are no class names for {dataset}: give a file with a name a line, by mask value, as classes_file "
            f"(or put it into the folder as {' or '.join(NAMES_FILES)})."
        )
    names, values = read_class_names(features if source is None else source)
    return data, split_classes(names, seen=seen, unseen=unseen, ignored=ignored, mask_values=values)


def _check_hub_id(name: str) -> None:
    """Refuse what cannot be a Hub id, before the network is asked."""
    if re.fullmatch(r"[\w.-]+/[\w.-]+", name) and not name.startswith("."):
        return
    if os.sep in name or name.startswith((".", "~")):
        raise ValueError(f"There is no folder {name}.")
    close = difflib.get_close_matches(name, BENCHMARKS, n=1)
    hint = f"; did you mean {close[0]!r}?" if close else "."
    raise ValueError(
        f"There is no data set {name!r}: give {', '.join(BENCHMARKS)}, a folder, or a Hub id such as owner/name{hint}"
    )


__all__ = ["load_pictures"]
