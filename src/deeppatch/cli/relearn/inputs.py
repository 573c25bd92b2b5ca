"""What relearn reads and trains on: annotate's selection, labels that a user has filled in, and the pool."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from deeppatch.artifacts import read_given, state_digest
from deeppatch.cli.context import Context
from deeppatch.cli.pool import Pool
from deeppatch.data.augmix import views
from deeppatch.data.label_file import read_labels
from deeppatch.errors import OtherBase, StaleArtifact, UserError
from deeppatch.hybrid.consistency import smoothness
from deeppatch.hybrid.selection import UNKNOWN, Selection, selection_from_bytes
from deeppatch.hybrid.training_data import SemiSupervisedData, known_and_weights
from deeppatch.progress import info
from deeppatch.runtime import generator
from deeppatch.zoo.classifier import Classifier


def load_selection(context: Context, model: Classifier, pool: Pool) -> Selection:
    """Read what annotate left for these options, chosen from `pool` with `model`, and the labels of --labels."""
    options = context.options
    path, command = context.locate("annotate", "selection.safetensors")
    selection = selection_from_bytes(context.stage.read(path, command), path)
    if selection.facts["base"] != state_digest(model.state_dict()):
        raise OtherBase(path, command)
    if selection.facts["pool_digest"] != pool.digest:
        raise StaleArtifact(f"{path} chose from another pool; make it again with: {command}")
    info(f"inherited {path} ({len(selection.bought)} images to label)")
    if options.labels:
        content = read_given(options.labels)
        context.stage.inherit(options.labels, content)
        files = [pool.names[place] for place in selection.bought.tolist()]
        given = read_labels(content, options.labels, files, context.source.classes)
        selection = replace(selection, labels=given)
    if options.use == "unlabelled" and not len(selection.unlabelled):
        raise UserError(f"--use unlabelled: --method {options.method} reads no unlabelled images; leave --use out")
    if options.use != "unlabelled" and bool((selection.labels == UNKNOWN).any()):
        raise UserError(
            f"nobody has given the labels yet: fill in {path.with_suffix('.csv')} and hand it over with --labels FILE"
        )
    return selection


def material_of(context: Context, selection: Selection, pool: Pool) -> SemiSupervisedData:
    """Put together what the repair learns from: training images, the pool, and of the selection what --use names."""
    options, source = context.options, context.source
    known, weights = known_and_weights(selection, len(pool), options.use)

    def unsmoothness(model: nn.Module, epochs: int) -> Tensor:
        draw = generator(options.seed, "unsmoothness", epochs)
        return smoothness(model, pool.pixels, options.views, draw, amp=options.amp).entropy

    def shown(pixels: Tensor, draw: torch.Generator) -> Tensor:
        return views(pixels, options.views, draw)

    return SemiSupervisedData(
        context.splits.train,
        pool.pixels,
        known.to(context.device),
        weights.to(context.device),
        len(source.classes),
        shown,
        unsmoothness if selection.facts["weighted"] else None,
        crop=source.augment,
        mirror=source.mirror,
        supervised=options.use != "unlabelled",
    )
