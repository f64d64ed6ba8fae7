"""Divides images into parts without dividing a group of images that belong together.

Legend: N images, G groups, P parts.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from jaxtyping import Int

NO_PART = -1
"""Where a group falls that holds all images of a class: it stays for training, whatever is cut."""


def allot(
    groups: Int[np.ndarray, " N"],
    labels: Int[np.ndarray, " N"],
    shares: Sequence[float],
    order: Int[np.ndarray, " G"],
    *,
    whole: int | None = None,
) -> Int[np.ndarray, " N"]:
    """The part that each image falls to with its whole group, so that each part has its share of each class, nearly.

    The groups come in ``order``, but those of twice the size before the others, which then even out what the large ones left
    uneven. Each falls to the part that lacks its classes most: where chi-square, the sum over parts and classes of
    (images there - images wanted)^2 / images wanted, grows least. No part stays without a group where there are enough.

    Args:
        groups: from 0 to G - 1.
        labels: the class of each image.
        shares: of the P parts in all images; together 1.
        order: of the groups, each once.
        whole: number of a part that gets a group of each class, whatever its share is.

    Returns:
        Numbers of parts, or ``NO_PART``.
    """
    num_classes = int(labels.max()) + 1
    cells, counts = np.unique(groups * num_classes + labels, return_counts=True)
    cell_groups, cell_classes = np.divmod(cells, num_classes)
    pinned = cell_groups[np.isin(cell_classes, np.flatnonzero(np.bincount(cell_classes) == 1))]
    begin = np.searchsorted(cell_groups, np.arange(len(order) + 1))
    doublings = np.log2(np.bincount(groups)).astype(int)
    order = order[np.argsort(-doublings[order], kind="stable")]
    order = order[~np.isin(order, pinned)]

    wanted = np.outer(shares, np.bincount(labels, minlength=num_classes)).tolist()
    there = [[0] * num_classes for _ in shares]
    part: Int[np.ndarray, " G"] = np.full(len(begin) - 1, NO_PART)
    members, bounds = list(zip(cell_classes.tolist(), counts.tolist(), strict=True)), begin.tolist()
    for group in order.tolist():
        cell = members[bounds[group] : bounds[group + 1]]
        growth = [
            sum((2 * (here[label] - goal[label]) + added) * added / goal[label] for label, added in cell)
            for here, goal in zip(there, wanted, strict=True)
        ]
        part[group] = growth.index(min(growth))
        for label, added in cell:
            there[part[group]][label] += added
    for empty in range(len(shares)):
        if not (part == empty).any() and len(order) >= len(shares):
            largest = np.bincount(part[order]).argmax()
            part[order[part[order] == largest][-1]] = empty
    if whole is not None:
        for label in range(num_classes):
            holders = cell_groups[cell_classes == label]
            if len(holders) > 0 and not np.isin(part[holders], [whole, NO_PART]).any():
                part[holders[counts[cell_classes == label].argmin()]] = whole  # with two parts, the other keeps a group
    found: Int[np.ndarray, " N"] = part[groups]
    return found
