"""Switch between a network and its patch in every way: what does each router gain on degradations, and lose on clean?

python benchmarks/routers.py [--weights FILE] [-m resnet32a] [--patch FILE] [--epochs N] [--calibration N] [--images N]

A patch is trained on some types of degradation, and each router is fitted to test images with these types. On other
test images all 15 types are measured. Beside the routers stand both networks, the mean of their probabilities, the
better network of each type and severity, and the better one for each image. Leaves a CSV file of a row for each.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import machine
import numpy as np
import pandas as pd
import torch
from sklearn.metrics import roc_auc_score
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.data import corruptions, views
from deeppatch.data.corruption_names import BENCHMARK
from deeppatch.data.dataset import Data, load_data
from deeppatch.data.images import Images
from deeppatch.graph.hooks import convolutions
from deeppatch.localization.ranking import random_ranking
from deeppatch.localization.scoring import rank_filters
from deeppatch.metrics import upper_bound
from deeppatch.patching.calibration import fit_switch
from deeppatch.patching.names import AVERAGE, ROUTERS
from deeppatch.patching.patch_file import Patch
from deeppatch.patching.router import Answers, Maps
from deeppatch.patching.seen import apart
from deeppatch.patching.switch import Switch, averaged
from deeppatch.patching.training import train_patch
from deeppatch.zoo.classifier import network_of
from deeppatch.zoo.loading import load_classifier

FAMILIES = "gaussian_blur,gaussian_noise,jpeg_compression,contrast,pixelate"
ORIGINAL, PATCHED, MEAN = "original", "patched always on", "mean of probabilities"
BETTER, BEST = "better network of each cell", "better network of each image"


def main() -> None:
    """Train or read the patch, fit the routers, and measure all on images that nothing was fitted to."""
    options = parser().parse_args()
    device = machine.prepared(options.device)
    data = load_data(options.dataset, options.data_dir, seed=machine.SEED)
    model = load_classifier(options.model, options.dataset, options.weights)
    runtime.to_channels_last(model)
    model.to(device).eval()
    data = data.to(device)
    patch = patch_of(options, model, data)
    frames = [measured(options, model, patch, data, seed) for seed in options.seeds]
    frame = pd.concat(frames, ignore_index=True)
    count, left = options.calibration, min(options.images, len(data.test) - options.calibration)
    images = f"{left} test images of {options.dataset}, severities {options.severity}; {count} others calibrate"
    machine.write(frame, options, device, images=images)
    shown = ["router", "seed", "clean", "mean", "benefit_auroc", "flips", "clean_lost", "clean_lost_bound"]
    print(frame[shown].to_string(index=False, float_format=lambda value: f"{value:.2f}"))


def parser() -> argparse.ArgumentParser:
    """Return the parser of this benchmark's options."""
    found = machine.parser(__doc__ or "")
    found.add_argument("--weights", metavar="FILE", help="weights of the network (default: the published ones)")
    found.add_argument("-m", "--model", default="resnet32a", metavar="NAME")
    found.add_argument("-d", "--dataset", default="cifar10", metavar="NAME")
    found.add_argument("--data_dir", type=Path, default=Path("data"), metavar="FOLDER")
    found.add_argument("--patch", type=Path, metavar="FILE", help="a patch of these weights (default: train one)")
    found.add_argument("--train_images", type=int, metavar="N", help="training images of the patch (default: all)")
    found.add_argument("--epochs", type=int, default=20, metavar="N", help="of the patch (default: 20)")
    found.add_argument("--lr", type=float, default=0.01, metavar="X", help="of the patch (default: 0.01)")
    found.add_argument("--ranking", choices=["random", "taylor"], default="taylor", help="(default: taylor)")
    found.add_argument("--families", default=FAMILIES, metavar="NAMES", help=f"trained on (default: {FAMILIES})")
    found.add_argument("--severity", default="1..5", metavar="N[,N...]", help="measured at (default: 1..5)")
    found.add_argument("--calibration", type=int, default=1000, metavar="N", help="test images to calibrate on")
    found.add_argument("--images", type=int, default=10**9, metavar="N", help="others to measure (default: all)")
    found.add_argument("--routers", nargs="+", choices=ROUTERS, default=list(ROUTERS), metavar="NAME")
    found.add_argument("--max_clean_drop", type=float, nargs="+", default=[0.3, 1.0], metavar="P", help="in points")
    found.add_argument("--seeds", type=int, nargs="+", default=[machine.SEED], metavar="N", help="of the images' draw")
    found.add_argument("-b", "--batch_size", type=int, default=250, metavar="N")
    return found


def patch_of(options: argparse.Namespace, model: nn.Module, data: Data) -> Patch:
    """Return the patch that --patch names, or train one."""
    if options.patch:
        return Patch.from_bytes(options.patch.read_bytes(), options.patch)
    if options.train_images:
        order = torch.randperm(len(data.train), generator=runtime.generator(machine.SEED, "benchmark"))
        chosen = order[: options.train_images].to(data.train.labels.device)
        data = replace(data, train=data.train.take(chosen))
    degrade = corruptions.corruption(options.families)
    if options.ranking == "random":
        widths = {name: conv.out_channels for name, conv in convolutions(network_of(model)).items()}
        ranking = random_ranking(widths, machine.SEED)
    else:
        ranking = rank_filters(model, data, degrade, method="taylor")
    return train_patch(model, data, degrade, ranking.choose(), epochs=options.epochs, lr=options.lr)


