"""The published weights of each network: URL, accuracy, and normalisation."""

from __future__ import annotations

from dataclasses import dataclass

CIFAR_MODELS = "https://github.com/chenyaofo/pytorch-cifar-models/releases/download"
TORCHVISION = "https://download.pytorch.org/models"
OPTION_A = "https://github.com/akamaster/pytorch_resnet_cifar10/raw/master/pretrained_models"

Triple = tuple[float, float, float]
CIFAR10_STATS: tuple[Triple, Triple] = ((0.4914, 0.4822, 0.4465), (0.2023, 0.1994, 0.2010))
CIFAR100_STATS: tuple[Triple, Triple] = ((0.5070, 0.4865, 0.4409), (0.2673, 0.2564, 0.2761))
CIFAR10_PIXEL_STATS: tuple[Triple, Triple] = ((0.491, 0.482, 0.447), (0.247, 0.243, 0.261))
IMAGENET_STATS: tuple[Triple, Triple] = ((0.485, 0.456, 0.406), (0.229, 0.224, 0.225))

# the number of classes of the data sets that networks are published or trained for
CLASSES = {
    "digits": 10, "cifar10": 10, "cifar100": 100, "svhn": 10, "gtsrb": 43, "svhn_5": 5, "digits_5": 5, "imagenet": 1000,
}  # fmt: skip

# the normalisation of HybridRepair's models, by data set
PROTOCOL_STATS: dict[str, tuple[Triple, Triple]] = {
    "cifar10": ((125.3 / 255, 123.0 / 255, 113.9 / 255), (63.0 / 255, 62.1 / 255, 66.7 / 255)),
    "svhn": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "gtsrb": ((0.3337, 0.3064, 0.3171), (0.2672, 0.2564, 0.2629)),
}

# normalisation constants that are common for published checkpoints, for the check of the normalisation
COMMON_STATS: dict[str, tuple[Triple, Triple]] = {
    "CIFAR-10, std of image means": CIFAR10_STATS,
    "CIFAR-10, std of pixels": CIFAR10_PIXEL_STATS,
    "CIFAR-100": CIFAR100_STATS,
    "ImageNet": IMAGENET_STATS,
    "half": ((0.5, 0.5, 0.5), (0.5, 0.5, 0.5)),
    "none": ((0.0, 0.0, 0.0), (1.0, 1.0, 1.0)),
}


@dataclass(frozen=True)
class Entry:
    """Published weights: `url` ends in -HASH.EXT (start of the file's SHA-256), `top1` is test accuracy in percent.

    `repository` is that of the weights on the Hugging Face Hub; it comes before `url`.
    """

    url: str
    top1: float | None
    mean: Triple
    std: Triple
    repository: str = ""


ENTRIES: dict[tuple[str, str], Entry] = {
    ("cifar10", "resnet20"): Entry(f"{CIFAR_MODELS}/resnet/cifar10_resnet20-4118986f.pt", 92.60, *CIFAR10_STATS),
    ("cifar10", "resnet32"): Entry(f"{CIFAR_MODELS}/resnet/cifar10_resnet32-ef93fc4d.pt", 93.53, *CIFAR10_STATS),
    ("cifar10", "vgg13_bn"): Entry(f"{CIFAR_MODELS}/vgg/cifar10_vgg13_bn-c01e4a43.pt", 94.00, *CIFAR10_STATS),
    ("cifar10", "mobilenetv2_x0_5"): Entry(
        f"{CIFAR_MODELS}/mobilenetv2/cifar10_mobilenetv2_x0_5-ca14ced9.pt", 92.88, *CIFAR10_STATS
    ),
    ("cifar10", "shufflenetv2_x1_0"): Entry(
        f"{CIFAR_MODELS}/shufflenetv2/cifar10_shufflenetv2_x1_0-98807be3.pt", 92.98, *CIFAR10_STATS
    ),
    ("cifar10", "resnet20a"): Entry(f"{OPTION_A}/resnet20-12fca82f.th", 91.73, *CIFAR10_PIXEL_STATS),
    ("cifar10", "resnet32a"): Entry(f"{OPTION_A}/resnet32-d509ac18.th", 92.63, *IMAGENET_STATS),
    ("cifar10", "resnet44a"): Entry(f"{OPTION_A}/resnet44-014dd654.th", 93.10, *IMAGENET_STATS),
    ("cifar10", "resnet56a"): Entry(f"{OPTION_A}/resnet56-4bfd9763.th", 93.39, *IMAGENET_STATS),
    ("cifar10", "resnet110a"): Entry(f"{OPTION_A}/resnet110-1d1ed7c2.th", 93.68, *IMAGENET_STATS),
    ("imagenet", "resnet50"): Entry(f"{TORCHVISION}/resnet50-0676ba61.pth", 76.13, *IMAGENET_STATS),
    ("cifar100", "resnet20"): Entry(f"{CIFAR_MODELS}/resnet/cifar100_resnet20-23dac2f1.pt", 68.83, *CIFAR100_STATS),
    ("cifar100", "resnet32"): Entry(f"{CIFAR_MODELS}/resnet/cifar100_resnet32-84213ce6.pt", 70.16, *CIFAR100_STATS),
    ("cifar100", "vgg13_bn"): Entry(f"{CIFAR_MODELS}/vgg/cifar100_vgg13_bn-5ebe5778.pt", 74.63, *CIFAR100_STATS),
    ("cifar100", "mobilenetv2_x0_5"): Entry(
        f"{CIFAR_MODELS}/mobilenetv2/cifar100_mobilenetv2_x0_5-9f915757.pt", 70.88, *CIFAR100_STATS
    ),
    ("cifar100", "shufflenetv2_x1_0"): Entry(
        f"{CIFAR_MODELS}/shufflenetv2/cifar100_shufflenetv2_x1_0-9ae22beb.pt", 72.39, *CIFAR100_STATS
    ),
}
