"""The weak models of the published experiments: network, data and training, by the strong model that corrects them."""

from __future__ import annotations

from deeppatch.errors import UserError

# the weak model's data, by the strong one's
MIXES = {
    "cifar10": "cifar10-mix", "svhn": "svhn-mix", "svhn_5": "svhn-mix", "digits": "digits-mix", "digits_5": "digits-mix"
}  # fmt: skip
SIMPLE = {
    "cifar10-mix": {"simcnn": "simcnn_weak", "rescnn": "rescnn_weak"},
    "svhn-mix": {"simcnn": "simcnn_svhn_weak", "rescnn": "rescnn_svhn_weak"},
    "digits-mix": {"simcnn": "simcnn_svhn_weak", "rescnn": "rescnn_svhn_weak"},
}
POORFIT = {"simcnn": "simcnn_poorfit", "rescnn": "rescnn_poorfit"}
# how a weak model came to be weak: the recipe that it is trained by, and the file that pretrain leaves
FITS = {
    "simple": ("weak", "weights.safetensors"),
    "overfitted": ("poorfit", "weights.safetensors"),
    "underfitted": ("poorfit", "weights-underfitted.safetensors"),
}


def mix_of(dataset: str) -> str:
    """Return the mix that goes with a strong model's data; UserError when there is none."""
    if dataset not in MIXES:
        raise UserError(f"{dataset}: there is no mix for weak models of it; use {', '.join(MIXES)}")
    return MIXES[dataset]


def published_weak_network(strong: str, dataset: str, fit: str) -> str:
    """Return the weak network that was published for a strong network, its data set and a key of FITS."""
    by_family = SIMPLE[mix_of(dataset)] if fit == "simple" else POORFIT
    return by_family["rescnn" if strong.startswith("rescnn") else "simcnn"]
