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
    by_hooks,
    bytes_an_image,
    count_correct,
    in_graph,
)
from deeppatch.localization.scoring_run import ScoringRun
from deeppatch.progress import counting, info


@dataclass(frozen=True)
class ExactScorer:
    """A method that edits each filter in turn and measures the change of accuracy on degraded images.

    With `paired` the filter's clean map replaces its degraded one; otherwise the filter is set to zero. The score is
    the change of accuracy times `sign`; `descending` tells whether filters with the highest scores are suspicious.
    """

    method: str
    paired: bool
    sign: int
    descending: bool
    unit: str = "points"
    scale: float = 100  # of a score in the unit

    def score(self, run: ScoringRun, filters: Filters | None = None) -> Scores:
        """Return the scores of `filters` (default: all), in [-1, 1], from an ablation of each on all images."""
        filters = filters or {name: range(width) for name, width in run.widths.items()}
        engine = choose_engine(run, self)
        size = run.images_at_a_time(engine.bytes_an_image)
        view = run.view(size, paired=self.paired)
        counts = CorrectCounts(**(run.saved() or {}))
        total = sum(map(len, filters.values()))
        info(
            f"ablating {total} filters in {len(filters)} layers, {len(view.labels)} degraded val images each, "
            f"{size} at a time"
        )
        if not total:
            return {name: [] for name in filters}
        mean = sum(len(channels) * engine.costs[name] for name, channels in filters.items()) / total
        # progress counts average filters, and one rank reports for all
        weights = {name: cost / mean for name, cost in engine.costs.items()}
        done = counts.batches * total + sum(len(row) * weights[name] for name, row in counts.current.items())
        keep = run.saver(lambda: dataclasses.asdict(counts))
        with counting(len(view) * total, self.method, done) as tick:
            count_correct(
                run.batches(view, paired=self.paired),
                filters,
                engine.ablation,
                counts,
                keep,
                lambda name: tick(runtime.ranks() * weights[name]),
                engine.costs,
            )
        return counts.scores(self.sign)


# suspicious are filters whose removal costs least, or whose clean maps gain most
PERFLOSS = ExactScorer("perfloss", paired=False, sign=-1, descending=False)
FEATSWAP = ExactScorer("featswap", paired=True, sign=1, descending=True)


class Engine(NamedTuple):
    """How filters are ablated, the relative cost of a filter in each layer, and the bytes that an image's maps take."""

    ablation: Ablation
    costs: dict[str, int]
    bytes_an_image: int


def choose_engine(run: ScoringRun, scorer: ExactScorer) -> Engine:
    """Return the fast engine, or the plain one where the network cannot be run as a graph."""
    network, amp, swap = run.network, run.amp, scorer.paired
    try:
        graph = Graph(network, run.example)
    except Untraceable as error:
        info(f"the network cannot be run as a graph: {error}; every filter takes a whole forward pass")
        plain = by_hooks(network, swap=swap, amp=amp)
        return Engine(plain, dict.fromkeys(convolutions(network), 1), bytes_an_image(network, run.example))
    size = graph.bytes_an_image(run.example) * (2 if swap else 1)  # the clean version's maps too
    if amp and not runtime.has_bfloat16(run.images.labels.device):
        info("amp: this processor has no bfloat16 arithmetic and is faster in float32, in which filters are scored")
        amp = False
    dtype = torch.bfloat16 if amp else torch.float32
    return Engine(in_graph(graph, swap=swap, dtype=dtype), graph.costs(), size)
