"""Which classes a data set has, which of them training sees, and how label maps follow from that."""

from dataclasses import dataclass, field

import numpy as np


@dataclass(frozen=True)
class ClassSplit:
    """
    Class names of a data set and their zero-shot split (generalised zero-shot protocol).

    Args:
        names: All class names; the position is the id in the label maps.
        seen_ids: Ids whose masks are trained on.
        unseen_ids: Ids whose masks are held out, and which mIoU(U) is the mean over. Ids in neither list compete for
            pixels but enter neither mean.
        groups: Further sets of ids to report the same means over, such as objects without grounds.
        ignore_index: Label of pixels without a class.
    """

    names: tuple[str, ...]
    seen_ids: tuple[int, ...]
    unseen_ids: tuple[int, ...] = ()
    groups: dict[str, tuple[int, ...]] = field(default_factory=dict)
    ignore_index: int = 255

    def __post_init__(self) -> None:
        both = set(self.seen_ids) & set(self.unseen_ids)
        if both:
            raise ValueError(f"Class {self.names[min(both)]!r} is listed as seen and as unseen.")
        outside = [i for i in (*self.seen_ids, *self.unseen_ids) if not 0 <= i < len(self.names)]
        if outside:
            raise ValueError(f"The split names the id {outside[0]}, but there are {len(self.names)} classes.")

    @property
    def seen_names(self) -> list[str]:
        """Names of the seen classes, in the order of `seen_ids`."""
        return [self.names[index] for index in self.seen_ids]

    def training_labels(self, labels: np.ndarray) -> np.ndarray:
        """
        Map ids to the queries of inductive training: positions in `seen_ids`; everything else is ignored.

        Args:
            labels: int64 ids of any shape.

        Returns:
            int64, the same shape.
        """
        self.check(labels)
        table = np.full(max(len(self.names), self.ignore_index + 1), self.ignore_index)
        table[list(self.seen_ids)] = np.arange(len(self.seen_ids))
        return table[labels]

    def check(self, labels: np.ndarray) -> None:
        """Raise `ValueError` if a label is neither an id nor the ignore index."""
        unknown = (labels != self.ignore_index) & ((labels < 0) | (labels >= len(self.names)))
        if unknown.any():
            raise ValueError(
                f"A label map holds the id {int(labels[unknown][0])}, outside of the class list "
                f"(0 to {len(self.names) - 1}, or {self.ignore_index} to ignore)."
            )


__all__ = ["ClassSplit"]