def measured(options: argparse.Namespace, model: nn.Module, patch: Patch, data: Data, seed: int) -> pd.DataFrame:
    """Return a row for each router and bound, and for what they are compared with."""
    calibrate, others = apart(data.test, options.calibration, seed)
    others = others.take(torch.arange(min(options.images, len(others)), device=others.labels.device))
    switches: dict[str, Switch] = {}
    for kind in options.routers:
        for drop in options.max_clean_drop[: 1 if kind == "flips" else None]:  # which keeps no bound
            name = kind if kind == "flips" else f"{kind}, {drop:g}"
            switches[name] = fit_switch(
                model, patch, data, options.families, router=kind, max_clean_drop=drop, calibrate=calibrate,
                batch_size=options.batch_size,
            )  # fmt: skip
    levels = corruptions.corruption("all", severity=options.severity).level_names
    found = {view: Cell(switches) for view in ("clean", *levels)}
    for name, cell in found.items():
        for pixels, labels in batches(others, name, options):
            cell.add(pixels, labels)
    compared = (ORIGINAL, PATCHED, MEAN, BETTER, BEST)
    rows = [row_of(name, found) | bound_of(switches.get(name)) for name in (*compared, *switches)]
    return pd.DataFrame(rows).assign(seed=seed)


def batches(images: Images, name: str, options: argparse.Namespace) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield the batches of a view."""
    degrade = corruptions.corruption("all", severity=options.severity)
    level = 0 if name == "clean" else 1 + degrade.level_names.index(name)
    yield from views.levels_view(images, degrade, [level], options.batch_size)


class Cell:
    """What all networks and routers make of the images of a view."""

    def __init__(self, switches: dict[str, Switch]) -> None:
        self.switches = switches
        self.right: dict[str, list[np.ndarray]] = {}
        self.scores: dict[str, list[np.ndarray]] = {}

    @torch.inference_mode()
    def add(self, pixels: Tensor, labels: Tensor) -> None:
        """Run both networks once, and let every router decide."""
        switch = next(iter(self.switches.values()))
        crossing, maps = switch.look(pixels)
        answers = switch.run_all(crossing)
        original, patched = (each.logits for each in answers)
        mean = averaged(original, patched)
        answered = {ORIGINAL: original, PATCHED: patched, MEAN: mean}
        for name, each in self.switches.items():
            answered[name] = self._routed(name, each, maps, answers, mean)
        for name, logits in answered.items():
            self.right.setdefault(name, []).append((logits.argmax(1) == labels).cpu().numpy())

    def _routed(
        self, name: str, switch: Switch, maps: tuple[Maps, ...], answers: list[Answers], mean: Tensor
    ) -> Tensor:
        router = switch.needed_router()
        scores = router.all_scores(router.features_of(maps, answers if router.reads_answers else ()))[:, 0]
        self.scores.setdefault(name, []).append(scores.cpu().numpy())
        other = mean if router.kind == AVERAGE else answers[1].logits
        return torch.where((scores > router.threshold).unsqueeze(1), other, answers[0].logits)

    def correct(self, name: str) -> np.ndarray:
        """Return which images are classified correctly, bool (images,)."""
        if name == BETTER:
            return max((self.correct(each) for each in (ORIGINAL, PATCHED)), key=np.sum)
        if name == BEST:
            return self.correct(ORIGINAL) | self.correct(PATCHED)
        return np.concatenate(self.right[name])


def row_of(name: str, cells: dict[str, Cell]) -> dict[str, object]:
    """Return the measures of a router, or of what it is compared with, in percent."""
    clean = cells["clean"]
    degraded = {view: cell for view, cell in cells.items() if view != "clean"}
    accuracy = {view: 100 * cell.correct(name).mean() for view, cell in cells.items()}
    broken = {view: (cell.correct(ORIGINAL) & ~cell.correct(name)).mean() for view, cell in cells.items()}
    by_type = {kind: [accuracy[view] for view in degraded if view.rpartition("-")[0] == kind] for kind in BENCHMARK}
    types = {kind: float(np.mean(values)) for kind, values in by_type.items()}
    lost = int((clean.correct(ORIGINAL) & ~clean.correct(name)).sum())
    return {
        "router": name,
        "clean": accuracy["clean"],
        "mean": float(np.mean(list(types.values()))),
        "benefit_auroc": benefit_auroc(name, degraded),
        "flips": 50 * broken["clean"] + 50 * float(np.mean([broken[view] for view in degraded])),
        "clean_lost": 100 * broken["clean"],
        "clean_lost_bound": 100 * upper_bound(lost, len(clean.correct(ORIGINAL))),
        **types,
    }


def benefit_auroc(name: str, degraded: dict[str, Cell]) -> float:
    """Return how well scores order the degraded images that only one network gets right, as an AUROC."""
    scores, patched = [], []
    for cell in degraded.values():
        if name not in cell.scores:
            return float("nan")
        unlike = cell.correct(ORIGINAL) != cell.correct(PATCHED)
        scores.append(np.concatenate(cell.scores[name])[unlike])
        patched.append(cell.correct(PATCHED)[unlike])
    truth = np.concatenate(patched)
    if len(np.unique(truth)) < 2:
        return float("nan")
    return float(roc_auc_score(truth, np.concatenate(scores)))


def bound_of(switch: Switch | None) -> dict[str, float]:
    """Return the threshold, and the bound on the loss of clean accuracy that the calibration shows, in percent."""
    if switch is None:
        return {"bound_shown": float("nan"), "threshold": float("nan")}
    bound = switch.calibration.get("clean_drop_bound", float("nan"))
    return {"bound_shown": 100 * bound, "threshold": switch.needed_router().threshold.item()}


if __name__ == "__main__":
    main()
