"""Write what the library makes to files and read it back: nothing is pickled, and a file is never half written."""

from __future__ import annotations

import copy
import json
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from deeppatch.artifacts import tensors_from_bytes, tensors_to_bytes
from deeppatch.decomposition import index_sets
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.hybrid.selection import Selection, selection_from_bytes
from deeppatch.localization.ranking import Ranking
from deeppatch.modular.assembling import AssembledClassifier, Origin
from deeppatch.modular.modules import Modules
from deeppatch.patching.patch_file import Patch
from deeppatch.patching.router import Router
from deeppatch.patching.switch import Switch
from deeppatch.patching.switched import SwitchedModel
from deeppatch.retrain.bank import Bank
from deeppatch.storage import parse_json, read_given, write_bytes
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.resolve import resolve

ROUTER = "router/"  # in front of a router's tensors, in the file of a switched model


def save(value: object, path: Path | str) -> Path:
    """Write what the library made to a file, and return its path.

    Args:
        value: A model (its state dict, and the names of its classes), a `Patch`, a `Router`, a switched model (patch,
            router and vote, without the model that was patched and the measurements of `fit_switch`), a `Bank`,
            `Modules`, an assembled classifier, a `Selection`, a `Ranking`, or the features of each class, int64 (C, k).
        path: The file; `.safetensors`, or `.json` for a ranking and for features.

    Raises:
        UserError: When it is none of these, or the file's suffix is another one.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> model = Classifier(nn.Sequential(nn.Flatten(), nn.Linear(12, 2)), classes=["cat", "dog"])
        >>> path = save(model, Path(folder.name) / "model.safetensors")
        >>> again = load(path, nn.Sequential(nn.Flatten(), nn.Linear(12, 2)))
        >>> pixels = torch.rand(3, 3, 2, 2)
        >>> bool((again(pixels) == model.eval()(pixels)).all()), again.classes
        (True, ('cat', 'dog'))
    """
    path = Path(path)
    suffix = ".json" if isinstance(value, (Ranking, Tensor)) else ".safetensors"
    if path.suffix != suffix:
        raise UserError(f"{path}: a {type(value).__name__} is kept as {suffix}; call the file {path.stem}{suffix}")
    write_bytes(path, _content(value))
    return path


def load(path: Path | str, model: nn.Module | Mapping[str, nn.Module] | None = None) -> Any:
    """Read what `save` wrote, or what a stage of the command line left.

    Args:
        path: The file.
        model: For weights, the bare network that they are loaded into (in place), or a `Classifier`; for a switched
            model, the classifier that was patched. For an assembled classifier, the networks of its `SplitModel`s by
            their names, where these did not say what the zoo calls them; they are not changed.

    Returns:
        What was saved; weights as a `Classifier` in eval mode.

    Raises:
        UserError: When the file cannot be read or holds none of these, or a model is needed and not given.
        StaleArtifact: When the file is damaged, or the model is another one.

    Example:
        >>> import tempfile
        >>> folder = tempfile.TemporaryDirectory()
        >>> indices = torch.tensor([[0, 4], [2, 3]])
        >>> load(save(indices, Path(folder.name) / "features.json"))
        tensor([[0, 4],
                [2, 3]])
    """
    path = Path(path)
    content = read_given(path)
    if path.suffix == ".json":
        return _from_json(content, path)
    tensors, meta = tensors_from_bytes(content, path)
    if "assembled" in meta:
        return AssembledClassifier.from_bytes(content, path, partial(_network_of_module, model, path))
    if any(name.startswith(ROUTER) for name in tensors):
        return _switched(tensors, meta, path, _needed(model, path, "the classifier that was patched"))
    if "router" in meta:
        return Router.from_bytes(content, path)
    if "bank" in meta:
        return Bank.from_bytes(content, path)
    if {"kind", "base"} <= meta.keys():
        return Patch.from_bytes(content, path)
    if any(name.startswith("kept/") for name in tensors):
        return Modules.from_bytes(content, path)
    if "bought" in tensors:
        return selection_from_bytes(content, path)
    return _weights(tensors, meta, path, _needed(model, path, "the network that they are for"))


