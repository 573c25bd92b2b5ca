from __future__ import annotations

import math

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from deeppatch.hybrid import encoder as encoding
from deeppatch.hybrid.encoder import Encoder, PositivePairs, augment, contrastive_loss, neighbours_accuracy


def fresh(seed: int = 1) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


@pytest.fixture
def pixels() -> Tensor:
    return torch.randint(0, 256, (30, 3, 12, 12), dtype=torch.uint8, generator=fresh(2))


class Fixed(nn.Module):
    """Returns given projections of length 1, whatever it is shown."""

    def __init__(self, projections: Tensor) -> None:
        super().__init__()
        self.projections = F.normalize(projections, dim=1)

    def forward(self, pixels: Tensor) -> Tensor:
        return self.projections


def test_the_loss_is_the_definition():
    projections = torch.randn(8, 5, generator=fresh())
    model = Fixed(projections)
    rows = model.projections.double()
    total = 0.0
    for i in range(8):
        partner = (i + 4) % 8
        others = [math.exp(float(rows[i] @ rows[k]) / 0.5) for k in range(8) if k != i]
        total -= math.log(math.exp(float(rows[i] @ rows[partner]) / 0.5) / sum(others))
    assert contrastive_loss(model, (torch.zeros(8, 3, 1, 1), torch.arange(4))).item() == pytest.approx(
        total / 8, rel=1e-5
    )


def test_partners_that_agree_cost_less():
    alike, apart = torch.eye(4).repeat(2, 1), torch.eye(8)
    losses = [
        contrastive_loss(Fixed(rows), (torch.zeros(8, 3, 1, 1), torch.arange(4))).item() for rows in (alike, apart)
    ]
    assert losses[0] < losses[1]


def test_the_head_is_a_projection_and_features_are_what_it_reads(tiny, pixels):
    classes = nn.Linear(12, 5)
    encoder = Encoder(tiny, pixels[:1].float() / 255)
    assert encoder.head == "network.fc"
    projected = encoder.eval()(pixels.float() / 255)
    assert projected.shape == (30, encoding.PROJECTION_SIZE)
    torch.testing.assert_close(projected.norm(dim=1), torch.ones(30))
    features = encoder.train().features(pixels, batch_size=7)
    assert features.shape == (30, classes.in_features)
    assert encoder.training, "the mode is as it was"
    torch.testing.assert_close(F.normalize(tiny.network.fc(features), dim=1), projected)


def test_an_epoch_pairs_two_copies_of_each_image_and_repeats(pixels):
    epoch = PositivePairs(pixels, 8, 3, 0)
    assert len(epoch) == 3
    batches, again, later = list(epoch), list(epoch), list(PositivePairs(pixels, 8, 3, 1))
    assert [copies.shape for copies, _ in batches] == [(16, 3, 12, 12)] * 3
    places = torch.cat([places for _, places in batches])
    assert len(places.unique()) == 24
    assert all(
        torch.equal(*pair) for one, other in zip(batches, again, strict=True) for pair in zip(one, other, strict=True)
    )
    assert not torch.equal(batches[0][1], later[0][1])
    first, second = batches[0][0].chunk(2)
    assert not torch.equal(first, second)
    assert len(list(PositivePairs(pixels[:5], 8, 3, 0))) == 1, "a pool smaller than a batch is one"


def test_copies_are_of_the_same_image(pixels, monkeypatch):
    monkeypatch.setattr(encoding, "augment", lambda copies, _draw, *, mirror: copies)
    for copies, places in PositivePairs(pixels, 8, 3, 0):
        assert torch.equal(copies, (pixels[places].float() / 255).repeat(2, 1, 1, 1))


def test_distortions_differ_between_images_and_stay_in_range():
    same = torch.rand(1, 3, 16, 16, generator=fresh()).expand(200, -1, -1, -1)
    found = augment(same, fresh(2))
    assert 0 <= found.min() <= found.max() <= 1
    assert len(found.flatten(1).unique(dim=0)) == 200
    grey = (found.amax(1) - found.amin(1)).amax((1, 2)) < 0.02
    assert 0.1 < grey.float().mean() < 0.3, "one of five is grey"


def test_a_crop_is_a_part_of_the_image_mirrored_at_most_where_that_is_allowed():
    ramp = torch.linspace(0.2, 0.8, 32).expand(300, 3, 32, 32)
    for mirror in (False, True):
        crops = encoding._crops(300, fresh(), mirror)
        width, height = crops[:, 0, 0].abs(), crops[:, 1, 1]
        assert ((width + crops[:, 0, 2].abs() <= 1 + 1e-6) & (height + crops[:, 1, 2].abs() <= 1 + 1e-6)).all()
        assert (width * height).min() > 0.14
        assert (width * height).max() <= 1
        assert (crops[:, 0, 0] < 0).any() == mirror
    rising = augment(ramp, fresh(), mirror=False)
    assert (rising[..., -4:].mean((1, 2, 3)) >= rising[..., :4].mean((1, 2, 3)) - 1e-6).all(), "no mirror image"


def test_without_a_change_colours_stay(monkeypatch):
    monkeypatch.setattr(encoding, "JITTER", 0.0)
    monkeypatch.setattr(encoding, "HUE", 0.0)
    colours, contrasts = encoding._colours(100, fresh())
    assert (contrasts == 1).all()
    identity = (colours - torch.eye(3)).abs().amax((1, 2)) < 1e-5
    luminance = encoding.YIQ[0].expand(3, 3)
    assert 0.65 < identity.float().mean() < 0.95
    torch.testing.assert_close(colours[~identity], luminance.expand(int((~identity).sum()), 3, 3), atol=5e-3, rtol=0)


def test_neighbours_vote(monkeypatch):
    monkeypatch.setattr(encoding, "NEIGHBOURS", 3)
    known, labels = torch.randn(40, 4, generator=fresh()), torch.arange(40) % 3
    features, truth = torch.randn(25, 4, generator=fresh(5)), torch.arange(25) % 3
    right = 0
    for row, own in zip(features, truth.tolist(), strict=True):
        near = sorted(range(40), key=lambda k: -F.cosine_similarity(row, known[k], dim=0).item())[:3]
        votes = [sum(labels[k] == c for k in near) for c in range(3)]
        right += votes.index(max(votes)) == own
    assert neighbours_accuracy(known, labels, features, truth) == pytest.approx(right / 25)


def test_learning_brings_copies_together(tiny, pixels):
    """A few steps lower the loss: gradients reach the whole network."""
    encoder = Encoder(tiny, pixels[:1].float() / 255).train()
    optimizer = torch.optim.Adam(encoder.parameters(), lr=0.01)
    plain = pixels[..., :1, :1].expand_as(pixels).contiguous()  # each of a colour of its own
    batch = next(iter(PositivePairs(plain, 30, 1, 0)))
    losses = []
    for _ in range(25):
        loss = contrastive_loss(encoder, batch)
        optimizer.zero_grad()
        loss.backward()
        assert encoder.body.network.conv1.weight.grad.abs().sum() > 0
        optimizer.step()
        losses.append(loss.item())
    assert losses[-1] < losses[0] - 0.3
