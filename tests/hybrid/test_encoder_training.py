"""Training an encoder on images without labels, and taking one that was kept."""

from __future__ import annotations

import copy
import dataclasses

import pytest
import torch

from deeppatch.cache import ContentCache
from deeppatch.data.dataset import Data
from deeppatch.hybrid import encoder_training
from deeppatch.hybrid.encoder import Encoder
from deeppatch.hybrid.encoder_training import EncoderSettings, fit_encoder, train_encoder
from deeppatch.training import History

SETTINGS = EncoderSettings("tiny", epochs=2, batch_size=8, seed=3)


@pytest.fixture
def data(images) -> Data:
    return Data(images, images.take(torch.arange(10)), images, tuple("abcde"))


@pytest.mark.parametrize("mirror", [True, False])
def test_an_encoder_sees_mirror_images_where_they_keep_their_class(data, tiny, monkeypatch, mirror):
    seen = []
    monkeypatch.setattr(
        encoder_training,
        "fit",
        lambda _encoder, epochs, *_given, **_named: seen.extend(epochs) or History([1.0], [0.5]),
    )
    encoder = Encoder(tiny, data.example)
    facts = fit_encoder(encoder, data.train.pixels, dataclasses.replace(data, mirror=mirror), SETTINGS)
    assert [(epoch.seed, epoch.epoch, epoch.mirror) for epoch in seen] == [(3, 0, mirror), (3, 1, mirror)]
    assert facts == {"encoder": "tiny", "epochs": 2, "images": 60, "knn_accuracy_on_val_percent": 50.0}


def test_an_encoder_is_kept_by_all_that_it_depends_on(data, tiny, tmp_path, monkeypatch):
    def trained(pool, settings=SETTINGS):
        return train_encoder(lambda: copy.deepcopy(tiny.network), data, pool, settings, cache=ContentCache(tmp_path))

    pool = 255 - data.train.pixels[:20]
    before = torch.get_rng_state()
    first = trained(pool)
    assert first.facts["images"] == 80
    features = first(data.test.pixels)
    other = trained(pool, dataclasses.replace(SETTINGS, epochs=1))
    assert not torch.equal(other(data.test.pixels), features)
    assert len(list(tmp_path.iterdir())) == 2
    trained(pool[1:])
    assert len(list(tmp_path.iterdir())) == 3
    monkeypatch.setattr(encoder_training, "fit", lambda *_a, **_k: pytest.fail("it is kept"))
    again = trained(pool)
    assert torch.equal(torch.get_rng_state(), before), "trained or kept, the caller's random state is restored"
    assert again.facts == first.facts
    assert torch.equal(again(data.test.pixels), features)
