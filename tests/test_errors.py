from __future__ import annotations

import pytest

from deeppatch.errors import closest

NAMES = ["--model", "--susp_ratio", "--noise_type", "pretrain", "relearn", "resnet32", "cifar10"]


@pytest.mark.parametrize(
    ("word", "meant"),
    [
        ("--modle", "--model"), ("--susp_r", "--susp_ratio"), ("pretrian", "pretrain"), ("resnt32", "resnet32"),
        ("CIFAR10", "cifar10"), ("cifr10", "cifar10"),
    ],
)  # fmt: skip
def test_a_mistyped_name_finds_the_one_that_was_meant(word, meant):
    assert closest(word, NAMES) == f" (did you mean {meant}?)"


@pytest.mark.parametrize("word", ["", "repair", "--nonsense", "mnist", "--"])
def test_what_resembles_nothing_is_not_guessed_at(word):
    assert closest(word, NAMES) == ""
