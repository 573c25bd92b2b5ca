"""Pooled features: those of a plain pass, computed once and kept by content."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn import functional as F

from deeppatch.artifacts import state_digest, tensors_from_bytes, tensors_to_bytes
from deeppatch.data.files import Files
from deeppatch.data.sources import Images
from deeppatch.decompose import features
from deeppatch.decompose.features import Features, ShuffledFeatures, pooled

HEAD = "network.fc"


def plain(model: nn.Module, pixels: torch.Tensor) -> torch.Tensor:
    """The oracle: a whole pass over all images, with a hook on what the head reads."""
    found = []
    handle = model.get_submodule(HEAD).register_forward_hook(lambda _m, inputs, _o: found.append(inputs[0]))
    model.eval()
    with torch.no_grad():
        model(pixels.float() / 255)
    handle.remove()
    return found[0]


@pytest.fixture
def passes(tiny) -> list[int]:
    """How many images each pass through the network had."""
    counts: list[int] = []
    tiny.register_forward_pre_hook(lambda _m, inputs: counts.append(len(inputs[0])))
    return counts


def shards(cache: Path) -> list[Path]:
    return sorted(cache.iterdir())


@pytest.mark.parametrize("training", [True, False])
def test_features_are_what_the_head_reads(tiny, images, tmp_path, training):
    want = plain(tiny, images.pixels)
    before = state_digest(tiny.state_dict())
    found = pooled(tiny.train(training), HEAD, images, tmp_path)
    assert torch.equal(found.values, want)
    assert (found.values.dtype, found.values.shape, len(found)) == (torch.float32, (60, 12), 60)
    assert torch.equal(found.labels, images.labels)
    assert state_digest(tiny.state_dict()) == before, "statistics do not move"
    assert not (found.values == 0).all(1).any()


def test_a_smaller_batch_changes_nothing_but_rounding(tiny, images, tmp_path, passes):
    found = pooled(tiny, HEAD, images, tmp_path, batch_size=7).values
    assert passes == [7] * 8 + [4]
    torch.testing.assert_close(found, plain(tiny, images.pixels), rtol=1e-5, atol=1e-6)


def test_a_second_call_reads_the_shard_and_runs_nothing(tiny, images, tmp_path, passes):
    first = pooled(tiny, HEAD, images, tmp_path / "new" / "folder")
    kept = shards(tmp_path / "new" / "folder")[0].read_bytes()
    assert torch.equal(pooled(tiny, HEAD, images, tmp_path / "new" / "folder").values, first.values)
    assert passes == [60]
    assert [path.read_bytes() for path in shards(tmp_path / "new" / "folder")] == [kept]


def test_labels_are_those_of_the_call_and_not_of_the_shard(tiny, images, tmp_path, passes):
    pooled(tiny, HEAD, images, tmp_path)
    other = pooled(tiny, HEAD, Images(images.pixels, images.labels.flip(0)), tmp_path)
    assert passes == [60]
    assert torch.equal(other.labels, images.labels.flip(0))


@pytest.mark.parametrize("name", ["network.conv1.weight", "network.bn1.running_mean", "normalize.mean"])
def test_another_state_of_the_model_has_another_shard(tiny, images, tmp_path, name):
    first = pooled(tiny, HEAD, images, tmp_path)
    tiny.state_dict()[name].view(-1)[0].add_(1)
    found = pooled(tiny, HEAD, images, tmp_path)
    assert len(shards(tmp_path)) == 2
    assert torch.equal(found.values, plain(tiny, images.pixels))
    assert not torch.equal(found.values, first.values)


CHANGES = {
    "another image": lambda pixels: torch.cat([pixels[:-1], 255 - pixels[-1:]]),
    "another order": lambda pixels: pixels.flip(0), "fewer": lambda pixels: pixels[:-1],
}  # fmt: skip


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES.keys())
def test_other_images_have_another_shard(tiny, images, tmp_path, change):
    pooled(tiny, HEAD, images, tmp_path)
    changed = change(images.pixels)
    found = pooled(tiny, HEAD, Images(changed, torch.zeros(len(changed))), tmp_path)
    assert len(shards(tmp_path)) == 2
    assert torch.equal(found.values, plain(tiny, changed))


def test_another_precision_and_another_head_have_another_shard(tiny, images, tmp_path):
    whole, half = (pooled(tiny, HEAD, images, tmp_path, amp=amp).values for amp in (False, True))
    assert half.dtype == torch.float32
    assert not torch.equal(whole, half)
    torch.testing.assert_close(half, whole, rtol=0.05, atol=0.05)
    assert pooled(tiny, "network.conv3", images, tmp_path).values.shape == (60, 8, 12, 12)
    assert len(shards(tmp_path)) == 3


def shortened(content: bytes) -> bytes:
    """A sound file that lacks an image."""
    tensors = {"features": tensors_from_bytes(content, Path("x"))[0]["features"][1:]}
    return tensors_to_bytes(tensors, {"digest": state_digest(tensors)})


DAMAGES = {
    "empty": lambda content: b"", "truncated": lambda content: content[:-10], "header": lambda content: content[:20],
    "a bit": lambda content: content[:-1] + bytes([content[-1] ^ 1]),
    "garbage": lambda content: b"\xff" * len(content), "an image too few": shortened,
    "no digest": lambda content: tensors_to_bytes(tensors_from_bytes(content, Path("x"))[0]),
}  # fmt: skip


@pytest.mark.parametrize("damage", DAMAGES.values(), ids=DAMAGES.keys())
def test_a_damaged_shard_is_computed_again(tiny, images, tmp_path, passes, damage, capsys):
    first = pooled(tiny, HEAD, images, tmp_path)
    (path,) = shards(tmp_path)
    path.write_bytes(damage(kept := path.read_bytes()))
    assert torch.equal(pooled(tiny, HEAD, images, tmp_path).values, first.values)
    assert passes == [60, 60]
    assert path.read_bytes() == kept
    assert f"{path} is damaged; computing it again" in capsys.readouterr().out


def test_several_shards_are_as_good_as_one(tiny, images, tmp_path, passes, monkeypatch):
    whole = pooled(tiny, HEAD, images, tmp_path / "one", batch_size=8)
    monkeypatch.setattr(features, "SHARD", 16)
    cache = tmp_path / "several"
    assert torch.equal(pooled(tiny, HEAD, images, cache, batch_size=8).values, whole.values)
    assert len(shards(cache)) == 4
    shards(cache)[2].unlink()
    passes.clear()
    assert torch.equal(pooled(tiny, HEAD, images, cache, batch_size=8).values, whole.values)
    assert sum(passes) in (12, 16), "the missing shard alone is computed"


def test_images_may_stay_in_files(tiny, images, tmp_path, passes):
    paths = [str(tmp_path / f"{place}.png") for place in range(60)]
    for path, pixels in zip(paths, images.pixels, strict=True):
        Image.fromarray(pixels.permute(1, 2, 0).numpy()).save(path)
    filed, cache = Images(Files(paths, 12, 12), images.labels), tmp_path / "cache"
    assert torch.equal(pooled(tiny, HEAD, filed, cache).values, pooled(tiny, HEAD, images, cache).values)
    pooled(tiny, HEAD, filed, cache)
    assert passes == [60, 60]
    Image.new("RGB", (30, 30)).save(paths[5])
    torch.testing.assert_close(pooled(tiny, HEAD, filed, cache).values[5:6], plain(tiny, torch.zeros(1, 3, 12, 12)))


def test_no_hook_stays_on_the_model(tiny, images, tmp_path):
    pooled(tiny, HEAD, images, tmp_path)
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in tiny.modules())


def test_values_can_be_trained_on_whether_computed_or_kept(tiny, images, tmp_path):
    for _ in range(2):
        found = pooled(tiny, HEAD, images, tmp_path)
        head = nn.Linear(12, 5)
        F.cross_entropy(head(found.values), found.labels).backward()
        assert head.weight.grad.abs().sum() > 0
        assert not found.values.requires_grad


# --- ShuffledFeatures


def order(seed: int, epoch: int, batch_size: int = 16, scale: float = 1) -> list[int]:
    """The images of an epoch as they are read; labels must stay with their values."""
    features = Features(scale * torch.arange(60.0).view(60, 1), torch.arange(60))
    batches = ShuffledFeatures(features, batch_size, seed, epoch)
    assert len(read := list(batches)) == len(batches) == -(-60 // batch_size)
    assert all(len(labels) == batch_size for _, labels in read[:-1])
    values, labels = (torch.cat(parts) for parts in zip(*read, strict=True))
    assert torch.equal(values[:, 0], scale * labels)
    return labels.tolist()


@pytest.mark.parametrize("batch_size", [1, 16, 20, 60, 100])
def test_every_image_is_read_once(batch_size):
    assert sorted(order(7, 0, batch_size)) == list(range(60))


def test_the_order_depends_on_seed_and_epoch_alone():
    torch.manual_seed(1)
    first = order(7, 0)
    torch.manual_seed(2)
    assert order(7, 0) == order(7, 0, batch_size=9) == order(7, 0, scale=2) == first
    assert len({tuple(order(seed, epoch)) for seed in (7, 8) for epoch in (0, 1)} | {tuple(range(60))}) == 5
