"""A bank of statistics: what each condition answers, mixed batches, the selector's place in it, and the file."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest
import torch
from torch import nn

import deeppatch as dp
from deeppatch.artifacts import state_digest
from deeppatch.data import views
from deeppatch.data.corruptions import corruption
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.graph.statistics import reestimate
from deeppatch.ledger.attacking import routed_paths
from deeppatch.retrain.bank import Bank, tables
from deeppatch.retrain.bank_fitting import fit_bank
from deeppatch.retrain.norms import BATCH, statistics_view


@pytest.fixture
def bank(tiny, data, blur) -> Bank:
    """The bank of the tiny network for all levels of blur."""
    return fit_bank(tiny, data, blur, max_clean_drop=100)


@pytest.fixture
def pixels(images) -> torch.Tensor:
    """Pixels (60, 3, 12, 12)."""
    return images.pixels.float() / 255


@torch.no_grad()
def test_clean_images_are_answered_by_the_base_bit_for_bit(tiny, bank, pixels):
    banked = bank.apply(tiny)
    assert torch.equal(banked.answer(pixels, torch.zeros(60, dtype=torch.long)), tiny(pixels))
    mixed = torch.arange(60) % 3
    assert torch.equal(banked.answer(pixels, mixed)[mixed == 0], tiny(pixels)[mixed == 0]), "in a mixed batch too"


@torch.no_grad()
def test_a_condition_answers_as_the_network_with_its_statistics(tiny, bank, data, blur, pixels):
    banked = bank.apply(tiny)
    for level in (1, 6):
        view = statistics_view(views.levels_view(data.train, blur, [level], BATCH), 2021)
        plain = reestimate(tiny, view)(pixels)
        found = banked.answer(pixels, torch.full((60,), level))
        assert torch.allclose(found, plain, atol=1e-4)
        assert not torch.allclose(found, tiny(pixels), atol=1e-2)


@torch.no_grad()
def test_an_answer_does_not_depend_on_the_batch(tiny, bank, pixels):
    banked = bank.apply(tiny)
    conditions = torch.arange(60) % 7
    together = banked.answer(pixels, conditions)
    alone = [banked.answer(pixels[i : i + 1], conditions[i : i + 1]) for i in range(60)]
    assert torch.allclose(torch.cat(alone), together, atol=1e-5)
    assert torch.allclose(banked(pixels), banked.answer(pixels, banked.selector(pixels)))


def test_tables_are_written_out(tiny):
    norm = tiny.network.bn2
    scale, shift = tables([tiny])["scale"][0, 8:], tables([tiny])["shift"][0, 8:]
    for channel in range(8):
        deviation = (norm.running_var[channel].item() + norm.eps) ** 0.5
        assert scale[channel].item() == pytest.approx(norm.weight[channel].item() / deviation, rel=1e-5)
        plain = norm.bias[channel].item() - norm.running_mean[channel].item() * scale[channel].item()
        assert shift[channel].item() == pytest.approx(plain, abs=1e-5)
    plain = nn.Sequential(nn.BatchNorm2d(3, affine=False))
    assert torch.allclose(tables([plain])["scale"], torch.ones(1, 3), atol=1e-4)


def test_a_strict_bound_sends_fewer_clean_images_to_another_condition(tiny, data, blur, bank):
    strict = fit_bank(tiny, data, blur, max_clean_drop=0)
    assert bank.facts["clean_losses"] >= strict.facts["clean_losses"] == 0
    assert strict.tensors["selector/threshold"] >= bank.tensors["selector/threshold"]
    assert torch.equal(strict.tensors["scale"], bank.tensors["scale"])


def test_types_share_statistics_over_their_levels(tiny, data):
    both = corruption({"dark": lambda x, _: x / 4, "bright": lambda x, _: (x + 3) / 4})
    assert fit_bank(tiny, data, both, conditions="type").conditions == ("clean", "degraded"), "both are one type"
    noise = corruption("gaussian_noise,contrast", severity="1,5")
    found = fit_bank(tiny, data, noise, conditions="type")
    assert found.conditions == ("clean", "gaussian_noise", "contrast")
    assert len(fit_bank(tiny, data, noise).conditions) == 5
    assert found.facts["passes"].forward == 60 + 2 * (60 + 60)


def test_the_same_seed_gives_the_same_bytes_and_another_other_ones(tiny, data, blur, bank, monkeypatch):
    monkeypatch.setattr("deeppatch.retrain.norms.IMAGES", 30)
    first, again, other = (fit_bank(tiny, data, blur, seed=seed).to_bytes() for seed in (1, 1, 2))
    assert first == again != other


def test_save_and_load(tiny, bank, pixels, tmp_path: Path):
    path = dp.save(bank, tmp_path / "bank.safetensors")
    again = dp.load(path)
    assert (again.base, again.conditions, again.norms) == (bank.base, bank.conditions, bank.norms)
    assert again.about == {"classes": list("abcde"), "image_size": [12, 12]}
    assert torch.equal(again.apply(tiny)(pixels), bank.apply(tiny)(pixels))
    for name in (again.norms[0], "network.fc"):
        assert name in dict(tiny.named_modules())


def test_a_bank_of_another_model_or_a_damaged_one_is_refused(tiny, bank, tmp_path: Path):
    before = state_digest(tiny.state_dict())
    other = dataclasses.replace(bank, tensors={"scale": bank.tensors["scale"]})
    with pytest.raises(StaleArtifact, match="is not a bank of statistics"):
        Bank.from_bytes(other.to_bytes())
    with torch.no_grad():
        tiny.network.fc.bias += 1
    with pytest.raises(StaleArtifact, match="made for other weights"):
        bank.apply(tiny)
    assert state_digest(tiny.state_dict()) != before


def test_what_cannot_be_done_is_refused(tiny, data, blur):
    for given, said in (
        ({"conditions": "weather"}, "choose from level, type"),
        ({"max_clean_drop": -1}, "from 0 to 100"),
    ):
        with pytest.raises(UserError, match=said):
            fit_bank(tiny, data, blur, **given)
    network = nn.Sequential(nn.Conv2d(3, 5, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten())
    with pytest.raises(UserError, match="no batch normalisation"):
        fit_bank(network, data, blur)


def test_an_attack_finds_the_conditions_and_the_selector(tiny, bank, pixels):
    banked = bank.apply(tiny)
    paths, decide = routed_paths(banked)
    assert list(paths) == [*map(str, range(len(bank.conditions))), "whole"]
    conditions = torch.arange(60) % len(bank.conditions)
    with torch.no_grad():
        assert torch.equal(decide(pixels), banked.selector(pixels))
        alone = torch.stack([path(pixels) for path in paths.values()])[conditions, torch.arange(60)]
        assert torch.allclose(alone, banked.answer(pixels, conditions), atol=1e-6)
    pixels.requires_grad_()
    (gradient,) = torch.autograd.grad(paths["1"](pixels).sum(), pixels)
    assert gradient.abs().sum() > 0