def _content(value: object) -> bytes:
    if isinstance(value, Ranking):
        return (json.dumps(value.to_json()) + "\n").encode()
    if isinstance(value, Tensor):
        return index_sets.to_json(value)
    if isinstance(value, (Patch, Router, Modules, Selection, Bank, AssembledClassifier)):
        return value.to_bytes()
    if isinstance(value, SwitchedModel):
        if value.router is None:
            raise UserError("the switched model has no router yet; make it with fit_switch")
        patch, meta = tensors_from_bytes(value.patch.to_bytes(), Path("the patch"))
        router = {f"{ROUTER}{name}": tensor for name, tensor in value.router.state_dict().items()}
        return tensors_to_bytes({**patch, **router}, {**meta, "router": value.router.kind, "vote": value.vote})
    if isinstance(value, Switch):
        raise UserError("a model that switches between whole networks has no file; save its networks and its router")
    if isinstance(value, nn.Module):
        classes = getattr(value, "classes", None)
        return tensors_to_bytes(value.state_dict(), {"classes": list(classes)} if classes else {})
    raise UserError(
        f"{type(value).__name__}: there is no file for this; save a model, a patch, modules, a selection, "
        "a ranking, or the features of each class"
    )


def _network_of_module(model: object, path: Path, origin: Origin) -> nn.Module:
    """Return the network that a module of an assembled classifier is a part of."""
    if isinstance(model, Mapping) and origin.model in model:
        return copy.deepcopy(model[origin.model])
    if not origin.network:
        raise UserError(
            f"{path} has modules of {origin.model}, a network of one's own; give it: load(path, "
            f"{{{origin.model!r}: network}})"
        )
    return resolve(origin.network).build(origin.outputs)


def _from_json(content: bytes, path: Path) -> Ranking | Tensor:
    try:
        found = parse_json(content)
        if "layers" in found:
            return Ranking.from_json(found)
        rows = [found[str(label)] for label in range(len(found))]
        return torch.tensor(rows, dtype=torch.long).view(len(rows), -1)
    except (ValueError, KeyError, TypeError, AttributeError, RuntimeError) as error:
        raise StaleArtifact(f"{path} holds neither a ranking nor the features of each class") from error


def _needed(model: nn.Module | Mapping[str, nn.Module] | None, path: Path, what: str) -> nn.Module:
    if not isinstance(model, nn.Module):
        raise UserError(f"{path} holds tensors of a model; give {what} as the second argument")
    return model


def _switched(tensors: dict[str, Tensor], meta: dict[str, Any], path: Path, model: nn.Module) -> SwitchedModel:
    own = {name: value for name, value in tensors.items() if not name.startswith(ROUTER)}
    state = {name.removeprefix(ROUTER): value for name, value in tensors.items() if name.startswith(ROUTER)}
    patch = Patch.from_bytes(tensors_to_bytes(own, meta), path)
    router = Router.from_bytes(tensors_to_bytes(state, {"router": meta.get("router")}), path)
    device = next(model.parameters()).device
    height, width = patch.about.get("image_size", (32, 32))
    switched = SwitchedModel(model, patch, torch.zeros(2, 3, height, width, device=device), router.to(device))
    switched.vote = bool(meta.get("vote", False))
    return switched


def _weights(tensors: dict[str, Tensor], meta: dict[str, Any], path: Path, model: nn.Module) -> nn.Module:
    of_classifier = "normalize.mean" in tensors
    mine = model if isinstance(model, Classifier) or not of_classifier else Classifier(model)
    own = mine.state_dict()
    if other := [name for name in own if name in tensors and own[name].shape != tensors[name].shape]:
        shapes = f"{tuple(tensors[other[0]].shape)} there, {tuple(own[other[0]].shape)} in the model"
        raise StaleArtifact(f"{path} is for another network: {other[0]} has shape {shapes}")
    try:
        mine.load_state_dict(tensors)
    except RuntimeError as error:
        raise StaleArtifact(f"{path} is for another network: {' '.join(str(error).split())}") from error
    if isinstance(mine, Classifier) and meta.get("classes"):
        mine.classes = tuple(meta["classes"])
    return mine.eval()
