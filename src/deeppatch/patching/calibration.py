"""Fit a router on clean and degraded validation images, and return a switched model that uses it."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import nn

from deeppatch import runtime
from deeppatch.data import corruptions, views
from deeppatch.data.corruptions import Corruption
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.evaluation import correct_by_level
from deeppatch.patching.patch_file import Patch, apply
from deeppatch.patching.router import FEATURES, ROUTERS, CalibrationData
from deeppatch.patching.switched import SwitchedModel
from deeppatch.progress import track
from deeppatch.zoo.classifier import device_of


def fit_switch(
    model: nn.Module,
    patch: Patch,
    data: Data,
    corruption: Any,
    *,
    router: str = "probe",
    max_clean_drop: float = 0.1,
    vote: bool = False,
    batch_size: int = 256,
    amp: bool = False,
) -> SwitchedModel:
    """Fit a router on val and return the model that switches each sample between original and patched network.

    Args:
        model: The classifier that the patch was trained on; it is not changed.
        patch: The patch that `train_patch` returned.
        data: The data; the part `val` calibrates the router.
        corruption: what `deeppatch.corruption` takes or returns: the degradations that the patch is for.
        router: `probe`, a logistic regression on statistics of the first patched maps, or `flips`, as published (Wei
            et al., TOSEM 2023).
        max_clean_drop: with `probe`, the bound on the loss of clean accuracy, in percentage points, that val shows
            with 95 % confidence (Clopper and Pearson); it limits how readily samples switch.
        vote: Whether a whole batch switches by majority, as published, instead of each sample.
        batch_size: The number of images in a batch.
        amp: Whether networks run in bfloat16.

    Returns:
        A classifier of pixels (N, 3, H, W) in [0, 1], in eval mode. Its `calibration` has the results: for `probe`
        the threshold, `clean_losses` of `clean_images` and `clean_drop_bound`, a share in [0, 1].

    Raises:
        UserError: When the router is unknown, the bound is outside 0 to 100, or the patch belongs to another model.

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
    device = device_of(model)
    original = copy.deepcopy(model).eval()
    val, example = data.val.to(device), data.example.to(device)
    patched = copy.deepcopy(original)
    apply(patched, patch, example)
    switched = SwitchedModel(original, patch, example)
    switched.vote = vote
    degrade = corruptions.corruption(corruption)
    features = router_features(switched, router, val, degrade, batch_size=batch_size, amp=amp)
    before, after = (
        correct_by_level(network, val, None, batch_size=batch_size, amp=amp, label=f"calibrating, {name}")[0]
        for network, name in ((original, "original"), (patched, "patched"))
    )
    view = views.append(val, degrade, batch_size)
    calibration_data = CalibrationData(
        features=features.cpu().numpy(),
        image=view.index.cpu().numpy(),
        degraded=(view.levels > 0).cpu().numpy(),
        lost=(before & ~after).cpu().numpy(),
    )
    fitted, facts = ROUTERS[router](calibration_data, max_clean_drop / 100)
    switched.router = fitted.to(device)
    switched.calibration = {"val_images": len(val), **facts}
    return switched


@torch.inference_mode()
def router_features(
    switched: SwitchedModel,
    router: str,
    images: Images,
    corruption: Corruption,
    *,
    batch_size: int = 256,
    amp: bool = False,
) -> torch.Tensor:
    """Return a router's features of images, clean and at each level, float64 ((levels + 1) * images, features)."""
    view = views.append(images, corruption, batch_size)
    rows = []
    for pixels, _labels in track(view, len(view), "calibrating"):
        with runtime.autocast(pixels.device, amp):
            maps = switched.run_stem(pixels)[1]
        rows.append(FEATURES[router](maps).double())
    return torch.cat(rows)
