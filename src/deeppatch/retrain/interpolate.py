"""Networks between a base and its fine-tuned copy, and the one that keeps clean accuracy and repairs the most."""

from __future__ import annotations

import copy
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from deeppatch import metrics
from deeppatch.artifacts import Checkpoint
from deeppatch.data import corruptions, views
from deeppatch.data.corruptions import Corruption
from deeppatch.data.dataset import Data
from deeppatch.data.epochs import Passes
from deeppatch.distributed import ranks
from deeppatch.errors import UserError
from deeppatch.evaluation import check_classifier, correct_by_level
from deeppatch.graph.statistics import STATISTICS as BUFFERS
from deeppatch.graph.statistics import batch_norms, reestimate
from deeppatch.progress import info
from deeppatch.retrain.finetune import noted
from deeppatch.retrain.names import STATISTICS
from deeppatch.retrain.norms import BATCH, statistics_view
from deeppatch.storage import is_of
from deeppatch.zoo.classifier import device_of

SHARES = tuple(step / 20 for step in range(21))
PARTS = ("val", "test")


@dataclass(frozen=True)
class Point:
    """A network on the way from the base to the fine-tuned one, measured on one part of the data.

    Args:
        part: The part: `val` or `test`.
        share: The share of the fine-tuned network, from 0 to 1.
        lost: The number of clean images that the base classifies correctly and this network does not.
        bound: The upper 95 % confidence bound on their share, in points.
        accuracy: Accuracies in percent: clean, each level, their mean, and append.
    """

    part: str
    share: float
    lost: int
    bound: float
    accuracy: dict[str, float]


