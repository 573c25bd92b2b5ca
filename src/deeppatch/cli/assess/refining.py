"""assess -f taylor and activation: estimate all scores in one pass, and score the filters nearest the cut exactly."""

from __future__ import annotations

from deeppatch.cli import options as command_line
from deeppatch.cli.assess.ablating import batch_size, degraded_view, exact, samples
from deeppatch.cli.context import Context
from deeppatch.cli.methods import ESTIMATES
from deeppatch.distributed import ranks
from deeppatch.localization.ablation import bytes_an_image
from deeppatch.localization.ranking import Ranking, nearest_cut, rank, refine
from deeppatch.progress import counting
from deeppatch.zoo.classifier import Classifier

KEPT = 2  # times an estimate holds each map: with its gradient, or in both versions


def estimated(context: Context, model: Classifier) -> Ranking:
    """Rank all filters in one pass over val."""
    name = context.options.fs_method
    score, _, against = ESTIMATES[name]
    taken = KEPT * bytes_an_image(model.network, model.normalize(context.example))
    view = degraded_view(context, batch_size(context, taken), swap=against.swap)
    with counting(len(view), name) as tick:
        # one pass over val is not worth sharing; rank 0 makes it for all
        scores = ranks.broadcast_from_rank0(lambda: score(model.network, samples(model, view, swap=against.swap), tick))
    return rank(name, scores, descending=against.descending)


def refined(context: Context, model: Classifier, ranking: Ranking) -> tuple[Ranking, dict[str, object]]:
    """Sort the --refine filters of each layer nearest the cut by exact scores; return these beside the ranking."""
    options = context.options
    ratio = options.susp_ratio or command_line.DEFAULT_RATIO
    windows = nearest_cut(ranking, ratio, options.susp_side, options.refine)
    method = ESTIMATES[options.fs_method].exact
    scores = exact(context, model, method, windows)
    found = {name: dict(zip(windows[name], scores[name], strict=True)) for name in windows}
    return refine(ranking, windows, scores, descending=method.descending), {"refined": found}
