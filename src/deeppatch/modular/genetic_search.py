"""CNNSplitter: modules from a genetic search on one half of val, with the best generation chosen on the other half."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import pandas as pd
import torch
from torch import Tensor

from deeppatch.artifacts import Checkpoint
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.data.splits import halves, subset
from deeppatch.errors import UserError
from deeppatch.metrics import accuracy
from deeppatch.modular.analysis import Analysis
from deeppatch.modular.genetic import PopulationSearch
from deeppatch.modular.genome import Genome
from deeppatch.modular.importance import orders
from deeppatch.modular.masking import replicas_of, sliced_logits
from deeppatch.modular.modules import SearchResult
from deeppatch.modular.names import STARTS
from deeppatch.modular.presets import PRESETS, Preset, thresholds
from deeppatch.modular.winograd import optimize_for_cpu


@dataclass(frozen=True, kw_only=True)
class GeneticSearch:
    """Settings of the genetic search (Qi et al., ASE 2022).

    Args:
        preset: A name of PRESETS, or a `Preset`.
        generations: The number of generations (default: that of the preset).
        patience: The number of generations without a better one after which the search ends (default: never).
        images: The number of images of one half of val on which candidates are rated.
        drop: If the preset names no sensitive layers, a layer is sensitive when accuracy falls by more than this where
            only `share` of its kernels are kept.
        share: The share of a layer's kernels that are kept when its sensitivity is measured.
        start: How the first population is drawn: "importance" prefers important kernels, "random" is a control.
    """

    preset: str | Preset = "auto"
    generations: int | None = None
    patience: int | None = None
    images: int = 2500
    drop: float = 0.05
    share: float = 0.5
    start: str = "importance"

    @property
    def importance(self) -> str:
        """Where the response of kernels is read unless told otherwise: as in the published code, see `Preset`."""
        return self._preset.importance

    @property
    def _preset(self) -> Preset:
        if isinstance(self.preset, Preset):
            return self.preset
        if self.preset not in PRESETS:
            raise UserError(f"preset {self.preset!r}: choose from {', '.join(PRESETS)}, or give a Preset")
        return PRESETS[self.preset]

    def run(
        self,
        analysis: Analysis,
        data: Data,
        *,
        amp: bool = False,
        seed: int = 2021,
        checkpoint: Checkpoint | None = None,
    ) -> SearchResult:
        """Search, always in float32. `history` has one row for each generation, from 0 on."""
        preset = self._preset
        if self.start not in STARTS["ga"]:
            raise UserError(f"start {self.start!r}: the genetic search begins by {' or '.join(STARTS['ga'])}")
        preset = preset if self.start == preset.first else replace(preset, first=self.start)
        searched, held_out = halves(data.val, seed, data.name)
        searched = subset(searched, self.images, seed, data.name)
        x = analysis.inputs(searched)
        validate = composed_accuracy(analysis, held_out)
        candidate = optimize_for_cpu(analysis.network)
        replicas = replicas_of(candidate)

        def evaluate(label: int, kept: Sequence[Tensor], samples: Tensor) -> Tensor:
            return sliced_logits(candidate, analysis.layers, kept, x[samples], replicas=replicas)[:, :, label]

        with torch.inference_mode():
            strong = accuracy(analysis.network(x).argmax(1), searched.labels)
        search = PopulationSearch(
            [Genome(orders(analysis.importance, label)) for label in range(analysis.classes)],
            evaluate,
            validate,
            searched.labels,
            analysis.convolutions_per_kernel.to(x.device),
            preset,
            analysis.sensitive(self.drop, self.share) if preset.sensitive is None else preset.sensitive,
            thresholds(preset, analysis.classes, strong),
            seed,
        )
        masks, record = search.run(
            self.generations or preset.generations, patience=self.patience, checkpoint=checkpoint
        )
        frame = pd.DataFrame(
            {
                "search_accuracy": record.search,
                "holdout_accuracy": record.holdout,
                "dissimilarity": record.dissimilarity,
                "kept": record.kept,
                "value": record.value,
                "evaluated": record.evaluated,
                "passes": record.passes,
            }
        )
        frame.insert(0, "generation", range(len(frame)))
        frame["best"] = frame.index == record.best
        return SearchResult(masks, None, frame)


def composed_accuracy(analysis: Analysis, images: Images) -> Callable[[Sequence[Tensor]], float]:
    """Return a function that measures the accuracy of all modules together, in [0, 1], from masks (classes, kernels).

    The scores of modules that have not changed since the last call are not computed again.
    """
    x = analysis.inputs(images)
    known: list[dict[bytes, Tensor]] = [{} for _ in range(analysis.classes)]

    def composed(kept: Sequence[Tensor]) -> float:
        for label, last in enumerate(known):
            own = [rows[label : label + 1] for rows in kept]
            key = torch.cat(own, 1).cpu().numpy().tobytes()
            if key not in last:
                known[label] = {key: sliced_logits(analysis.network, analysis.layers, own, x)[0, :, label]}
        scores = torch.stack([row for last in known for row in last.values()], 1)
        return accuracy(scores.argmax(1), images.labels)

    return composed
