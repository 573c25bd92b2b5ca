"""Networks by name, as functions of the number of classes, with the state-dict keys of published checkpoints."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial

from torch import nn
from torchvision.models import resnet18, resnet50
from torchvision.models.mobilenetv2 import MobileNetV2
from torchvision.models.shufflenetv2 import ShuffleNetV2
from torchvision.models.vgg import VGG, make_layers

from deeppatch.zoo.incecnn import InceCNN
from deeppatch.zoo.mobilenet import MobileNet
from deeppatch.zoo.rescnn import rescnn, weak_rescnn, weak_rescnn_for_svhn
from deeppatch.zoo.resnet_cifar import CifarResNet
from deeppatch.zoo.shufflenet import ShuffleNet
from deeppatch.zoo.simcnn import SimCNN, weak_simcnn, weak_simcnn_for_svhn

VGG13 = [64, 64, "M", 128, 128, "M", 256, 256, "M", 512, 512, "M", 512, 512, "M"]
# expansion, channels, repeats, stride of each group: the ImageNet network with its first two strides removed
MOBILENET_GROUPS = [
    [1, 16, 1, 1], [6, 24, 2, 1], [6, 32, 3, 2], [6, 64, 4, 2], [6, 96, 3, 1], [6, 160, 3, 2], [6, 320, 1, 1],
]  # fmt: skip


def _vgg13_bn(classes: int) -> nn.Module:
    network = VGG(make_layers(VGG13, batch_norm=True), num_classes=classes)
    network.avgpool = nn.Identity()  # 32x32 images leave one pixel
    network.classifier = nn.Sequential(
        nn.Linear(512, 512),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(512, 512),
        nn.ReLU(True),
        nn.Dropout(),
        nn.Linear(512, classes),
    )
    return network


def _mobilenetv2_x0_5(classes: int) -> nn.Module:
    network = MobileNetV2(classes, width_mult=0.5, inverted_residual_setting=MOBILENET_GROUPS)
    network.features[0][0].stride = (1, 1)
    return network


def _resnet18(classes: int) -> nn.Module:
    network = _resnet18_imagenet_stem(classes)
    network.conv1 = nn.Conv2d(3, 64, 3, 1, 1, bias=False)
    nn.init.kaiming_normal_(network.conv1.weight, mode="fan_out", nonlinearity="relu")
    network.maxpool = nn.Identity()
    return network


def _resnet18_imagenet_stem(classes: int) -> nn.Module:
    return resnet18(num_classes=classes)  # HybridRepair's: the stem leaves 8x8 of 32x32 pixels


def _resnet50(classes: int) -> nn.Module:
    return resnet50(num_classes=classes)  # torchvision's own, for images of 224 pixels


def _shufflenetv2_x1_0(classes: int) -> nn.Module:
    network = ShuffleNetV2([4, 8, 4], [24, 116, 232, 464, 1024], classes)
    network.conv1[0].stride = (1, 1)
    network.maxpool = nn.Identity()
    return network


ARCHITECTURES: dict[str, Callable[[int], nn.Module]] = {
    "resnet8": partial(CifarResNet, 1),
    "resnet20": partial(CifarResNet, 3),
    "resnet32": partial(CifarResNet, 5),
    "resnet18": _resnet18,
    "resnet18_imagenet_stem": _resnet18_imagenet_stem,
    "resnet50": _resnet50,
    "resnet20a": partial(CifarResNet, 3, option="A"),
    "resnet32a": partial(CifarResNet, 5, option="A"),
    "resnet44a": partial(CifarResNet, 7, option="A"),
    "resnet56a": partial(CifarResNet, 9, option="A"),
    "resnet110a": partial(CifarResNet, 18, option="A"),
    "vgg13_bn": _vgg13_bn,
    "mobilenetv2_x0_5": _mobilenetv2_x0_5,
    "shufflenetv2_x1_0": _shufflenetv2_x1_0,
    "mobilenet": MobileNet,
    "shufflenet_g2": ShuffleNet,
    "simcnn": SimCNN,
    "simcnn_x0_25": partial(SimCNN, width=0.25),
    "simcnn_x0_125": partial(SimCNN, width=0.125),
    "simcnn_bn": partial(SimCNN, hidden=4096, norm=True),
    "simcnn_poorfit": partial(SimCNN, dropout=0),
    "simcnn_weak": weak_simcnn,
    "simcnn_svhn_weak": weak_simcnn_for_svhn,
    "rescnn": rescnn,
    "rescnn_x0_25": partial(rescnn, width=0.25),
    "rescnn_bn": partial(rescnn, dropout=0.5, norm=True),
    "rescnn_poorfit": partial(rescnn, dropout=0),
    "rescnn_weak": weak_rescnn,
    "rescnn_svhn_weak": weak_rescnn_for_svhn,
    "incecnn": InceCNN,
}

# the width and height in pixels that a network was made for, where it is not 32
IMAGE_SIZES = {"resnet50": 224}
