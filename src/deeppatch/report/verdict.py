"""A plain verdict on a repair in two sentences: what it gains and loses, and whether it is worth having."""

from __future__ import annotations

from dataclasses import dataclass

from deeppatch.metrics import Interval


@dataclass(frozen=True)
class Verdict:
    """What a repair does, what follows, and whether it loses: then it should not be used."""

    found: str
    conclusion: str
    loses: bool

    def __str__(self) -> str:
        return f"{self.found} {self.conclusion}"


def verdict(
    name: str, clean: Interval, degraded: Interval | None = None, *, on: str = "degraded", base: str = "pretrained"
) -> Verdict:
    """Judge a repaired network by the accuracy that it gains over the network under repair, on the same images.

    Args:
        name: The name of the repaired network.
        clean: The gain on clean images with its 95 % interval, in percentage points; negative for a loss.
        degraded: The gain on degraded images, where there are any.
        on: What the degraded images are called in the sentence, such as `blurred`.
        base: The name of the network under repair.

    >>> found = verdict("switched", Interval(-0.1, -0.2, 0.05), Interval(5, 4.5, 5.5), on="blurred")
    >>> print(found.conclusion)
    The repair gains where it should, and loses at most 0.20 points on clean images (95 %).
    >>> verdict("relearned", Interval(-2, -3, -1)).loses
    True
    """
    if degraded is None:
        found = f"{name} {_change(clean, f' over {base}', f' against {base}')} on clean images."
        return Verdict(found, *_conclusion_on_one(clean))
    found = f"{name} {_change(degraded, f' over {base}', f' against {base}')} on {on} images"
    return Verdict(f"{found} and {_change(clean, unit='')} on clean ones.", *_conclusion(clean, degraded, on))


def _conclusion(clean: Interval, degraded: Interval, on: str) -> tuple[str, bool]:
    if degraded.high < 0 or (degraded.estimate <= 0 and clean.estimate < 0):
        return f"The repair LOSES: it is worse on the {on} images that it is for; do not use it.", True
    if degraded.low <= 0:
        loss = ", and it loses on clean ones" if clean.high < 0 else ""
        return f"No gain on {on} images is shown{loss}: the 95 % interval contains zero.", clean.high < 0
    if clean.high < 0:
        share = 100 * -clean.estimate / (degraded.estimate - clean.estimate)
        told = f"it pays only where more than {share:.1f} % of the images are degraded"
        if share > 50:
            return f"The repair LOSES more on clean images than it gains on {on} ones: {told}.", True
        return f"The repair gains where it should and loses on clean images: {told}.", False
    if clean.low > 0:
        return "The repair gains where it should, and on clean images, too.", False
    return f"The repair gains where it should, and loses at most {-clean.low:.2f} points on clean images (95 %).", False


def _conclusion_on_one(clean: Interval) -> tuple[str, bool]:
    if clean.high < 0:
        return "The repair LOSES; do not use it.", True
    if clean.low > 0:
        return "The repair gains.", False
    return "No change is shown: the 95 % interval contains zero.", False


def _change(change: Interval, over: str = "", against: str = "", *, unit: str = " points") -> str:
    if change.estimate < 0:
        bounds = f"{0 - change.high:.2f} to {-change.low:.2f}"
        return f"loses {-change.estimate:.2f}{unit} ({bounds}){against}"
    if change.estimate == 0:
        return f"changes nothing ({change.low:.2f} to {change.high:.2f}){against}"
    return f"gains {change.estimate:.2f}{unit} ({change.low:.2f} to {change.high:.2f}){over}"
