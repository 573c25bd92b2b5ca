"""Models under repair: trained on a class-biased part of a data set, of which the rest is a pool and a test."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from deeppatch.data.names import BIASES

if TYPE_CHECKING:
    from deeppatch.cli.context import Context
    from deeppatch.data.biased_split import Partition

SPLIT = "split.safetensors"


def add_bias(group: argparse._ArgumentGroup) -> None:
    """Add --bias, which all stages of HybridRepair share."""
    group.add_argument(
        "--bias",
        choices=BIASES,
        help="cut the data set as HybridRepair does, into biased train and val, test and pool, with class bias A "
        "(none), B or C (default: the data set's own parts)",
    )


def leave_partition(context: Context) -> None:
    """Write which image went where, and say how many of each class the model has been trained on; without bias nothing.

    The file's metadata name the order, the bias, and a hash of the lists.
    """
    import torch

    from deeppatch.data import biased_split
    from deeppatch.progress import info

    options, source = context.options, context.source
    if not options.bias:
        return
    parts = biased_split.partition(source, options.bias, options.seed, options.limit)
    digest = partition_digest(parts)
    context.stage.write(SPLIT, parts.to_bytes(dataset=source.name, bias=options.bias, digest=digest))
    counts = torch.bincount(context.splits.train.labels, minlength=len(source.classes)).tolist()
    info(
        f"bias {options.bias}, cut in {parts.order}: {' '.join(map(str, counts))} training images by class, "
        f"{len(parts.pool)} in the pool (split {digest[:12]})"
    )


def partition_digest(parts: Partition) -> str:
    """Return a hash of the four lists, which tells one split from another."""
    from deeppatch.artifacts import state_digest

    return state_digest({"train": parts.train, "val": parts.val, "test": parts.test, "pool": parts.pool})
