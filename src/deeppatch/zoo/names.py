"""The names of the zoo's networks; importing them does not import torch."""

from __future__ import annotations

ARCHITECTURE_NAMES = (
    "resnet8", "resnet20", "resnet32", "resnet18", "resnet18_imagenet_stem", "resnet50", "resnet20a", "resnet32a",
    "vgg13_bn", "mobilenetv2_x0_5", "shufflenetv2_x1_0", "mobilenet", "shufflenet_g2", "simcnn", "simcnn_x0_25",
    "simcnn_x0_125", "simcnn_poorfit", "simcnn_weak", "simcnn_svhn_weak", "rescnn", "rescnn_x0_25", "rescnn_poorfit",
    "rescnn_weak", "rescnn_svhn_weak",
)  # fmt: skip
