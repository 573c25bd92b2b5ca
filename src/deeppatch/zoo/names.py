"""The names of networks: of the zoo, of timm and torchvision, and functions of one's own; torch is not imported."""

from __future__ import annotations

import re

from deeppatch.errors import UserError, closest

ARCHITECTURE_NAMES = (
    "resnet8", "resnet20", "resnet32", "resnet18", "resnet18_imagenet_stem", "resnet50", "resnet20a", "resnet32a",
    "resnet44a", "resnet56a", "resnet110a", "vgg13_bn", "mobilenetv2_x0_5", "shufflenetv2_x1_0", "mobilenet",
    "shufflenet_g2", "simcnn", "simcnn_x0_25", "simcnn_x0_125", "simcnn_bn", "simcnn_poorfit", "simcnn_weak",
    "simcnn_svhn_weak", "rescnn", "rescnn_x0_25", "rescnn_bn", "rescnn_poorfit", "rescnn_weak", "rescnn_svhn_weak",
    "incecnn",
)  # fmt: skip
# how HybridRepair calls networks; letters of either case are taken for all names of the zoo
ALIASES = {"shufflenetg2": "shufflenet_g2", "resnet18f": "resnet18"}
LIBRARIES = ("timm", "torchvision")
FORMS = "timm:NAME, torchvision:NAME, or package.module:function"
FUNCTION = re.compile(r"[A-Za-z_]\w*(\.[A-Za-z_]\w*)*:[A-Za-z_]\w*(\.[A-Za-z_]\w*)*")


def check_model(name: str) -> str:
    """Return a network's name as the zoo spells it; raise UserError when it has none of the forms that there are.

    >>> check_model("ShuffleNetG2")
    'shufflenet_g2'
    """
    name = _of_zoo(name) or name
    library, colon, detail = name.partition(":")
    if not colon and name not in ARCHITECTURE_NAMES:
        guess = closest(name, ARCHITECTURE_NAMES)
        raise UserError(
            f"there is no network {name} in the zoo{guess}; choose from {', '.join(sorted(ARCHITECTURE_NAMES))}, or "
            f"name another one as {FORMS}"
        )
    if library in LIBRARIES and not re.fullmatch(r"[\w.\-]+", detail):
        raise UserError(f"{name!r} names no network of {library}; write it as {library}:resnet18")
    if colon and library not in LIBRARIES and not FUNCTION.fullmatch(name):
        raise UserError(f"{name!r} is no function; write it as package.module:function, and run where it is importable")
    return name


def _of_zoo(name: str) -> str | None:
    """Return the name of a network of the zoo in whatever letters it is written; None where it is none."""
    small = ALIASES.get(name.lower(), name.lower())
    return small if small in ARCHITECTURE_NAMES else None


def model_slug(name: str) -> str:
    """Return the name of the folder that holds a network's artifacts: `timm:resnet18` is kept under timm-resnet18."""
    return name.replace(":", "-")
