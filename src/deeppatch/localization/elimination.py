"""Rank filters on growing parts of the images, and stop evaluating those whose side of the cut is known."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.data.views import View, ordered
from deeppatch.localization.exact_scores import ExactScorer, choose_engine
from deeppatch.localization.ranking import Ranking, cut
from deeppatch.localization.scoring_run import ScoringRun
from deeppatch.localization.successive_elimination import Elimination, eliminate
from deeppatch.progress import counting, info, track

# filters are accepted and rejected after each part of the images
PARTS = 24


def rank_by_elimination(run: ScoringRun, scorer: ExactScorer, delta: float, ratio: float, side: str) -> Ranking:
    """Rank all filters by successive elimination around the cut that `ratio` and `side` make in each layer.

    The ranking's facts tell how many evaluations of an image were needed.
    """
    widths = run.widths
    elimination = Elimination.start(widths, {name: cut(width, ratio, side) for name, width in widths.items()})
    engine = choose_engine(run, scorer)
    view = run.view(run.images_at_a_time(engine.bytes_an_image), paired=scorer.paired)
    size = min(view.batch_size, -(-len(view.index) // PARTS))
    view = dataclasses.replace(ordered(view, margins(run.model, view).argsort(stable=True)), batch_size=size)
    if state := run.saved():
        elimination.load(state)
    filters, images = sum(widths.values()), len(view.index)
    info(
        f"eliminating among {filters} filters in {len(widths)} layers over at most {images} degraded val images, "
        f"{size} at a time"
    )
    keep = run.saver(elimination.state)
    with counting(len(view) * filters, f"{scorer.method}, at most", elimination.batches * filters) as tick:
        eliminate(
            elimination,
            run.batches(view, paired=scorer.paired),
            images,
            engine.ablation,
            delta,
            keep,
            lambda _name: tick(runtime.ranks()),
            engine.costs,
        )
    spent = elimination.image_passes()
    info(f"{spent} image passes of {filters * images}: {filters * images / spent:.1f} times fewer")
    ranking = elimination.ranking(scorer.method, scorer.sign, images)
    facts = {
        "eliminate": delta,
        "eliminated_for_ratio": ratio,
        "image_passes": spent,
        "all_image_passes": filters * images,
    }
    return dataclasses.replace(ranking, facts=facts)


@torch.inference_mode()
def margins(model: nn.Module, view: View) -> Tensor:
    """Return each image's distance (M,) to the decision boundary: the logit of its label less the best other one."""
    found = []
    for pixels, labels in track(view, len(view), "margins"):
        logits = model(pixels)
        own = F.one_hot(labels, logits.shape[1]).bool()
        found.append((logits[own] - logits.masked_fill(own, -torch.inf).amax(1)).abs())
    return torch.cat(found)
