from __future__ import annotations

import pytest
import torch
from torch import nn

from deeppatch.errors import UserError
from deeppatch.features import embed, last_linear
from deeppatch.zoo.architectures import ARCHITECTURES


def hooks(model: nn.Module) -> int:
    return sum(len(module._forward_hooks) for module in model.modules())


def test_logits_and_features_of_one_pass_belong_together(tiny):
    pixels = torch.randint(0, 256, (21, 3, 12, 12), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    found = embed(tiny.train(), pixels, batch_size=8)
    with torch.no_grad():
        torch.testing.assert_close(found.logits, tiny(pixels.float() / 255))
        torch.testing.assert_close(tiny.network.fc(found.features), found.logits)
    torch.testing.assert_close(found.probabilities, found.logits.softmax(1))
    assert found.features.shape == (21, 12)
    assert not tiny.training
    assert hooks(tiny) == 0


@pytest.mark.parametrize(("name", "width"), [("vgg13_bn", 512), ("resnet8", 64)])
def test_the_last_of_several_linear_layers_is_the_one(name, width):
    network = ARCHITECTURES[name](7)
    layer = last_linear(network, torch.rand(1, 3, 32, 32))
    assert (layer.in_features, layer.out_features) == (width, 7)
    assert hooks(network) == 0


def test_a_network_that_ends_otherwise_is_refused():
    odd = nn.Sequential(nn.Flatten(), nn.Linear(12, 5), nn.ReLU(), nn.Softmax(1))
    with pytest.raises(UserError, match="choose another -m"):
        last_linear(odd, torch.rand(1, 3, 2, 2))
    assert hooks(odd) == 0
    with pytest.raises(UserError, match="linear"):
        last_linear(nn.Flatten(), torch.rand(1, 3, 2, 2))
