"""Fit a router on clean and degraded images, and return a switched model that uses it."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from torch import nn

from deeppatch.data import corruptions
from deeppatch.data.corruptions import Corruption
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.evaluation import correct_by_level
from deeppatch.patching.density import fit_density
from deeppatch.patching.experts import SwitchedNetworks
from deeppatch.patching.fitting import ROUTERS, CalibrationData
from deeppatch.patching.names import READ_ANSWERS
from deeppatch.patching.observing import calibration_view, conditions, mixed_rows, observe, router_features
from deeppatch.patching.patch_file import Patch
from deeppatch.patching.switch import Switch
from deeppatch.patching.switched import SwitchedModel
from deeppatch.zoo.classifier import device_of

Experts = Patch | nn.Module | Mapping[str, Patch | nn.Module]


def fit_switch(
    model: nn.Module,
    patch: Experts,
    data: Data,
    corruption: Any,
    *,
    router: str = "probe",
    max_clean_drop: float = 0.1,
    max_flips: float | None = None,
    calibrate: Images | None = None,
    alarm: float | None = None,
    vote: bool = False,
    batch_size: int = 256,
    amp: bool = False,
) -> Switch:
    """Fit a router and return the model that switches each sample between the original and other networks.

    Its bounds hold for images like those that it was calibrated on, if the networks have seen none of these. Published
    networks have often been trained on `val`; then give other images as `calibrate` (see `seen.compare_seen`).

    Args:
        model: The classifier that the patch was trained on; it is not changed.
        patch: The patch that `train_patch` returned; or another classifier, such as a fine-tuned one; or several of
            both by name, of which the router chooses. The original network is always one of the choices.
        data: The data; the part `val` calibrates the router.
        corruption: what `deeppatch.corruption` takes or returns: the degradations that the patch is for.
        router: `probe`, a logistic regression of clean against degraded on statistics of the first patched maps;
            `flips`, as published (Wei et al., TOSEM 2023); `benefit`, a regression on the same statistics of which
            network is right; `benefit-both`, on both networks' answers, too, for which every network runs for every
            sample; or `average`, which averages the probabilities of both networks instead of choosing one.
        max_clean_drop: the bound on the loss of clean accuracy, in percentage points, that these images show with 95 %
            confidence (Clopper and Pearson); it limits how readily samples switch. `flips` keeps no bound.
        max_flips: the same for newly wrong images on a stream in which each image is degraded with probability 1/2, in
            percent (default: no bound). Both bounds hold together with 95 % confidence.
        calibrate: Images to calibrate on instead of `val`.
        alarm: the rate of false alarms, in (0, 1), at which samples that resemble nothing in the calibration are told;
            the original network answers them, and `answer` flags them (default: none are told).
        vote: Whether a whole batch switches by majority, as published, instead of each sample.
        batch_size: The number of images in a batch.
        amp: Whether networks run in bfloat16.

    Returns:
        A classifier of pixels (N, 3, H, W) in [0, 1], in eval mode. Its `calibration` has the results: but for `flips`
        the threshold (None where all samples switch), `clean_losses` of `clean_images` and `clean_drop_bound`, a share
        in [0, 1]. Its method `answer` returns logits with how each sample was routed.

    Raises:
        UserError: When the router is unknown, a bound is outside 0 to 100, or the patch belongs to another model.

    >>> import torch
    >>> from torch import nn
    >>> from deeppatch.patching.training import train_patch
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> pixels, labels = torch.rand(40, 3, 12, 16), torch.arange(40) % 2
    >>> data = Data.of((pixels, labels), (pixels, labels))
    >>> blur = corruptions.corruption("gaussian-blur")
    >>> patch = train_patch(model, data, blur, {"0": [1, 2]}, epochs=1)
    >>> switched = fit_switch(model, patch, data, blur)
    >>> tuple(switched(pixels[:3]).shape), switched.calibration["val_images"]
    ((3, 2), 8)
    """
    if router not in ROUTERS:
        raise UserError(f"there is no router called {router}; choose from {', '.join(ROUTERS)}")
    if not 0 <= max_clean_drop <= 100:
        raise UserError(f"max_clean_drop={max_clean_drop}: give percentage points from 0 to 100")
    if max_flips is not None and not 0 <= max_flips <= 100:
        raise UserError(f"max_flips={max_flips}: give a percentage from 0 to 100")
    if alarm is not None and not 0 < alarm < 1:
        raise UserError(f"alarm={alarm}: give a rate of false alarms above 0, below 1")
    device = device_of(model)
    original = copy.deepcopy(model).eval()
    images, example = (data.val if calibrate is None else calibrate).to(device), data.example.to(device)
    switched = switch_between(original, patch, example)
    if isinstance(switched, SwitchedNetworks) and switched.first is None and router not in READ_ANSWERS:
        raise UserError("a network does not begin with a convolution; choose the router benefit-both or average")
    switched.vote = vote
    degrade = corruptions.corruption(corruption)
    found = _observed(switched, router, images, degrade, max_flips is not None, batch_size=batch_size, amp=amp)
    if found.right is None:
        networks = [original, *classifiers(original, patch, example).values()]
        before, after = (
            correct_by_level(network, images, None, batch_size=batch_size, amp=amp, label=f"calibrating, {name}")[0]
            for network, name in zip(networks, switched.names, strict=True)
        )
        found = _with_losses(found, (before & ~after).cpu().numpy())
    fitted, facts = ROUTERS[router](found, max_clean_drop / 100, None if max_flips is None else max_flips / 100)
    if alarm is not None:
        view = calibration_view(images, degrade, batch_size, router)
        condition = conditions(view.levels.cpu().numpy(), degrade)
        fitted.density = fit_density(np.concatenate(found.by_network, 1), found.image, condition, alarm)
        facts |= {"alarm_rate": alarm, "alarm_threshold": fitted.density.threshold.item()}
    switched.router = fitted.to(device)
    switched.calibration = {"val_images" if calibrate is None else "calibration_images": len(images), **facts}
    return switched


def switch_between(model: nn.Module, others: Experts, example: torch.Tensor) -> Switch:
    """Return the model that switches between a classifier and others, without a router yet.

    With a single patch both networks share what comes before the first patched layer.
    """
    if isinstance(others, Patch):
        return SwitchedModel(model, others, example)
    return SwitchedNetworks(model, classifiers(model, others, example), example)


def classifiers(model: nn.Module, others: Experts, example: torch.Tensor) -> dict[str, nn.Module]:
    """Return the other networks as whole classifiers by name, patches being applied to copies of the model."""
    if isinstance(others, (Patch, nn.Module)):
        others = {"patched" if isinstance(others, Patch) else "corrected": others}
    if not others:
        raise UserError("there is no network to switch to; give a patch or a corrected classifier")
    return {
        name: each.apply(model, example) if isinstance(each, Patch) else each.to(device_of(model))
        for name, each in others.items()
    }


def _observed(
    switched: Switch, router: str, images: Images, degrade: Corruption, mixed: bool, *, batch_size: int, amp: bool
) -> CalibrationData:
    """Return what the router is fitted to; without `right` where only clean images have to be classified."""
    view = calibration_view(images, degrade, batch_size, router)
    image, degraded = view.index.cpu().numpy(), (view.levels > 0).cpu().numpy()
    nobody = np.zeros(int((~degraded).sum()), dtype=bool)
    if router in ("probe", "flips") and not mixed and isinstance(switched, SwitchedModel):
        features = router_features(switched, router, images, degrade, batch_size=batch_size, amp=amp)
        return CalibrationData(features.cpu().numpy(), image, degraded, nobody)
    seen = observe(switched, router, view, amp=amp)
    rows = mixed_rows(image, degraded, seed=0) if mixed else None
    return CalibrationData(seen.features, image, degraded, nobody, seen.right, rows)


def _with_losses(data: CalibrationData, lost: np.ndarray) -> CalibrationData:
    return CalibrationData(data.features, data.image, data.degraded, lost)
