"""Fixtures that many tests share: a tiny network, tiny data, and where the real data lie, if they do."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

ROOT = Path(__file__).resolve().parents[1]
SHARED = ROOT.parent / "shared"
# behind the standard library, so that src/select.py does not shadow the standard `select`
sys.path.append(str(ROOT / "src"))

from deeppatch.data.corruptions import SIGMAS, GaussianBlur  # noqa: E402
from deeppatch.data.sources import Images  # noqa: E402
from deeppatch.zoo.classifier import Classifier  # noqa: E402

torch.set_num_threads(1)


def pytest_ignore_collect(collection_path: Path, config: pytest.Config) -> bool | None:
    """Leave the campaign out, whatever is selected, unless it is asked for by its mark or its path."""
    asked = [str(config.option.markexpr), *config.args]
    return True if collection_path.name == "campaign" and not any("campaign" in each for each in asked) else None


class TinyNet(nn.Module):
    """A residual network with three convolutions, two normalisations and five classes."""

    def __init__(self, classes: int = 5) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(3, 8, 3, padding=1, bias=False)
        self.bn1 = nn.BatchNorm2d(8)
        self.conv2 = nn.Conv2d(8, 8, 3, padding=1)
        self.bn2 = nn.BatchNorm2d(8)
        self.conv3 = nn.Conv2d(8, 12, 3, stride=2, padding=1)
        self.fc = nn.Linear(12, classes)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.relu(self.bn1(self.conv1(x)))
        x = torch.relu(self.bn2(self.conv2(x)) + x)
        return self.fc(torch.relu(self.conv3(x)).mean((2, 3)))


@pytest.fixture(scope="session", autouse=True)
def no_wait_for_the_disk() -> Iterator[None]:
    """Let the tests' own process not wait until files are on the disk: that is a tenth of the time of all tests.

    Tests of what is synchronised, and when, put their own function in this place; processes that are killed wait.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(os, "fsync", lambda _handle: None)
        yield


@pytest.fixture
def lively() -> Callable[[nn.Module], nn.Module]:
    """Give a network normalisation statistics that are not those of a fresh one, and put it in eval mode."""

    def enliven(network: nn.Module) -> nn.Module:
        for module in network.modules():
            if isinstance(module, nn.BatchNorm2d):
                module.running_mean.uniform_(-0.3, 0.3)
                module.running_var.uniform_(0.5, 1.5)
                nn.init.uniform_(module.weight, 0.5, 1.5)
                nn.init.uniform_(module.bias, -0.3, 0.3)
        return network.eval()

    return enliven


@pytest.fixture
def tiny(lively) -> Classifier:
    """A classifier of 12x12 images with statistics that are not those of a fresh network, in eval mode."""
    torch.manual_seed(3)
    return lively(Classifier(TinyNet(), [0.4, 0.5, 0.6], [0.2, 0.25, 0.3]))


@pytest.fixture
def images() -> Images:
    """Sixty random images of 12x12 pixels in five classes."""
    draw = torch.Generator().manual_seed(5)
    pixels = torch.randint(0, 256, (60, 3, 12, 12), generator=draw, dtype=torch.uint8)
    return Images(pixels, torch.arange(60) % 5)


@pytest.fixture
def blur() -> GaussianBlur:
    """The published blur for images of 12x12 pixels."""
    return GaussianBlur(SIGMAS)


@pytest.fixture
def shared() -> Path:
    """The folder of published files beside the repository; the test is skipped where it is absent."""
    if not SHARED.is_dir():
        pytest.skip("no ../shared beside the repository")
    return SHARED


@pytest.fixture(scope="session")
def cifar10(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data folder with the real CIFAR-10: the repository's own, else unpacked from ../shared, else the test skips."""
    if (ROOT / "data" / "cifar-10-batches-py" / "test_batch").exists():
        return ROOT / "data"
    unpack = SHARED / "data" / "unpack.py"
    if not unpack.exists():
        pytest.skip("no CIFAR-10 under data/ and no ../shared beside the repository")
    folder = tmp_path_factory.mktemp("cifar10")
    subprocess.run([sys.executable, str(unpack), str(folder)], check=True, capture_output=True)
    return folder
