"""The rows of a ledger's tables: each view, and the means over views that belong together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from deeppatch.data.corruption_names import BENCHMARK, GROUPS
from deeppatch.ledger.records import CLEAN, MIXED, LedgerView
from deeppatch.ledger.streams import GAUSSION

BLURRED, ALL, DEGRADED, HELD_OUT = "blurred", "all", "degraded", "held out"
MEANS = {
    CLEAN: "the test images as they are",
    BLURRED: "the mean over the levels of the published blur (gaussion)",
    **{group: f"the mean over the measured types and severities of {', '.join(GROUPS[group])}" for group in GROUPS},
    ALL: "the mean over the 15 types of corruptions and their measured severities",
    DEGRADED: "the mean over all levels of all degradations that are not held out",
    HELD_OUT: "the mean over the levels of the degradations that nothing was trained or calibrated on",
    MIXED: "every test image once, shuffled, degraded with probability 1/2 at a random level",
}


@dataclass(frozen=True)
class Pool:
    """Views whose mean is one row of a table.

    Args:
        name: The name of the mean, or the type of a single view.
        severity: The severity of a single view; 0 for a mean over views, for clean and for mixed.
        views: The names of the views.
        kinds: Their types, each with its views.
    """

    name: str
    severity: int
    views: tuple[str, ...]
    kinds: dict[str, tuple[str, ...]]

    @property
    def single(self) -> bool:
        """Whether the row is that of one view, so that each image has one row."""
        return len(self.views) == 1


def pools(views: Sequence[LedgerView]) -> list[Pool]:
    """Return clean, the means over views, mixed, the mean of each type, and then each single view.

    Means are over levels: `blurred` of the published blur, each group, `all` of the 15 types where all are there,
    `degraded` over all that was not held out and `held out` over the others.
    """
    degraded = [view for view in views if view.degraded]
    named: dict[str, list[LedgerView]] = {CLEAN: [view for view in views if view.kind == CLEAN]}
    named[BLURRED] = [view for view in degraded if view.kind == GAUSSION]
    named |= {group: [view for view in degraded if view.group == group] for group in GROUPS}
    complete = set(BENCHMARK) <= {view.kind for view in degraded}
    named[ALL] = [view for view in degraded if view.kind in BENCHMARK] if complete else []
    named[DEGRADED] = [view for view in degraded if not view.held_out]
    named[HELD_OUT] = [view for view in degraded if view.held_out]
    named[MIXED] = [view for view in views if view.kind == MIXED]
    for kind in dict.fromkeys(view.kind for view in degraded):
        named[kind] = [view for view in degraded if view.kind == kind]
    found = [_pool(name, 0, members) for name, members in named.items() if members]
    return found + [_pool(view.kind, view.severity, [view]) for view in degraded]


def _pool(name: str, severity: int, members: Sequence[LedgerView]) -> Pool:
    kinds = {
        kind: tuple(view.name for view in members if view.kind == kind)
        for kind in dict.fromkeys(view.kind for view in members)
    }
    return Pool(name, severity, tuple(view.name for view in members), kinds)
