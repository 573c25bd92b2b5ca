"""assess --race: exact scores on growing parts of val, for as long as a filter's side of the cut is unknown."""

from __future__ import annotations

import dataclasses

import torch
from torch import Tensor
from torch.nn import functional as F

from deeppatch import runtime
from deeppatch.artifacts import state_digest
from deeppatch.cli import options as command_line
from deeppatch.cli.assess.ablating import batch_size, degraded_view, engine, every_second, samples
from deeppatch.cli.context import Context
from deeppatch.cli.methods import Scoring
from deeppatch.data.views import View, ordered
from deeppatch.distributed import ranks
from deeppatch.graph.hooks import convolutions
from deeppatch.localization.ranking import Ranking, cut
from deeppatch.localization.successive_elimination import begin
from deeppatch.localization.successive_elimination import run as eliminate
from deeppatch.progress import counting, info, track
from deeppatch.zoo.classifier import Classifier

# filters can leave after each part of the data
PARTS = 24


def raced(context: Context, model: Classifier, method: Scoring) -> tuple[Ranking, dict[str, object]]:
    """Race all filters for their layers' chosen part; return the ranking and what the race has spared."""
    options = context.options
    ratio = options.susp_ratio or command_line.DEFAULT_RATIO
    widths = {name: conv.out_channels for name, conv in convolutions(model.network).items()}
    race = begin(widths, {name: cut(width, ratio, options.susp_side) for name, width in widths.items()})
    machine = engine(context, model, method)
    view = degraded_view(context, batch_size(context, machine.bytes_an_image), swap=method.swap)
    size = min(view.batch_size, -(-len(view.index) // PARTS))
    view = dataclasses.replace(ordered(view, margins(model, view).argsort(stable=True)), batch_size=size)
    checkpoint = context.checkpoint(base=state_digest(model.state_dict()))
    if state := ranks.broadcast_from_rank0(checkpoint.load):
        race.load(state)
    filters, images = sum(widths.values()), len(view.index)
    info(
        f"racing {filters} filters in {len(widths)} layers over at most {images} degraded val images, {size} at a time"
    )
    keep = every_second(lambda: checkpoint.save(race.state()))
    with counting(len(view) * filters, f"{options.fs_method}, at most", race.samples * filters) as tick:
        stream = samples(model, view, swap=method.swap)
        eliminate(
            race,
            stream,
            images,
            machine.ablation,
            options.race,
            keep,
            lambda _name: tick(runtime.ranks()),
            machine.costs,
        )
    spent = race.passes()
    info(f"{spent} image passes of {filters * images}: {filters * images / spent:.1f} times fewer")
    facts = {
        "race": options.race,
        "ratio_raced_for": ratio,
        "image_passes": spent,
        "all_image_passes": filters * images,
    }
    return race.ranking(options.fs_method, method.sign, images), facts


@torch.inference_mode()
def margins(model: Classifier, view: View) -> Tensor:
    """Return how far each image (M,) is from being answered otherwise: the right logit's distance to the best other."""
    found = []
    for pixels, labels in track(view, len(view), "margins"):
        logits = model(pixels)
        right = F.one_hot(labels, logits.shape[1]).bool()
        found.append((logits[right] - logits.masked_fill(right, -torch.inf).amax(1)).abs())
    return torch.cat(found)
