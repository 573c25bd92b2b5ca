"""The published checkpoints on the real CIFAR-10."""

from __future__ import annotations

import json

import pytest
import torch

from deeppatch.cli.main import guarded
from deeppatch.data import sources, views
from deeppatch.metrics import accuracy
from deeppatch.training import predict
from deeppatch.zoo import weights
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.entries import ENTRIES

pytestmark = pytest.mark.realdata
FILES = {"resnet20a": "resnet20-12fca82f.th", "resnet32a": "resnet32-d509ac18.th"}


@pytest.mark.parametrize(
    ("model", "mean", "std", "clean"),
    [
        ("resnet20a", (0.491, 0.482, 0.447), (0.247, 0.243, 0.261), 91.71),
        ("resnet32a", (0.485, 0.456, 0.406), (0.229, 0.224, 0.225), 92.63),
    ],
)
def test_clean_accuracy_over_all_test_images_is_the_published_one(shared, cifar10, model, mean, std, clean):
    entry = ENTRIES["cifar10", model]
    assert (entry.mean, entry.std) == (mean, std)
    network = ARCHITECTURES[model](10)
    weights.load_network(network, weights.read(shared / "weights" / FILES[model]), model)
    classifier = Classifier(network, mean, std).to(memory_format=torch.channels_last)
    test = sources.load("cifar10", cifar10, 2021).test
    view = views.clean(test, 256)
    assert len(view.labels) == 10_000
    assert 100 * accuracy(predict(classifier, view), view.labels) == pytest.approx(clean, abs=0.02)


def test_wrong_normalisation_is_noticed_and_right_constants_are_named(shared, cifar10, tmp_path, capsys):
    model = "resnet20a"
    arguments = ["-m", model, "-d", "cifar10", "--data_dir", str(cifar10), "--output_dir", str(tmp_path)]
    arguments += ["--weights", str(shared / "weights" / FILES[model]), "--limit", "500"]
    wrong = ["--mean", "0", "0", "0", "--std", "1", "1", "1"]

    def measured_by(options: list[str]) -> dict:
        before = set(tmp_path.rglob("metrics.json"))
        assert guarded("eval", [*arguments, *options], "python src/{script}.py") == 0
        (left,) = set(tmp_path.rglob("metrics.json")) - before
        return json.loads(left.read_text())

    # it was trained with ImageNet's constants; CIFAR's own come close
    assert measured_by(wrong)["normalisation_doctor"]["best"] == "ImageNet"
    assert "--mean 0.485 0.456 0.406 --std 0.229 0.224 0.225" in capsys.readouterr().out

    measured = measured_by([])
    assert measured["normalisation_doctor"] is None
    # the blur is what makes the network fail; over every fifth image: about 91.5 34 19 16 15 14
    assert measured["accuracy_percent"]["s=0.5"] > 80
    assert measured["accuracy_percent"]["s=3"] < 25
