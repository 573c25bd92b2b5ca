"""The methods that score filters, by name."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from deeppatch.distributed import ranks
from deeppatch.localization import estimates
from deeppatch.localization.ablation import Scores, bytes_per_image
from deeppatch.localization.exact_scores import FEATSWAP, PERFLOSS, ExactScorer
from deeppatch.localization.scoring_run import ScoringRun
from deeppatch.progress import counting

COPIES_OF_MAPS = 2  # of each feature map: with its gradient, or clean and degraded


@dataclass(frozen=True)
class EstimatedScorer:
    """A method that estimates the scores of all filters in one pass over the images.

    `exact` is the method whose scores it estimates; it can refine the ranking.
    """

    method: str
    function: Callable[..., Scores]
    unit: str
    exact: ExactScorer
    scale: float = 1

    @property
    def paired(self) -> bool:
        """Whether the method needs clean images beside the degraded ones."""
        return self.exact.paired

    @property
    def descending(self) -> bool:
        """Whether filters with the highest scores are suspicious."""
        return self.exact.descending

    def score(self, run: ScoringRun) -> Scores:
        """Return the scores of all filters."""
        names = list(run.widths)
        needed = COPIES_OF_MAPS * bytes_per_image(run.network, run.example)
        view = run.view(run.fitting_batch_size(needed), paired=self.paired)
        with counting(len(view), self.method) as tick:
            # one pass is too short to distribute among ranks
            return ranks.broadcast_from_rank0(
                lambda: self.function(run.network, run.batches(view, paired=self.paired), tick, names)
            )


SCORERS: dict[str, ExactScorer | EstimatedScorer] = {
    "perfloss": PERFLOSS,
    "featswap": FEATSWAP,
    "taylor": EstimatedScorer("taylor", estimates.taylor, "nats of loss", PERFLOSS),
    "activation": EstimatedScorer("activation", estimates.activation, "mean change of its map", FEATSWAP),
}
