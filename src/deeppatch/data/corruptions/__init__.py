"""Degradations of whole batches: the published blur, 19 common corruptions, spatial ones, and one's own."""

from deeppatch.data.corruptions.callables import CallableCorruption, check_result
from deeppatch.data.corruptions.gaussion import SIGMAS, GaussianBlur, kernel_size
from deeppatch.data.corruptions.kinds import CommonCorruption, degrade
from deeppatch.data.corruptions.named import corruption, create, identity
from deeppatch.data.corruptions.paired import PairedCorruption, paired_folder, released, released_files
from deeppatch.data.corruptions.protocol import Corruption, Degrade, Several, depends_on_batch, families
from deeppatch.data.corruptions.spatial import Spatial

__all__ = [
    "SIGMAS", "CallableCorruption", "CommonCorruption", "Corruption", "Degrade", "GaussianBlur", "PairedCorruption",
    "Several", "Spatial", "check_result", "corruption", "create", "degrade", "depends_on_batch", "families", "identity",
    "kernel_size", "paired_folder", "released", "released_files",
]  # fmt: skip
