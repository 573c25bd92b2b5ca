"""correct -c statistics: a patch's normalisation statistics, estimated again on unlabelled images from the field."""

from __future__ import annotations

from deeppatch.artifacts import state_digest
from deeppatch.cli.context import Context
from deeppatch.cli.correct.report import Correction
from deeppatch.cli.predecessors import load_patch
from deeppatch.data.epochs import Passes
from deeppatch.data.unlabelled import read_unlabelled
from deeppatch.patching.statistics import reestimate_statistics
from deeppatch.progress import info
from deeppatch.zoo.classifier import Classifier


def run_statistics(context: Context, model: Classifier) -> Correction | None:
    """Return the patch of an earlier run with the statistics of the images in the folder that --unlabelled names."""
    options = context.options
    patch = load_patch(context, model)
    names, pixels = read_unlabelled(options.unlabelled, context.scaling)
    context.stage.inputs[str(options.unlabelled)] = state_digest({"pixels": pixels})  # so that -r sees other images
    if context.already_finished():
        return None
    info(f"statistics of {len(names)} unlabelled images in {options.unlabelled}")
    found = reestimate_statistics(model, patch, pixels, seed=options.seed, amp=options.amp)
    facts = {
        "kind": found.kind,
        "filters": sum(map(len, found.channels.values())),
        "channels": found.channels,
        "images": len(names),
        "batches": found.about["statistics"]["batches"],
    }
    return Correction("patch.safetensors", found.to_bytes(), Passes(0, len(names)), facts=facts)
