"""The methods that score filters, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deeppatch.distributed import ranks
from deeppatch.localization import estimates
from deeppatch.localization.ablation import Scores, bytes_an_image
from deeppatch.localization.exact_scores import FEATSWAP, PERFLOSS, ExactScorer
from deeppatch.localization.scoring_run import ScoringRun
from deeppatch.progress import counting

MAPS_KEPT = 2  # an estimate holds each map twice: with its gradient, or in both versions


@dataclass(frozen=True)
class EstimatedScorer:
    """A method that estimates the scores of all filters in one pass over the images.

    `exact` is the method whose scores it estimates, with which a ranking can be refined.
    """

    method: str
    function: Callable[..., Scores]
    unit: str
    exact: ExactScorer
    scale: float = 1

    @property
    def paired(self) -> bool:
        """Whether clean images are read beside the degraded ones."""
        return self.exact.paired

    @property
    def descending(self) -> bool:
        """Whether filters with the highest scores are suspicious."""
        return self.exact.descending

    def score(self, run: ScoringRun) -> Scores:
        """Return the scores of all filters."""
        needed = MAPS_KEPT * bytes_an_image(run.network, run.example)
        view = run.view(run.images_at_a_time(needed), paired=self.paired)
        with counting(len(view), self.method) as tick:
            # one pass is too short to be shared among ranks
            return ranks.broadcast_from_rank0(
                lambda: self.function(run.network, run.batches(view, paired=self.paired), tick)
            )


SCORERS: dict[str, ExactScorer | EstimatedScorer] = {
    "perfloss": PERFLOSS,
    "featswap": FEATSWAP,
    "taylor": EstimatedScorer("taylor", estimates.taylor, "nats of loss", PERFLOSS),
    "activation": EstimatedScorer("activation", estimates.activation, "mean change of its map", FEATSWAP),
}
