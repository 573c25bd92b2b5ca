from __future__ import annotations

from pathlib import Path

import pytest
import torch

from deeppatch.artifacts import state_digest
from deeppatch.errors import StaleArtifact
from deeppatch.modular.heads import Heads, Scales
from deeppatch.modular.layers import find_layers
from deeppatch.modular.masking import masked_logits
from deeppatch.modular.modules import Modules

EXAMPLE = torch.rand(4, 3, 12, 12)


def made(tiny, heads=None):
    torch.manual_seed(1)
    layers = find_layers(tiny.network, tiny.normalize(EXAMPLE))
    kept = {layer.name: torch.rand(5, layer.kernels) < 0.7 for layer in layers}
    for mask in kept.values():
        mask[:, 0] = True
    return Modules(state_digest(tiny.state_dict()), kept, heads), layers


def scales():
    made = Scales(5)
    made.load_state_dict({"scale": torch.rand(5) + 0.5, "bias": torch.randn(5)})
    return made


@pytest.mark.parametrize("heads", [None, Heads(5, 5), scales()], ids=["logits", "heads", "scales"])
def test_a_file_gives_the_same_composed_model(tiny, heads):
    modules, layers = made(tiny, heads)
    again = Modules.from_bytes(modules.to_bytes(), Path("modules.safetensors"))
    assert again.has_heads == isinstance(heads, Heads)
    assert again.to_bytes() == modules.to_bytes()
    x = tiny.normalize(EXAMPLE)
    masks = [modules.kept[layer.name] for layer in layers]
    with torch.no_grad():
        logits = masked_logits(tiny.network, layers, masks, x)
        expected = logits.diagonal(dim1=0, dim2=2) if heads is None else heads(logits.transpose(0, 1))
        found = again.composed(tiny, EXAMPLE)(EXAMPLE)
    assert torch.allclose(found, expected, atol=1e-5)
    assert found.shape == (4, 5)


def test_a_batch_of_heads_is_each_head_alone():
    torch.manual_seed(3)
    heads = Heads(3, 4)
    logits = torch.randn(6, 3, 4)
    for number in range(3):
        hidden = (logits[:, number].relu() @ heads.weight1[number].T + heads.bias1[number]).relu()
        expected = (hidden @ heads.weight2[number] + heads.bias2[number]).sigmoid()
        assert torch.allclose(heads(logits)[:, number], expected, atol=1e-6)
        assert torch.allclose(heads.only(number)(logits[:, number : number + 1]).squeeze(1), expected, atol=1e-6)


def test_scales_are_of_the_modules_own_logits_and_fit_held_out_images():
    draw = torch.Generator().manual_seed(1)
    labels = torch.randint(0, 3, (200,), generator=draw)
    logits = torch.randn(200, 3, 3, generator=draw)
    logits[torch.arange(200), labels, labels] += 3
    own = logits.diagonal(dim1=1, dim2=2)
    factors, shifts = torch.tensor([0.1, 1.0, 10.0]), torch.tensor([0.0, 5.0, -5.0])
    spoiled = logits * factors.unsqueeze(1) + shifts.unsqueeze(1)
    found = Scales(3)
    assert torch.equal(found(spoiled), spoiled.diagonal(dim1=1, dim2=2))
    assert (found(spoiled).argmax(1) == labels).sum() < (own.argmax(1) == labels).sum() - 40
    found = found.fitted(spoiled, labels)
    assert (found(spoiled).argmax(1) == labels).sum() >= (own.argmax(1) == labels).sum() - 2
    for label in range(3):
        assert torch.equal(found.only(label)(spoiled[:, label : label + 1]), found(spoiled)[:, label : label + 1])


def test_shares_count_every_tied_convolution():
    kept = {"a+b": torch.tensor([[True, False], [True, True]]), "c": torch.tensor([[True] * 4, [True, False] * 2])}
    assert Modules("", kept).shares().tolist() == pytest.approx([6 / 8, 6 / 8])


def test_other_weights_and_damage_are_told(tiny):
    modules, _ = made(tiny)
    content = modules.to_bytes()
    with pytest.raises(StaleArtifact, match="damaged"):
        Modules.from_bytes(content[:-3], Path("modules.safetensors"))
    tiny.network.fc.bias.data += 1
    with pytest.raises(StaleArtifact, match="other base weights"):
        modules.member(tiny, EXAMPLE, 0)


def test_another_file_holds_no_modules():
    from deeppatch.artifacts import tensors_to_bytes

    with pytest.raises(StaleArtifact, match="holds no modules"):
        Modules.from_bytes(tensors_to_bytes({"x": torch.zeros(1)}), Path("x.safetensors"))
