"""pretrain --modular: what it says of itself, that later stages find it, and mistakes."""

from __future__ import annotations

import json

import pytest

from deeppatch.modular.names import MODULARITY

FIXED = "-m simcnn_svhn_weak -d digits --limit 40 --device cpu"


def test_it_trains_with_the_loss_and_says_how_modular_the_network_is(tmp_path, launch):
    given = [*FIXED.split(), "--output_dir", str(tmp_path)]
    found = {}
    for words in ("--modular", "--modular --modular_weights 0 0 9"):
        result = launch("eval", [*given, "-e", "3", "-b", "10", "--lr", "0.05", *words.split()])
        assert (result.status, result.err) == (0, "")
    for path in tmp_path.glob("digits/*/pretrain-*/metrics.json"):
        settings = json.loads((path.parent / "run.json").read_text())["settings"]
        found[tuple(settings["modular_weights"] or MODULARITY)] = json.loads(path.read_text())
    compact = [found[weights]["modularity_on_val"]["compactness"] for weights in ((0, 0, 9), MODULARITY)]
    assert compact[0] < compact[1], "which weighs more there"
    assert all(each["weights"].startswith("trained here") for each in found.values())


def test_a_network_that_learns_nothing_is_told_so_and_not_taken_for_given_weights(tmp_path, launch):
    words = [*FIXED.split(), "--output_dir", str(tmp_path), "--modular", "--modular_weights", "0", "0", "9", "-e", "2"]
    result = launch("eval", words)
    assert (result.status, result.err) == (0, "")
    assert "is what guessing one of 10 classes reaches; train longer (--epochs)" in result.out
    assert "doctor" not in result.out
    assert "weights were trained with" not in result.out


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("--modular_weights 1 2 3", "--modular_weights goes with --modular"),
        ("--modular --modular_weights 1 -2 3", "--modular_weights: give three numbers of 0 or more"),
        ("--modular --state corrected", "--modular trains from scratch: leave out --weights and --state corrected"),
        ("--modular -m shufflenetv2_x1_0", "this network cannot be split"),
    ],
)
def test_a_mistake_is_one_line(tmp_path, launch, refusal, line, message):
    words = [*FIXED.split(), *line.split(), "--output_dir", str(tmp_path)]
    assert message in refusal(launch("eval", words))
