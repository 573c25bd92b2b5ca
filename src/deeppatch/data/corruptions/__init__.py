"""Degradations of whole batches: the published blur, 19 common corruptions, spatial ones, and one's own."""

from deeppatch.data.corruptions.callables import CallableCorruption, check_result
from deeppatch.data.corruptions.gaussion import SIGMAS, GaussianBlur, kernel_size
from deeppatch.data.corruptions.kinds import CommonCorruption, degrade
from deeppatch.data.corruptions.named import corruption, create, identity, read_files
from deeppatch.data.corruptions.own import CleanImages, UnpairedCorruption, own_folder
from deeppatch.data.corruptions.paired import PairedCorruption, paired_folder, released, released_files
from deeppatch.data.corruptions.protocol import (
    Corruption,
    Degrade,
    Several,
    depends_on_batch,
    families,
    is_for_test_only,
    is_paired,
    looks_up,
    own_images,
)
from deeppatch.data.corruptions.spatial import Spatial

__all__ = [
    "SIGMAS", "CallableCorruption", "CleanImages", "CommonCorruption", "Corruption", "Degrade", "GaussianBlur",
    "PairedCorruption", "Several", "Spatial", "UnpairedCorruption", "check_result", "corruption", "create", "degrade",
    "depends_on_batch", "families", "identity", "is_for_test_only", "is_paired", "kernel_size", "looks_up",
    "own_folder", "own_images", "paired_folder", "read_files", "released", "released_files",
]  # fmt: skip
