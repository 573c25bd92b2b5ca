"""Assemble a classifier from modules of several models: a better one for their classes, or one for new classes."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from torch import Tensor, nn

from deeppatch import runtime
from deeppatch.artifacts import tensors_from_bytes, tensors_to_bytes
from deeppatch.data import views
from deeppatch.data.dataset import Data
from deeppatch.data.images import Images
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.metrics.logit_scaling import scales_and_biases
from deeppatch.modular.extract import extract
from deeppatch.modular.heads import Heads
from deeppatch.modular.joins import class_metrics
from deeppatch.modular.layers import layers_to_split
from deeppatch.modular.modules import ClassModule, ComposedModules, Modules
from deeppatch.progress import track
from deeppatch.storage import is_of
from deeppatch.zoo.classifier import Normalize, device_of, network_of

SATURATED = 1e-7  # scores nearer to 0 or 1 are read as this far
HALF = 0.5  # a module answers for its class where its score is above this


@dataclass(frozen=True)
class SplitModel:
    """A classifier, and the modules that it was split into, for `assemble`.

    Args:
        model: The classifier.
        modules: Its modules with heads, which `split_into_modules` returned (`method="grad"`).
        classes: The names of its classes, in the order of its logits.
        name: What tables call it; each of several models needs a name of its own.
        data: The name of the data set that its classes are of, where other data sets have classes of the same name.
        network: The name of its network in the zoo, or `package.module:function`, by which `load` builds it again;
            without one `load` needs the networks.

    Raises:
        UserError: When there is not one module for each of the classes.

    >>> modules = Modules("", {"conv": torch.ones(2, 8, dtype=torch.bool)})
    >>> split = SplitModel(nn.Flatten(), modules, ("cat", "dog"), name="first", data="pets")
    >>> split.offers("dog"), split.offers("pets:cat"), split.offers("owl")
    ([1], [0], [])
    """

    model: nn.Module
    modules: Modules
    classes: Sequence[str]
    name: str = "model"
    data: str = ""
    network: str = ""

    def __post_init__(self) -> None:
        if len(self.classes) != self.modules.classes:
            raise UserError(
                f"{self.name}: there are {self.modules.classes} modules, and {len(self.classes)} names of classes; "
                "name the classes of the model that was split"
            )

    def offers(self, wanted: str) -> list[int]:
        """Return the indices of the classes called `wanted`, or DATA:NAME."""
        return [label for label, name in enumerate(self.classes) if wanted in (name, f"{self.data}:{name}")]


@dataclass(frozen=True)
class Origin:
    """Where a module of an assembled classifier is from: model, network, number of its classes, and the class there."""

    model: str
    network: str
    outputs: int
    label: int


class AssembledClassifier(ComposedModules):
    """Modules of several models as one classifier: the class whose module gives the highest score.

    Args:
        members: A module for each class.
        origins: Where each is from.
        kept: Of each, which kernels it keeps of each layer of its model, bool (kernels,).
        classes: The names of the classes.
        image_size: Height and width of the images.
        table: A row for each module that was a candidate (`assemble`); it is in no file.
    """

    def __init__(
        self,
        members: list[ClassModule],
        origins: Sequence[Origin],
        kept: Sequence[Mapping[str, Tensor]],
        classes: Sequence[str],
        image_size: tuple[int, int],
        table: pd.DataFrame | None = None,
    ) -> None:
        super().__init__(members)
        self.origins = tuple(origins)
        self.kept = tuple(kept)
        self.classes = tuple(classes)
        self.image_size = image_size
        self.table = table
        self.eval()

    def to_bytes(self) -> bytes:
        """Serialise as safetensors."""
        masks = {f"kept/{index}/{name}": mask for index, own in enumerate(self.kept) for name, mask in own.items()}
        about = {
            "assembled": [vars(origin) for origin in self.origins],
            "classes": list(self.classes),
            "image_size": list(self.image_size),
        }
        return tensors_to_bytes({**self.state_dict(), **masks}, about)

    @staticmethod
    def from_bytes(content: bytes, origin: Path, build: Callable[[Origin], nn.Module]) -> AssembledClassifier:
        """Return the classifier that `to_bytes` has serialised.

        Args:
            content: The bytes.
            origin: The file, for messages.
            build: Returns the bare network, of any weights, that a module is a part of.

        Raises:
            StaleArtifact: When the file is damaged, or a network is another one.
        """
        tensors, meta = tensors_from_bytes(content, origin)
        if "assembled" not in meta:
            raise StaleArtifact(f"{origin} holds no assembled classifier; give one that compose --assemble left")
        origins, classes = [_origin(each, origin) for each in meta["assembled"]], meta.get("classes", [])
        if not origins or not isinstance(classes, list) or len(classes) != len(origins) or "image_size" not in meta:
            raise StaleArtifact(f"{origin} does not name a module for each of its classes; make it again")
        height, width = meta["image_size"]
        members, masks = [], []
        for index, each in enumerate(origins):
            start = f"kept/{index}/"
            own = {name.removeprefix(start): mask for name, mask in tensors.items() if name.startswith(start)}
            members.append(_blank_member(build(each), own, each, (height, width), origin))
            masks.append(own)
        found = AssembledClassifier(members, origins, masks, classes, (height, width))
        try:
            found.load_state_dict({name: value for name, value in tensors.items() if not name.startswith("kept/")})
        except RuntimeError as error:
            raise StaleArtifact(f"{origin} is for other networks: {' '.join(str(error).split())}") from error
        return found


def _origin(found: dict[str, Any], path: Path) -> Origin:
    """Return where a module is from, as a file says it."""
    kinds = {"model": str, "network": str, "outputs": int, "label": int}
    if found.keys() != kinds.keys() or not all(is_of(found[name], kind) for name, kind in kinds.items()):
        raise StaleArtifact(f"{path} does not say of which networks its modules are; make it again")
    origin = Origin(**found)
    if not 0 <= origin.label < origin.outputs:
        raise StaleArtifact(f"{path} has a module of class {origin.label} of {origin.outputs}; make it again")
    return origin


def assemble(
    models: Sequence[SplitModel], data: Data, *, calibrate: bool = True, batch_size: int = 256, amp: bool = False
) -> AssembledClassifier:
    """Assemble a classifier from modules of several models, without training (Qi et al., TOSEM 2023, section on reuse).

    For each class of `data` the module of highest F1 on `val` is taken, of all that the models have for a class of that
    name; a module answers for its class where its score is above 1/2. The models may be of several architectures, and
    of one data set (for a more accurate classifier) or of several (for a classifier of new classes).

    Scores of modules of different models are on no common scale: a module has never seen the other models' classes.
    So a scale and a bias are fitted for each on `val` (`metrics.logit_scaling`), which the published method does not
    do; they become a part of its head. F1 is that before.

    Args:
        models: The models, and their modules.
        data: The data of the classifier; `classes` says which classes it has, `val` chooses. Nothing else is read.
        calibrate: Whether the scores are brought to a common scale; without it they are as published.
        batch_size: The number of images in a batch.
        amp: Whether modules run in bfloat16.

    Returns:
        The classifier, which shares no parameters with the models. Its `table` has a row for each candidate: `class`,
        `model`, precision, recall and F1 on val and the share of kernels that it keeps, all in percent, and `chosen`.

    Raises:
        UserError: When no model has some class, modules have no heads, or two models have one name.

    Example:
        >>> from deeppatch.modular.gradient_search import GradientSearch
        >>> from deeppatch.modular.splitting import split_into_modules
        >>> images = Images(torch.randint(0, 256, (12, 3, 8, 8), dtype=torch.uint8), torch.arange(12) % 2)
        >>> def split(name, classes):
        ...     network = nn.Sequential(
        ...         nn.Conv2d(3, 6, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(6, 2))
        ...     data = Data(images, images, images, classes)
        ...     modules = split_into_modules(network, data, method=GradientSearch(epochs=1))
        ...     return SplitModel(network, modules, classes, name)
        >>> models = [split("pets", ("cat", "dog")), split("birds", ("owl", "swan"))]
        >>> new = assemble(models, Data(images, images, images, ("dog", "owl")))
        >>> new.classes, [origin.model for origin in new.origins]
        (('dog', 'owl'), ['pets', 'birds'])
        >>> new(torch.rand(3, 3, 8, 8)).shape
        torch.Size([3, 2])
    """
    _check(models, data)
    scores = [
        scores_of(each.modules.composed(each.model, data.example), data.val, batch_size=batch_size, amp=amp)
        for each in models
    ]
    rows: list[dict[str, Any]] = []
    members, origins, kept, columns = [], [], [], []
    for index, wanted in enumerate(data.classes):
        candidates = [(model, label) for model, each in enumerate(models) for label in each.offers(wanted)]
        own = [_row(wanted, index, models[m], label, scores[m][:, label], data.val.labels) for m, label in candidates]
        best = max(range(len(own)), key=lambda row: own[row]["f1"])
        rows += [{**row, "chosen": number == best} for number, row in enumerate(own)]
        model, label = models[candidates[best][0]], candidates[best][1]
        columns.append(scores[candidates[best][0]][:, label])
        members.append(model.modules.member(model.model, data.example, label))
        origins.append(Origin(model.name, model.network, len(model.classes), label))
        kept.append({name: mask[label] for name, mask in model.modules.kept.items()})
    if calibrate:
        _calibrate(members, torch.stack(columns, 1), data.val.labels)
    height, width = data.example.shape[-2:]
    return AssembledClassifier(members, origins, kept, data.classes, (height, width), pd.DataFrame(rows))


def _calibrate(members: Sequence[ClassModule], scores: Tensor, labels: Tensor) -> None:
    """Bring modules with scores (N, classes) in (0, 1) on held-out images to a common scale."""
    scales, biases = scales_and_biases(scores.double().logit(SATURATED), labels)
    for member, scale, bias in zip(members, scales.tolist(), biases.tolist(), strict=True):
        assert isinstance(member.head, Heads)
        member.head = member.head.rescaled(scale, bias)


def _check(models: Sequence[SplitModel], data: Data) -> None:
    names = [each.name for each in models]
    if twice := {name for name in names if names.count(name) > 1}:
        raise UserError(f"two models are called {sorted(twice)[0]}; give each a name of its own")
    if without := [each.name for each in models if not each.modules.has_heads]:
        raise UserError(
            f"the modules of {without[0]} have no heads, so that their scores are on no common scale; split it by the "
            "gradient search with heads"
        )
    if absent := [wanted for wanted in data.classes if not any(each.offers(wanted) for each in models)]:
        known = "; ".join(f"{each.name}: {', '.join(each.classes)}" for each in models)
        raise UserError(f"class {absent[0]}: no model has it ({known}); add a model that does")


def _row(wanted: str, index: int, model: SplitModel, label: int, scores: Tensor, labels: Tensor) -> dict[str, Any]:
    found = class_metrics((scores > HALF).long().cpu(), (labels == index).long().cpu(), 1)
    return {
        "class": wanted,
        "model": model.name,
        **{name: 100 * found[name] for name in ("precision", "recall", "f1")},
        "kernels_kept": 100 * model.modules.shares()[label].item(),
    }


@torch.no_grad()
def scores_of(model: nn.Module, images: Images, *, batch_size: int = 256, amp: bool = False) -> Tensor:
    """Return a model's outputs (N, classes) for clean images, float32, in order, on its device."""
    device = device_of(model)
    view = views.clean(images.to(device), batch_size)
    rows = []
    for pixels, _labels in track(view, len(view), "scores"):
        with runtime.autocast(device, amp):
            rows.append(model(pixels).float())
    return torch.cat(rows)


def _blank_member(
    network: nn.Module, kept: Mapping[str, Tensor], each: Origin, size: tuple[int, int], origin: Path
) -> ClassModule:
    """Return a module of the right shapes, whose weights are still to be loaded."""
    network = network_of(network).cpu().eval()
    layers = layers_to_split(network, torch.zeros(2, 3, *size))
    if {layer.name: layer.kernels for layer in layers} != {name: len(mask) for name, mask in kept.items()}:
        raise StaleArtifact(f"{origin}: the network given for {each.model} is not the one that was split")
    small = extract(network, layers, [kept[layer.name] for layer in layers])
    return ClassModule(Normalize((0.0,) * 3, (1.0,) * 3), small, each.label, Heads(1, each.outputs))
