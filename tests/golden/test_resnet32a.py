"""A stored patch and router of the published ResNet-32, on 500 real images: right answers and routes, by level.

Files and figures were made at revision 67c1575: 3,000 training images, a sixteenth of the filters, four epochs.
"""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch

from deeppatch.data import sources, views
from deeppatch.data.corruptions import SIGMAS, GaussianBlur
from deeppatch.patching.patch_file import Patch, apply
from deeppatch.patching.router import Router
from deeppatch.patching.switched import SwitchedModel
from deeppatch.zoo import weights
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.entries import ENTRIES

pytestmark = pytest.mark.realdata
HERE = Path(__file__).resolve().parent
# of every twentieth test image: right answers clean and at the six levels of the blur; then images switched
RIGHT = {
    "original": [458, 459, 181, 99, 81, 73, 70],
    "patched": [437, 439, 367, 268, 196, 154, 118],
    "switched": [455, 452, 367, 268, 196, 154, 118],
}
SWITCHED = [29, 117, 500, 500, 500, 500, 500]


@pytest.fixture(scope="module")
def answers(published: Path, cifar10: Path) -> dict[str, list[int]]:
    """Right answers by network and level, and how many images were switched at each."""
    network, entry = ARCHITECTURES["resnet32a"](10), ENTRIES["cifar10", "resnet32a"]
    weights.load_network(network, weights.read(published / "resnet32-d509ac18.th"), "resnet32a")
    model = Classifier(network, entry.mean, entry.std).to(memory_format=torch.channels_last).eval()
    test = sources.load("cifar10", cifar10, 2021).test.take(torch.arange(0, 10_000, 20))
    blur, example = GaussianBlur(SIGMAS), views.to_float(test.pixels[:2])
    patch, router = (HERE / f"resnet32a_{name}.safetensors" for name in ("patch", "router"))
    stored = Patch.from_bytes(patch.read_bytes(), patch)
    switched = SwitchedModel(model, stored, example, Router.from_bytes(router.read_bytes(), router))
    patched = copy.deepcopy(model)
    apply(patched, stored, example)
    found: dict[str, list[int]] = {"original": [], "patched": [], "switched": [], "moved": []}
    with torch.inference_mode():
        for level in range(len(SIGMAS) + 1):
            pixels = blur(views.to_float(test.pixels), level)
            logits, _scores, moved = switched.route(pixels)
            for name, each in (("original", model(pixels)), ("patched", patched(pixels)), ("switched", logits)):
                found[name].append(int((each.argmax(1) == test.labels).sum()))
            found["moved"].append(int(moved.sum()))
    return found


@pytest.fixture(scope="module")
def published() -> Path:
    """The folder of published checkpoints."""
    folder = HERE.parents[2] / "shared" / "weights"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the repository")
    return folder


@pytest.mark.parametrize("name", RIGHT)
def test_a_network_gets_the_same_images_right(answers, name):
    assert answers[name] == RIGHT[name]


def test_the_router_moves_the_same_images(answers):
    assert answers["moved"] == SWITCHED
