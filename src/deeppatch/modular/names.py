"""Names that the command line offers, where importing them costs nothing; a test holds each equal to its registry."""

from __future__ import annotations

METHODS = ("grad", "ga")
IMPORTANCES = ("pooled", "unpooled", "random")
STARTS = {"grad": ("importance", "selective", "ones", "zeros", "random"), "ga": ("importance", "random")}
MODULARITY = (0.3, 1.0, 1.0)  # weights of cohesion, coupling and compactness in training for modularity
TUNING_LR = 0.005  # of the training of kernels through their modules
GRADIENT_PRESETS = ("auto", "published")
PRESETS = (
    "auto", "simcnn-cifar10", "simcnn-svhn", "simcnn-svhn_5", "rescnn-cifar10", "rescnn-svhn", "rescnn-svhn_5"
)  # fmt: skip
JOINS = ("min_max", "percentile", "outlier", "norm", "calibrate", "direct")
FITS = ("simple", "overfitted", "underfitted")
