"""Attacks on the networks of a ledger: which are attacked along paths, and what a row says."""

from __future__ import annotations

import pytest
import torch
from torch import nn

from deeppatch.attack import Schedule, attack, attack_success
from deeppatch.cache import ContentCache
from deeppatch.data import views
from deeppatch.data.images import Images
from deeppatch.ledger import attacking
from deeppatch.ledger.attacking import attack_networks, routed_paths

QUICK = (Schedule(3, 0.5),)


class Banked(nn.Module):
    """Shifts dark images, as a bank of statistics does."""

    def __init__(self) -> None:
        super().__init__()
        self.layer, self.scale = nn.Linear(12, 3), torch.zeros(2, 1)

    def selector(self, pixels):
        return (pixels.mean((1, 2, 3)) < 0.5).long()

    def answer(self, pixels, conditions):
        return self.layer(pixels.flatten(1)) + conditions[:, None] * torch.tensor([0, 1, -1])

    def forward(self, pixels):
        return self.answer(pixels, self.selector(pixels))


class Routed(nn.Module):
    """Sends dark images to another network, as a switched model does."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(1)
        self.original, self.patched = (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)) for _ in range(2))

    def run_stem(self, pixels):
        return [2 * pixels], None

    def route(self, pixels):
        dark = pixels.mean((1, 2, 3)) < 0.5
        both = [network(2 * pixels) for network in (self.original, self.patched)]
        return torch.where(dark[:, None], both[1], both[0]), None, dark

    def forward(self, pixels):
        return self.route(pixels)[0]


@pytest.fixture
def some() -> Images:
    torch.manual_seed(0)
    return Images(torch.randint(0, 256, (24, 3, 2, 2), dtype=torch.uint8), torch.arange(24) % 3)


@pytest.mark.parametrize("kind", [Routed, Banked])
def test_the_paths_of_a_routed_network(kind, some):
    network, pixels = kind(), some.pixels / 255
    paths, decide = routed_paths(network)
    assert list(paths) == ["0", "1", "whole"]
    answers = torch.stack([path(pixels) for path in paths.values()])
    assert not torch.equal(answers[0], answers[1])
    chosen = answers[decide(pixels), torch.arange(24)]
    assert torch.equal(chosen, network(pixels))
    assert torch.equal(chosen, answers[2])
    assert 0 < int(decide(pixels).sum()) < 24


def test_other_networks_have_no_paths():
    assert routed_paths(nn.Flatten()) == (None, None)


def test_a_row_is_what_the_attack_finds(some):
    plain, routed = nn.Sequential(nn.Flatten(), nn.Linear(12, 3)), Routed()
    voting = nn.Sequential(nn.Flatten(), nn.Linear(12, 3))
    voting.vote = True
    some = Images(some.pixels, plain(some.pixels / 255).argmax(1))
    networks = {"old": plain, "new": routed, "voting": voting}
    table = attack_networks(networks, some, base="old", epsilons=(0.05, 0.2), schedules=QUICK, batch_size=10)
    assert table["network"].tolist() == ["old", "new"] * 2
    paths, decide = routed_paths(routed)
    for epsilon in (0.05, 0.2):
        batches = views.clean(some, 10)
        old = attack(plain, batches, epsilon=epsilon, schedules=QUICK)
        new = attack(routed, batches, epsilon=epsilon, paths=paths, decide=decide, schedules=QUICK)
        row = table[(table.network == "new") & (table.epsilon == epsilon)].iloc[0]
        success = attack_success(old, new)
        assert row.robust_accuracy == pytest.approx(new.robust_accuracy)
        assert row.low <= row.robust_accuracy <= row.high
        assert (row.attack_success_of_base, row.attack_success) == pytest.approx(success.percent)
        assert row.both_right == success.images > 0
        assert (row.broken_of_base, row.broken) == (success.before, success.after)
        assert (row.right, row.robust) == (int(new.correct.sum()), int(new.robust.sum()))
    assert table.robust_accuracy.iloc[3] <= table.robust_accuracy.iloc[1], "a larger ball"


def test_a_second_call_attacks_what_is_new(some, tmp_path, monkeypatch):
    one, other = (nn.Sequential(nn.Flatten(), nn.Linear(12, 3)) for _ in range(2))
    options = {"base": "one", "epsilons": (0.05,), "schedules": QUICK, "cells": ContentCache(tmp_path)}
    first = attack_networks({"one": one}, some, **options)
    seen = []

    def counted(network, *given, **more):
        seen.append(network)
        return attack(network, *given, **more)

    monkeypatch.setattr(attacking, "attack", counted)
    both = attack_networks({"one": one, "other": other}, some, **options)
    assert seen == [other]
    assert both[:1].equals(first)
    attack_networks({"one": one}, some, **{**options, "seed": 1})
    assert seen == [other, one]
