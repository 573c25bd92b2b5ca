"""Decomposing the Deep on the real CIFAR-10 and the published ResNet-20: the published figures, exactly."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from deeppatch.cli.main import guarded

pytestmark = pytest.mark.realdata
PREFIX = "python src/{script}.py"
SETS = {5: "resnet20_cifar-10_indices", 10: "resnet20_cifar-10_10_10_indices", 20: "resnet20_cifar-10_20_20_indices"}
# mean mutual information in nats: the published indices, CSG's lowest gates (as published), CSG's highest
INFORMATION = {
    5: (0.03453775959861226, 0.03750908408724534, 0.033944589243773166),
    10: (0.05704998707530908, 0.054035947392501865, 0.055325043149428155),
    20: (0.07080315102266714, 0.0817442198694634, 0.08739642790888764),
}


@pytest.fixture(scope="module")
def published() -> Path:
    """The folder of published checkpoints and index files."""
    folder = Path(__file__).resolve().parents[3] / "shared" / "weights"
    if not folder.is_dir():
        pytest.skip("no ../shared beside the repository")
    return folder


@pytest.fixture(scope="module")
def given(published) -> list[str]:
    """The published index files, k = 5, 10, 20."""
    return [str(published / f"{name}.json") for name in SETS.values()]


@pytest.fixture(scope="module")
def run(tmp_path_factory, cifar10, published) -> Callable[..., Path]:
    """`run(script, *arguments)` runs a stage on the published weights, as published, and returns the model's folder."""
    output = tmp_path_factory.mktemp("decomposing")
    fixed = [
        "--weights",
        str(published / "resnet20-12fca82f.th"),
        "--data_dir",
        str(cifar10),
        "--output_dir",
        str(output),
    ]

    def started(script: str, *arguments: str) -> Path:
        threads = torch.get_num_threads()
        try:
            assert guarded(script, [*arguments, *fixed], PREFIX) == 0
        finally:
            torch.set_num_threads(threads)
        return output / "cifar10" / "resnet20a"

    return started


def content(folder: Path, pattern: str) -> dict:
    (path,) = folder.glob(pattern)
    return json.loads(path.read_text())


def test_accuracy_whole_and_decomposed_over_all_test_images(run, given):
    folder = run("decompose", "validate", "resnet20", "-i", *given, "--gpu", "0")
    measured = content(folder, "decompose-validate-given-*/metrics.json")
    assert measured["test_images"] == 10_000
    accuracy = {row["head"]: row["accuracy_percent"] for row in measured["heads"]}
    assert accuracy["whole layer"] == pytest.approx(91.71, abs=0.01)
    assert accuracy[SETS[5]] == pytest.approx(88.59, abs=0.01)


def test_all_nine_figures_of_mutual_information(run, given, published):
    folder = run("decompose", "mutual-info", "resnet20", "-i", *given, "--csg", str(published / "best_save_CSG.pth"))
    rows = content(folder, "decompose-mutual-info-given-*/mutual-info.json")["sets"]
    found = {(row["set"].rsplit(",", 1)[0], row["k"]): row["mean_mutual_information_nats"] for row in rows}
    for k, (ours, lowest, highest) in INFORMATION.items():
        assert found[SETS[k], k] == pytest.approx(ours, abs=1e-12)
        assert found["CSG, lowest gates (as published)", k] == pytest.approx(lowest, abs=1e-12)
        assert found["CSG, highest gates", k] == pytest.approx(highest, abs=1e-12)


def test_our_own_extraction_from_all_training_images_is_the_published_one(run, given):
    """Cropped and mirrored, as in training, the images give the very sets of k = 5; RESULTS has the plain ones."""
    folder = run("influence", "-m", "resnet20a", "-d", "cifar10", "-k", "5", "--augment", "--compare", given[0])
    measured = content(folder, "influence-augment*/influence.json")
    assert measured["compared"][f"{SETS[5]}.json"] == [5] * 10
