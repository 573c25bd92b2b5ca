"""Find a network by its name: in the zoo, in timm, in torchvision, or a function of one's own."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torchvision
from torch import nn

from deeppatch.errors import UserError, closest
from deeppatch.zoo.architectures import ARCHITECTURES, IMAGE_SIZES
from deeppatch.zoo.classifier import Classifier
from deeppatch.zoo.entries import CLASSES, ENTRIES, Entry, Triple
from deeppatch.zoo.names import check_model

IMAGENET = "imagenet"
IMAGENET_CLASSES = CLASSES[IMAGENET]


@dataclass(frozen=True)
class Architecture:
    """A network that can be built for any number of classes.

    `image_size` is the width and height in pixels that it was made for, None if that is not known; `normalisation` is
    what its library feeds it, None if that is not known; `published` has its published weights by data set.
    """

    name: str
    build: Callable[[int], nn.Module]
    image_size: int | None
    normalisation: tuple[Triple, Triple] | None
    published: Mapping[str, Entry]


def resolve(name: str, image_size: int | None = None) -> Architecture:
    """Return the network of a name.

    Args:
        name: The name of a network of the zoo; `timm:NAME` or `torchvision:NAME`; or `package.module:function`, a
            function of the number of classes that returns an `nn.Module`, imported from the working directory too.
        image_size: The width and height of the images in pixels, for networks that read one size only, such as vision
            transformers (default: the size that they are published for).

    Raises:
        UserError: When there is no such network, its library is not installed, or the function cannot be imported.

    >>> resolve("torchvision:resnet18").image_size
    224
    >>> resolve("resnet32").build(10).fc.out_features
    10
    """
    name = check_model(name)
    library, colon, detail = name.partition(":")
    if not colon:
        return _of_zoo(name)
    return LIBRARIES[library](detail, image_size) if library in LIBRARIES else _own(name)


def _of_zoo(name: str) -> Architecture:
    published = {dataset: entry for (dataset, network), entry in ENTRIES.items() if network == name}
    return Architecture(name, ARCHITECTURES[name], IMAGE_SIZES.get(name, 32), None, published)


def _of_torchvision(name: str, image_size: int | None) -> Architecture:
    known = torchvision.models.list_models(torchvision.models)
    if name not in known:
        raise UserError(f"torchvision has no classifier {name}{closest(name, known)}; list_models() names them all")
    options: dict[str, Any] = {}
    if name in ("googlenet", "inception_v3"):  # whose published weights have further heads
        options = {"init_weights": True, "aux_logits": False}
    if image_size and name.startswith("vit_"):
        options = {"image_size": image_size}

    def build(classes: int) -> nn.Module:
        return _built(name, torchvision.models.get_model, weights=None, num_classes=classes, **options)

    weights: Any = next(iter(torchvision.models.get_model_weights(name)), None)
    if weights is None:
        return Architecture(f"torchvision:{name}", build, None, None, {})
    weights = torchvision.models.get_model_weights(name).DEFAULT
    transform = weights.transforms()
    statistics = (tuple(transform.mean), tuple(transform.std))
    top1 = weights.meta["_metrics"]["ImageNet-1K"]["acc@1"]
    published = {} if options else {IMAGENET: Entry(weights.url, top1, *statistics)}
    size = options.get("image_size", int(transform.crop_size[0]))
    return Architecture(f"torchvision:{name}", build, size, statistics, published)


def _of_timm(name: str, image_size: int | None) -> Architecture:
    try:
        import timm
    except ImportError:
        raise UserError(f"timm:{name} needs timm; install it with: pip install 'deeppatch[models]'") from None
    if not timm.is_model(name):
        guess = closest(name.split(".")[0], timm.list_models())
        raise UserError(f"timm has no network {name}{guess}; timm.list_models() names them all")
    found: Any = timm.get_pretrained_cfg(name)
    config: dict[str, Any] = found.to_dict() if found else {}
    mean, std, size = (config.get(key) for key in ("mean", "std", "input_size"))
    statistics = (tuple(mean), tuple(std)) if mean and std and len(mean) == 3 else None
    options: dict[str, Any] = {"img_size": image_size} if image_size and config.get("fixed_input_size") else {}
    has_weights = config.get("num_classes") == IMAGENET_CLASSES and (config.get("hf_hub_id") or config.get("url"))
    published = {}
    if has_weights and statistics and not options:
        entry = Entry(config.get("url") or "", None, *statistics, repository=config.get("hf_hub_id") or "")
        published = {IMAGENET: entry}

    def build(classes: int) -> nn.Module:
        return _built(name, timm.create_model, pretrained=False, num_classes=classes, **options)

    return Architecture(f"timm:{name}", build, image_size or (size[-1] if size else None), statistics, published)


def _built(name: str, make: Callable[..., nn.Module], **options: Any) -> nn.Module:
    """Return the network that a library makes; UserError where it refuses, as a size that patches do not divide."""
    try:
        return make(name, **options)
    except (AssertionError, ValueError, TypeError, RuntimeError) as error:
        size = options.get("image_size") or options.get("img_size")
        what = f"for images of {size} pixels (--image_size)" if size else f"for {options['num_classes']} classes"
        raise UserError(f"{name} cannot be built {what}: {_text(error)}") from error


def _own(name: str) -> Architecture:
    """Return the network that a function `package.module:function` of the number of classes builds."""
    module, _, path = name.partition(":")
    found = _imported(name, module)
    for part in path.split("."):
        if not hasattr(found, part):
            guess = closest(part, [each for each in dir(found) if not each.startswith("_")])
            raise UserError(f"{name}: {getattr(found, '__name__', module)} has no {part}{guess}")
        found = getattr(found, part)
    if not callable(found):
        raise UserError(f"{name} is {type(found).__name__}, not a function of the number of classes")
    function: Callable[[int], Any] = found

    def build(classes: int) -> nn.Module:
        try:
            network = function(classes)
        except (Exception, SystemExit) as error:
            raise UserError(
                f"{name}: calling it with {classes}, the number of classes, fails: {_text(error)}"
            ) from error
        if not isinstance(network, nn.Module):
            raise UserError(f"{name} returned {type(network).__name__} for {classes} classes; return an nn.Module")
        if isinstance(network, Classifier):
            raise UserError(
                f"{name} returned a deeppatch.Classifier, which would normalise a second time; return the network in "
                "it, and give --mean and --std to pretrain"
            )
        if not any(each.requires_grad for each in network.parameters()):
            network.requires_grad_(True)  # frozen to be used; what is trained is for each stage to say
        return network

    return Architecture(name, build, None, None, {})


def _imported(name: str, module: str) -> Any:
    """Import a module from the working directory, or an installed one."""
    here = str(Path.cwd())
    if here not in sys.path:
        sys.path.append(here)
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        missing = error.name or ""
        if f"{module}.".startswith(f"{missing}."):
            raise UserError(f"{name}: there is no module {missing} in {here} or installed; check the name") from None
        raise UserError(f"{name}: {module} imports {missing}, which is not installed") from error
    except (Exception, SystemExit) as error:
        raise UserError(f"{name}: importing {module} fails: {_text(error)}") from error


def _text(error: BaseException) -> str:
    return f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"


LIBRARIES: dict[str, Callable[[str, int | None], Architecture]] = {"timm": _of_timm, "torchvision": _of_torchvision}
