"""Fit a router on val: clean images against their blurred copies."""

from __future__ import annotations

from typing import Any

import torch

from deeppatch import runtime
from deeppatch.cli.context import Context
from deeppatch.cli.measure import right_by_level
from deeppatch.data import views
from deeppatch.patching.router import FEATURES, ROUTERS, Evidence, Router
from deeppatch.patching.switched import SwitchedModel
from deeppatch.progress import info, track
from deeppatch.zoo.classifier import Classifier


@torch.inference_mode()
def calibrate(
    context: Context, model: Classifier, patched: Classifier, switched: SwitchedModel
) -> tuple[Router, dict[str, Any]]:
    """Return the router that --router names and what its calibration found."""
    options, val = context.options, context.splits.val
    view = views.append(val, context.blur, options.batch_size)
    rows = []
    for pixels, _labels in track(view, len(view), "calibrating"):
        with runtime.autocast(context.device, options.amp):
            maps = switched.begin(pixels)[1]
        rows.append(FEATURES[options.router](maps).double())
    original = right_by_level(context, model, val, "calibrating, pretrained")[0]
    repaired = right_by_level(context, patched, val, "calibrating, patched")[0]
    evidence = Evidence(
        features=torch.cat(rows).cpu().numpy(),
        image=view.index.cpu().numpy(),
        degraded=(view.levels > 0).cpu().numpy(),
        lost=(original & ~repaired).cpu().numpy(),
    )
    router, facts = ROUTERS[options.router](evidence, options.max_clean_drop / 100)
    report(facts)
    return router.to(context.device), {"val_images": len(val), **facts}


def report(facts: dict[str, Any]) -> None:
    """Say what the calibration bounds."""
    if "clean_drop_bound" not in facts:
        return
    bound, wanted = 100 * facts["clean_drop_bound"], 100 * facts["max_clean_drop"]
    seen = f"{facts['clean_losses']} of {facts['clean_images']} clean val images lost"
    info(f"router: {seen}; clean drop at most {bound:.2f} points (95 %), wanted {wanted:g}")
    if not facts["bound_attained"]:
        least = 100 * facts["smallest_bound"]
        info(f"router: so few images cannot show less than {least:.2f} points, so no loss on val was allowed")
