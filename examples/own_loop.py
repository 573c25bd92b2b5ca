"""The pieces of a repair one by one, with a training loop of your own: about 20 s on two cores.

PYTHONPATH=src python examples/own_loop.py
"""

from __future__ import annotations

import copy

import torch
from torch import nn

import deeppatch as dp
from deeppatch.data import views
from deeppatch.patching.attachment import attach
from deeppatch.patching.patch_file import extract
from deeppatch.pretraining.classifier import train_classifier
from deeppatch.pretraining.recipes import Recipe


def main() -> None:
    """Attach new filters to a copy of a model, train only them, take the patch out, and apply it to the model."""
    data = dp.load_data("digits")
    model, _history = train_classifier(dp.load_classifier("resnet8", 10), data, Recipe(epochs=6, lr=0.1, batch_size=64))
    blur = dp.corruption("gaussian-blur")

    ranking = dp.rank_filters(model, data, blur, method="taylor")
    channels = ranking.choose(ratio=0.25)
    print({layer: len(chosen) for layer, chosen in channels.items()})

    patched = copy.deepcopy(model)
    attachment = attach(patched.network, channels, "replace", patched.normalize(data.example))
    optimizer = torch.optim.SGD(attachment.parameters(), lr=0.02, momentum=0.9)
    for epoch in range(5):
        attachment.enter_training()
        for pixels, labels in views.Shuffled(data.train, 64, seed=2021, epoch=epoch, corruption=blur):
            optimizer.zero_grad()
            loss = nn.functional.cross_entropy(patched(pixels), labels)
            loss.backward()
            optimizer.step()
        print(f"epoch {epoch + 1}: loss {loss.item():.3f}")

    from deeppatch.artifacts import state_digest

    patch = extract(attachment, state_digest(model.state_dict()))
    table = dp.evaluate({"before": model, "patched": patch.apply(model, data.example)}, data, blur)
    print(table.round(2).to_string())


if __name__ == "__main__":
    main()
