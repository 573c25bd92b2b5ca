"""GradSplitter: modules that are trained by gradient descent on train, with the best epoch chosen on val."""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, ClassVar

import pandas as pd

from deeppatch.artifacts import Checkpoint
from deeppatch.data.dataset import Data
from deeppatch.data.splits import subset
from deeppatch.errors import UserError
from deeppatch.modular import gradient
from deeppatch.modular.analysis import Analysis
from deeppatch.modular.heads import Scales
from deeppatch.modular.modules import SearchResult
from deeppatch.modular.names import STARTS
from deeppatch.modular.presets import PUBLISHED_GRADIENT
from deeppatch.training import FreshMoments, accuracy_on, adam_with_initial_rate, fit

WHOLE = ("importance", "ones")  # starts at which all kernels are kept: modules begin as the whole network


@dataclass(frozen=True, kw_only=True)
class GradientSearch:
    """Settings of the gradient search (Qi et al., TOSEM 2023).

    `alpha` weighs the share of kernels kept against the cross entropy, and `shared` that of kernels that two modules
    both keep, so that modules have less in common. Of the epochs whose accuracy on val is less than
    `max_drop` points below the whole network's, the one with the smallest modules is chosen. Without `head`, a module
    answers by the logit of its class, or, if `scaled`, by this with a scale and a bias, which are trained with the
    masks, and fitted on val where modules are measured and in the end. `images` is how many images of train are read
    (None: all). `start` says how thresholds begin (`gradient.initial_thresholds`). With `fresh_optimizer` Adam begins
    anew whenever the training goes from heads to masks and back, as in the published code; `GradientSearch.published()`
    has all published settings. `importance` is where the response of kernels is read unless told otherwise: where the
    next layer reads it, for the published code reads none.
    """

    epochs: int = gradient.EPOCHS
    lr: float = 0.001
    alpha: float = 0.5
    shared: float = 0.0
    max_drop: float = 1.0
    head: bool = True
    scaled: bool = False
    images: int | None = None
    start: str = "importance"
    fresh_optimizer: bool = False
    importance: ClassVar[str] = "pooled"

    @staticmethod
    def published(**changes: Any) -> GradientSearch:
        """Return the settings of the published code, with `changes`.

        >>> settings = GradientSearch.published(epochs=12)
        >>> settings.alpha, settings.start, settings.epochs
        (0.1, 'ones', 12)
        """
        settings: dict[str, Any] = {**PUBLISHED_GRADIENT, "fresh_optimizer": True, **changes}
        return GradientSearch(**settings)

    def run(
        self,
        analysis: Analysis,
        data: Data,
        *,
        amp: bool = False,
        seed: int = 2021,
        checkpoint: Checkpoint | None = None,
    ) -> SearchResult:
        """Train thresholds and heads on train; val chooses the epoch. `history` has one row for each epoch."""
        if self.start not in STARTS["grad"]:
            raise UserError(f"start {self.start!r}: thresholds begin by {', '.join(STARTS['grad'])}")
        if self.head and self.scaled:
            raise UserError("scaled is for modules without heads, whose scores need no scale; set head=False")
        train, on_val = data.train, accuracy_on(data.val, batch_size=gradient.BATCH_SIZE)
        if self.images:
            train = subset(train, self.images, seed, data.name)
        steps = -(-len(train) // gradient.BATCH_SIZE)
        # by importance they are about two epochs away from zero
        first = gradient.initial_thresholds(self.start, analysis.importance, 2 * steps * self.lr, seed)
        frozen = (analysis.model.normalize, analysis.network)
        splitter = gradient.Splitter(frozen, analysis.layers, first, head=self.head, scaled=self.scaled)
        splitter.to(data.val.labels.device)
        optimizer, schedule = adam_with_initial_rate(
            splitter.thresholds.parameters(),
            splitter.heads.parameters() if splitter.heads else [],
            lr=self.lr,
            initial_lr=10 * self.lr,
            steps=steps * gradient.WARM_UP_EPOCHS,
        )
        if self.fresh_optimizer and self.head:
            schedule = FreshMoments(schedule, [steps * epoch for epoch in gradient.switches(self.epochs)])
        strong = on_val(analysis.model)
        on_val = gradient.accuracy_of_scaled(data.val) if self.scaled else on_val
        choose = gradient.choose_smallest(strong, self.max_drop / 100)
        history = fit(
            splitter,
            gradient.epochs(splitter, train, gradient.BATCH_SIZE, seed, self.epochs),
            replace(on_val, before=strong) if self.start in WHOLE else on_val,
            loss=gradient.splitting_loss(self.alpha, self.shared),
            optimizer=optimizer,
            schedule=schedule,
            checkpoint=checkpoint,
            watch=lambda _model: splitter.kept_share().item(),
            choose=choose,
            amp=amp,
            label="modules",
        )
        frame = pd.DataFrame({"loss": history.loss, "holdout_accuracy": history.accuracy, "kept": history.watched})
        frame.insert(0, "epoch", range(1, len(frame) + 1))
        frame["best"] = frame.index == choose(history)
        heads = splitter.heads
        if isinstance(heads, Scales):
            heads = heads.fitted(gradient.logits_of_smaller(splitter, data.val), data.val.labels)
        return SearchResult([mask.detach() for mask in splitter.masks()], heads, frame)
