"""correct -c statistics: a patch's normalisation statistics, estimated again on unlabelled images from the field."""

from __future__ import annotations

from typing import Any

from deeppatch.cli.context import Context
from deeppatch.cli.predecessors import load_patch
from deeppatch.data.unlabelled import read_unlabelled
from deeppatch.patching.statistics import reestimate_statistics
from deeppatch.progress import info
from deeppatch.zoo.classifier import Classifier


def run_statistics(options: Any, context: Context, model: Classifier) -> None:
    """Write the patch of an earlier run with the statistics of the images in the folder that --unlabelled names."""
    patch = load_patch(context, model)
    if context.already_finished():
        return
    names, pixels = read_unlabelled(options.unlabelled, context.scaling)
    info(f"statistics of {len(names)} unlabelled images in {options.unlabelled}")
    found = reestimate_statistics(model, patch, pixels, seed=options.seed, amp=options.amp)
    content = found.to_bytes()
    path = context.stage.write("patch.safetensors", content)
    context.stage.write_json(
        "metrics.json",
        {
            "method": "statistics",
            "kind": found.kind,
            "filters": sum(map(len, found.channels.values())),
            "channels": found.channels,
            "images": len(names),
            "batches": found.about["statistics"]["batches"],
            "passes": {"train": 0, "forward": len(names)},
            "stored_bytes": len(content),
        },
    )
    context.stage.finish()
    info(f"{path}, {len(content)} bytes")