def interpolate(
    model: nn.Module,
    tuned: nn.Module,
    data: Data,
    corruption: Any,
    *,
    statistics: str = "linear",
    max_clean_drop: float = 1.0,
    shares: Sequence[float] = SHARES,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
    checkpoint: Checkpoint | None = None,
) -> nn.Module:
    """Return the network between a base and its fine-tuned copy that repairs the most within a bound on clean accuracy.

    Every parameter is w(a) = (1 - a) w_0 + a w_1 (WiSE-FT, Wortsman et al., CVPR 2022, arXiv 2109.01903, equation 1;
    PAINT, Ilharco et al., NeurIPS 2022, arXiv 2208.05592). Their networks have no running statistics; here these are
    interpolated, estimated again at every a (REPAIR, Jordan et al., ICLR 2023, arXiv 2211.08403), or kept. Of points
    whose loss of clean accuracy on `val` is within the bound, the one with the highest mean accuracy over the levels is
    taken, and of equal ones the smallest a. All points are tried on the same images, so that the bound is a choice
    there and no promise: the curve on `test` shows what it is worth.

    Args:
        model: The base, a classifier of pixels (N, 3, H, W) in [0, 1]; it is not changed.
        tuned: The fine-tuned copy, of the same architecture; it is not changed.
        data: The data; `val` chooses, `test` is measured, `train` is read where statistics are estimated again.
        corruption: The degradation: what `deeppatch.corruption` takes or returns.
        statistics: `linear` for running statistics between those of both, `again` to estimate them on a stream of clean
            and degraded images of `train`, `keep` for the base's.
        max_clean_drop: The bound on the loss of clean accuracy in percentage points, which val must show with 95 %
            confidence (Clopper and Pearson). The base loses nothing, so that it is within any bound.
        shares: The values of a, ascending from 0 to 1.
        batch_size: The number of images at a time.
        amp: Whether forward passes run in bfloat16.
        seed: The seed of the images that statistics are estimated on.
        checkpoint: Where the measured points are saved after each, and continued from.

    Returns:
        The network, in eval mode, with the attributes `facts` (the share, the bound and what val shows), `tables` (the
        curve as `curve.csv`), `passes` (without those over `test`), and `history`, which is None.

    Raises:
        UserError: When the networks have different architectures, a name or bound is wrong, or a model does not fit.

    Example:
        >>> from deeppatch.data.corruptions import GaussianBlur
        >>> from deeppatch.data.images import Images
        >>> images = Images(torch.randint(0, 256, (8, 3, 12, 16), dtype=torch.uint8), torch.arange(8) % 2)
        >>> data = Data(train=images, val=images, test=images, classes=("cat", "dog"))
        >>> model, tuned = (nn.Sequential(nn.Flatten(), nn.Linear(3 * 12 * 16, 2)) for _ in range(2))
        >>> found = interpolate(model, tuned, data, GaussianBlur((1.0, 2.0)), max_clean_drop=0)
        >>> found.facts["share"], len(found.tables["curve.csv"]), found.passes
        (0.0, 42, Passes(train=0, forward=504))
    """
    if statistics not in STATISTICS:
        raise UserError(f"statistics {statistics!r}: choose from {', '.join(STATISTICS)}")
    if not 0 <= max_clean_drop <= 100:
        raise UserError(f"max_clean_drop={max_clean_drop}: give percentage points from 0 to 100")
    device = device_of(model)
    data, degrade = data.to(device), corruptions.corruption(corruption, seed=seed)
    tuned = copy.deepcopy(tuned).to(device)
    for network in (model, tuned):
        check_classifier(network, data.example, len(data.classes))
    again = (
        statistics_view(views.mixed_stream(data.train, degrade, BATCH, seed), seed) if statistics == "again" else None
    )

    def network_at(share: float) -> nn.Module:
        found = between(model, tuned, share, keep=statistics == "keep")
        return found if again is None else reestimate(found, again, amp=amp)

    def measure(network: nn.Module, part: str) -> metrics.Rows:
        label = f"interpolate, {part}"
        return correct_by_level(network, getattr(data, part), degrade, batch_size=batch_size, amp=amp, label=label)

    before = {
        part: correct_by_level(model, getattr(data, part), None, batch_size=batch_size, amp=amp)[0] for part in PARTS
    }
    points = _measured(checkpoint) if checkpoint else []
    for share in shares[len(points) // len(PARTS) :]:
        network = network_at(share)
        points += [_point(part, share, before[part], measure(network, part), degrade) for part in PARTS]
        info(f"interpolate: {share:.2f} of the fine-tuned network, {_told(points[-2])}")
        if checkpoint:
            checkpoint.save({"points": [asdict(point) for point in points]})
    on_val = [point for point in points if point.part == "val"]
    chosen = choose(on_val, max_clean_drop, base_is_first=statistics != "again")
    what = "the base as it is, because no point is within the bound" if chosen is None else f"{chosen.share:.2f}"
    info(f"interpolate: chosen {what}; {len(shares)} points were tried on the same {len(data.val)} val images")
    images = len(views.levels_view(data.val, degrade, list(range(1 + len(degrade))), batch_size).index)
    return noted(
        copy.deepcopy(model).eval() if chosen is None else network_at(chosen.share),
        history=None,
        passes=Passes(forward=len(shares) * (images + (0 if again is None else len(again.index)))),
        facts=_facts(chosen, statistics, max_clean_drop, len(data.val), len(shares)),
        tables={"curve.csv": curve(points, chosen)},
    )


def _measured(checkpoint: Checkpoint) -> list[Point]:
    """Return the points that an interrupted run has measured, on every rank."""
    saved = ranks.broadcast_from_rank0(lambda: checkpoint.load(points=[{str: object}])) or {"points": []}
    with checkpoint.undamaged():
        points = [Point(**each) for each in saved["points"]]
        if len(points) % len(PARTS) or not all(is_of(point.accuracy, {str: float}) for point in points):
            raise ValueError("no points")
    return points


def between(model: nn.Module, tuned: nn.Module, share: float, *, keep: bool = False) -> nn.Module:
    """Return the network with (1 - share) of one network's weights and `share` of the other's; both stay as they are.

    Running statistics are interpolated, too, or with `keep` are those of `model`; integers are those of `model` before
    the other end. Both ends are the networks themselves, bit for bit.

    Raises:
        UserError: When the networks have tensors of other names or shapes.

    >>> one, other = nn.Linear(1, 1, bias=False), nn.Linear(1, 1, bias=False)
    >>> with torch.no_grad():
    ...     _ = one.weight.fill_(1.0), other.weight.fill_(3.0)
    >>> between(one, other, 0.25).weight.item()
    1.5
    """
    first, last = model.state_dict(), tuned.state_dict()
    shapes = [{name: each.shape for name, each in state.items()} for state in (first, last)]
    if shapes[0] != shapes[1]:
        raise UserError("the fine-tuned network has other layers than the base; give one that was made from it")
    kept = {f"{name}.{each}" for name in batch_norms(model) for each in BUFFERS} if keep else set()
    found = copy.deepcopy(model).eval()
    state = {n: first[n] if n in kept else _between(first[n], last[n], share) for n in first}
    found.load_state_dict(state)
    return found


def _between(first: Tensor, last: Tensor, share: float) -> Tensor:
    if share in (0, 1) or not first.is_floating_point():
        return last if share == 1 else first
    return torch.lerp(first, last, share)


def choose(points: Sequence[Point], max_clean_drop: float, *, base_is_first: bool = True) -> Point | None:
    """Return the point of highest mean accuracy whose bound is at most `max_clean_drop` points; the first of equals.

    With `base_is_first` the point at 0 is the base, which can lose nothing. None where no point is within the bound.
    """
    within = [each for each in points if each.bound <= max_clean_drop or (base_is_first and each.share == 0)]
    return max(within, key=lambda point: point.accuracy["mean"], default=None)


def curve(points: Sequence[Point], chosen: Point | None) -> pd.DataFrame:
    """Return a row for each point: part, share, accuracies in percent, lost images, bound, and if it was chosen."""
    share = None if chosen is None else chosen.share
    return pd.DataFrame(
        {
            "part": point.part,
            "share": point.share,
            **point.accuracy,
            "lost": point.lost,
            "bound_points": point.bound,
            "chosen": point.share == share,
        }
        for point in points
    )


def _point(part: str, share: float, before: Tensor, rows: metrics.Rows, corruption: Corruption) -> Point:
    lost = int((before & ~rows[0]).sum())
    bound = 100 * metrics.upper_bound(lost, len(before))
    return Point(part, share, lost, bound, metrics.accuracies(rows, corruption.level_names))


def _told(point: Point) -> str:
    clean, mean = point.accuracy["clean"], point.accuracy["mean"]
    return f"{clean:.2f} % clean and {mean:.2f} % degraded on {point.part}; clean drop at most {point.bound:.2f} points"


def _facts(chosen: Point | None, statistics: str, wanted: float, images: int, tried: int) -> dict[str, Any]:
    found = (
        {}
        if chosen is None
        else {
            "clean_losses": chosen.lost,
            "clean_drop_bound_points": chosen.bound,
            "val_accuracy_percent": chosen.accuracy,
        }
    )
    return {
        "share": 0.0 if chosen is None else chosen.share,
        "statistics": statistics,
        "max_clean_drop_points": wanted,
        "clean_images": images,
        "points_tried": tried,
        **found,
    }
