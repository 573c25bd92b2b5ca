"""Rank filters by successive elimination: stop evaluating a filter once its side of the cut is known."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.data.views import View, ordered
from deeppatch.localization.exact_scores import ExactScorer, choose_engine
from deeppatch.localization.ranking import Ranking, cut_index
from deeppatch.localization.scoring_run import ScoringRun
from deeppatch.localization.successive_elimination import Elimination, eliminate
from deeppatch.progress import counting, info, track

# the images are read in this many parts; filters are accepted and rejected after each
PARTS = 24


def rank_by_elimination(run: ScoringRun, scorer: ExactScorer, delta: float, ratio: float, side: str) -> Ranking:
    """Rank all filters by successive elimination around a cut in each layer.

    Args:
        run: The model, the images, and the limits of the run.
        scorer: The exact method.
        delta: The error probability of each decision.
        ratio: The share of each layer's filters that is patched.
        side: The side of the ranking that is patched, `front` or `rear`; with `ratio` it determines the cut.

    Returns:
        The ranking; its `facts` contain the number of image passes, and how many an exhaustive evaluation needs.
    """
    widths = run.widths
    elimination = Elimination.start(widths, {name: cut_index(width, ratio, side) for name, width in widths.items()})
    engine = choose_engine(run, scorer)
    view = run.view(run.fitting_batch_size(engine.bytes_per_image), paired=scorer.paired)
    size = min(view.batch_size, -(-len(view.index) // PARTS))
    view = dataclasses.replace(ordered(view, margins(run.model, view).argsort(stable=True)), batch_size=size)
    run.restore(elimination.load, batches=int, images=int, current={str: [Tensor]}, layers={str: {str: object}})
    filters, images = sum(widths.values()), len(view.index)
    info(
        f"eliminating among {filters} filters in {len(widths)} layers over at most {images} degraded val images, "
        f"{size} at a time"
    )
    save = run.saver(elimination.state)
    with counting(len(view) * filters, f"{scorer.method}, at most", elimination.batches * filters) as tick:
        eliminate(
            elimination,
            run.batches(view, paired=scorer.paired),
            images,
            engine.ablation,
            delta,
            save=save,
            tick=lambda _name: tick(runtime.ranks()),
            costs=engine.costs,
        )
    passes = elimination.image_passes()
    info(f"{passes} image passes of {filters * images}: {filters * images / passes:.1f} times fewer")
    ranking = elimination.ranking(scorer.method, scorer.sign, images)
    facts = {
        "eliminate": delta,
        "eliminated_for_ratio": ratio,
        "image_passes": passes,
        "all_image_passes": filters * images,
    }
    return dataclasses.replace(ranking, facts=facts)


@torch.inference_mode()
def margins(model: nn.Module, view: View) -> Tensor:
    """Return the margin of each image (M,): the absolute difference of its label's logit and the highest other one."""
    margins_by_batch = []
    for pixels, labels in track(view, len(view), "margins"):
        logits = model(pixels)
        own = F.one_hot(labels, logits.shape[1]).bool()
        margins_by_batch.append((logits[own] - logits.masked_fill(own, -torch.inf).amax(1)).abs())
    return torch.cat(margins_by_batch)
