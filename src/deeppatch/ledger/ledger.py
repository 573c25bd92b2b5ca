"""The ledger itself: networks, views, and the outcomes of each network on each view."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
import pandas as pd

from deeppatch import metrics
from deeppatch.ledger import summary
from deeppatch.ledger.records import LedgerView, Network, Outcomes


@dataclass(frozen=True)
class Ledger:
    """What several classifiers answered on the same images.

    Args:
        base: The name of the network that the others are compared with.
        networks: The networks by name, in the order of tables.
        views: Clean images first, then each degradation and severity, then the mixed stream.
        outcomes: What a network answered on a view, by the names of both. A network whose answers depend on the
            other images of a batch has no outcomes on the mixed stream.
        classes: The names of the classes, in the order of the labels.
        about: What identifies the run, as JSON values: data set, model, revision, commands, hardware, date.
    """

    base: str
    networks: Mapping[str, Network]
    views: tuple[LedgerView, ...]
    outcomes: Mapping[tuple[str, str], Outcomes]
    classes: tuple[str, ...]
    about: Mapping[str, Any] = field(default_factory=dict)

    def view(self, name: str) -> LedgerView:
        """Return the view of a name; KeyError where there is none."""
        return {view.name: view for view in self.views}[name]

    def correct(self, network: str, view: str) -> np.ndarray:
        """Return which images of a view a network classifies correctly, bool (N,)."""
        found: np.ndarray = self.outcomes[network, view].prediction == self.view(view).labels
        return found

    def without(self, images: np.ndarray) -> Ledger:
        """Return the ledger over the other images than those of these numbers, in all views.

        The images that a router was calibrated on say nothing about it.
        """
        kept = {view.name: ~np.isin(view.image, images) for view in self.views}
        views = tuple(
            replace(view, labels=view.labels[kept[view.name]], image=view.image[kept[view.name]]) for view in self.views
        )
        outcomes = {(network, view): each.take(kept[view]) for (network, view), each in self.outcomes.items()}
        return replace(self, views=views, outcomes=outcomes)

    def seeds(self) -> dict[str, tuple[str, ...]]:
        """Return the networks of one method that differ by seed only, by the name of their mean.

        They share `method`, and `variant` among their facts; `seed` differs, or `filter_seed` among their facts.
        """
        groups: dict[tuple[str, str], dict[str, tuple[Any, ...]]] = {}
        for name, network in self.networks.items():
            if "variant" in network.facts:
                own = groups.setdefault((network.method, str(network.facts["variant"])), {})
                own[name] = (network.seed, network.facts.get("filter_seed"))
        several = {key: tuple(names) for key, names in groups.items() if len(names) == len(set(names.values())) > 1}
        titles = [self._title(method, variant, names, several) for (method, variant), names in several.items()]
        return dict(zip(titles, several.values(), strict=True))

    def _title(
        self, method: str, variant: str, names: tuple[str, ...], several: Mapping[tuple[str, str], tuple[str, ...]]
    ) -> str:
        """Return the name of the mean of networks: their method, or what their names have in common but for seeds."""
        mean = f"mean of {len(names)} seeds"
        if sum(network.method == method for network in self.networks.values()) == len(names):
            return f"{method} ({mean})"
        shared = {re.sub(r"(, |-)seed ?\d+", "", name) for name in names}
        others = [each for own in several.values() if own != names for each in own]
        if len(shared) == 1 and not shared & {re.sub(r"(, |-)seed ?\d+", "", name) for name in others}:
            (name,) = shared
            return f"{name.removesuffix(')')}, {mean})" if name.endswith(")") else f"{name} ({mean})"
        return f"{method} {variant[:4]} ({mean})"

    def frame(self, draws: int = metrics.DRAWS) -> pd.DataFrame:
        """Return one row for each network, view and measure, with a 95 % interval and the number of images.

        The columns are network, view, severity (0 for a mean over views, for clean and for mixed), measure (a key of
        `metrics.DEFINITIONS`), estimate, low, high and n. `draws` are those of the bootstrap.
        """
        return summary.frame(
            self.base,
            list(self.networks),
            self.views,
            self.outcomes,
            classes=len(self.classes),
            seeds=self.seeds(),
            draws=draws,
        )

    def table(self) -> pd.DataFrame:
        """Return a row for each network: accuracies in percent, and what it repairs and breaks against the base."""
        return summary.table(self.frame(draws=1))  # which reads no interval

    def numbers(self, network: str) -> dict[tuple[str, int], tuple[float, float, float]]:
        """Return what requirements on a network are compared with; see `summary.numbers`."""
        return summary.numbers(self.frame(), network, self.networks[network].bytes)
