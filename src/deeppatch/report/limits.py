"""The limits of what a ledger shows, in plain sentences."""

from __future__ import annotations

from deeppatch.ledger.ledger import Ledger
from deeppatch.ledger.records import CLEAN, MIXED

MOST_NAMED = 8


def limits(ledger: Ledger, target: str, *, chosen_here: bool) -> list[str]:
    """Return what the numbers of a ledger do not show, a sentence or two for each point.

    Args:
        ledger: The ledger.
        target: The network that the verdict is about.
        chosen_here: Whether that network was chosen by these very test images.
    """
    images = len(ledger.view(CLEAN))
    found = [
        f"Everything was measured on {images:,} test images of one data set"
        + (f", a subset (--limit {ledger.about['limit']})" if ledger.about.get("limit") else "")
        + ". Other images, cameras and classes may behave otherwise.",
        _of_degradations(ledger),
        "Intervals cover the choice of test images: an interval of 95 % misses the true value once in twenty times, "
        "and there are many in these tables. " + _of_seeds(ledger),
    ]
    if chosen_here and len(ledger.networks) > 2:
        found.append(
            f"{target} was chosen because it gains most on these very images, so its numbers are somewhat too good. "
            f"Name the network beforehand, with {'--gate' if 'command' in ledger.about else 'target='}, for a fair one."
        )
    if any(view.name == MIXED for view in ledger.views):
        found.append(
            "On the mixed stream each image is degraded with probability 1/2, at a random level. With another share of "
            "degraded images a repair gains more or less than here."
        )
        absent = [name for name in ledger.networks if (name, MIXED) not in ledger.outcomes]
        if absent:
            found.append(
                f"{_listed(absent)}: answers depend on the other images of a batch, so there are no numbers for the "
                "mixed stream, and another batch size gives other numbers."
            )
    return found + remarks(ledger) + [str(note) for note in ledger.about.get("notes", ())]


def remarks(ledger: Ledger) -> list[str]:
    """Return what is to be said of single networks, such as that a bound on a router's losses does not hold.

    It is what `remark` among the facts of a network says; networks of which the same is said are named together.
    """
    said: dict[str, list[str]] = {}
    for name, row in ledger.networks.items():
        if remark := row.facts.get("remark"):
            said.setdefault(str(remark), []).append(name)
    return [f"{_listed(names)}: {remark}." for remark, names in said.items()]


def _of_degradations(ledger: Ledger) -> str:
    kinds = list(dict.fromkeys(view.kind.replace("_", " ") for view in ledger.views if view.degraded))
    held_out = list(dict.fromkeys(view.kind.replace("_", " ") for view in ledger.views if view.held_out))
    if not kinds:
        return "Only clean images were measured; of degraded ones nothing is known."
    text = f"Degradations: {_listed(kinds)}. Those in the field may differ, and other types were not measured."
    if held_out:
        return f"{text} Nothing was trained or calibrated on {_listed(held_out)}."
    return f"{text} No type was held out: the repair may have been trained on all of them."


def _of_seeds(ledger: Ledger) -> str:
    seeds: dict[str, set[int]] = {}
    for row in ledger.networks.values():
        if row.seed is not None and row.name != ledger.base:
            seeds.setdefault(row.method, set()).add(row.seed)
    several = [method for method, found in seeds.items() if len(found) > 1]
    if several:
        return f"They do not cover the choice of seeds: compare the rows of {_listed(several)} that differ by seed."
    return "They do not cover the training: another seed gives another network."


def _listed(names: list[str]) -> str:
    return ", ".join(names[:MOST_NAMED]) + (f" and {len(names) - MOST_NAMED} more" if len(names) > MOST_NAMED else "")
