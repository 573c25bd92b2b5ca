"""Score filters by the change of accuracy under an ablation of each: perfloss and featswap."""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import NamedTuple

import torch

from deeppatch import runtime
from deeppatch.graph.hooks import convolutions
from deeppatch.graph.network_graph import Graph, Untraceable
from deeppatch.localization.ablation import (
    Ablation,
    CorrectCounts,
    Filters,
    Scores,
    bytes_per_image,
    count_correct,
    graph_ablation,
    hook_ablation,
)
from deeppatch.localization.scoring_run import ScoringRun
from deeppatch.progress import counting, info


@dataclass(frozen=True)
class ExactScorer:
    """A method that edits each filter and measures the change in accuracy on degraded images.

    Args:
        method: The name of the method.
        paired: Whether the filter's map is replaced by that of the clean image; otherwise it is set to zero.
        sign: The score is the change in accuracy times this.
        descending: Whether filters with the highest scores are suspicious, otherwise those with the lowest.
        unit: The unit in which plots show scores.
        scale: The factor from a score to that unit.
    """

    method: str
    paired: bool
    sign: int
    descending: bool
    unit: str = "points"
    scale: float = 100

    def score(self, run: ScoringRun, filters: Filters | None = None) -> Scores:
        """Return the scores of `filters` (default: all), in [-1, 1], measured on all images."""
        filters = filters or {name: range(width) for name, width in run.widths.items()}
        engine = choose_engine(run, self)
        size = run.fitting_batch_size(engine.bytes_per_image)
        view = run.view(size, paired=self.paired)
        counts = CorrectCounts()
        run.restore(counts.load, batches=int, images=int, unedited=int, correct={str: [int]}, current={str: [int]})
        total = sum(map(len, filters.values()))
        info(
            f"ablating {total} filters in {len(filters)} layers on {len(view.labels)} degraded val images each, "
            f"{size} at a time"
        )
        if not total:
            return {name: [] for name in filters}
        mean = sum(len(channels) * engine.costs[name] for name, channels in filters.items()) / total
        # progress is in units of a filter of average cost, and one rank reports for all
        weights = {name: cost / mean for name, cost in engine.costs.items()}
        done = counts.batches * total + sum(len(row) * weights[name] for name, row in counts.current.items())
        save = run.saver(lambda: dataclasses.asdict(counts))
        with counting(len(view) * total, self.method, done) as tick:
            count_correct(
                run.batches(view, paired=self.paired),
                filters,
                engine.ablation,
                counts,
                save=save,
                tick=lambda name: tick(runtime.ranks() * weights[name]),
                costs=engine.costs,
            )
        return counts.scores(self.sign)


# suspicious filters: those whose removal costs least accuracy, or whose clean maps gain most
PERFLOSS = ExactScorer("perfloss", paired=False, sign=-1, descending=False)
FEATSWAP = ExactScorer("featswap", paired=True, sign=1, descending=True)


class Engine(NamedTuple):
    """How filters are edited, the relative cost of a filter in each layer, and the memory that one image needs."""

    ablation: Ablation
    costs: dict[str, int]
    bytes_per_image: int


def choose_engine(run: ScoringRun, scorer: ExactScorer) -> Engine:
    """Return the fast engine, or the plain one when the network cannot be run as a graph."""
    network, amp, swap = run.network, run.amp, scorer.paired
    try:
        graph = Graph(network, run.example)
    except Untraceable as error:
        info(f"the network cannot be run as a graph: {error}; every filter takes a full forward pass")
        plain = hook_ablation(network, swap=swap, amp=amp)
        return Engine(plain, dict.fromkeys(convolutions(network), 1), bytes_per_image(network, run.example))
    size = graph.bytes_per_image(run.example) * (2 if swap else 1)  # the maps of the clean images too
    if amp and not runtime.has_bfloat16(run.images.labels.device):
        info("amp: this processor has no bfloat16 arithmetic and is faster in float32, in which filters are scored")
        amp = False
    dtype = torch.bfloat16 if amp else torch.float32
    return Engine(graph_ablation(graph, swap=swap, dtype=dtype), graph.costs(), size)
