"""Repair trained image classifiers: rank filters, patch them, and route each sample to the maps that serve it.

The names below are the public API. Each is imported when it is first used, so that `import deeppatch` costs nothing.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

__version__ = "0.2.0"

# where each public name is
_PUBLIC = {
    "Classifier": "zoo.classifier", "load_classifier": "zoo.loading",
    "Data": "data.dataset", "load_data": "data.dataset", "corruption": "data.corruptions",
    "evaluate": "evaluation", "compare": "ledger.comparing",
    "rank_filters": "localization.scoring", "estimate_ratio": "localization.ratio_estimation",
    "train_patch": "patching.training", "fit_switch": "patching.calibration", "finetune": "retrain.finetune",
    "influence": "decomposition.influence", "decompose": "decomposition.head",
    "split_into_modules": "modular.splitting", "join_module": "modular.joining",
    "SplitModel": "modular.assembling", "assemble": "modular.assembling",
    "choose_labels": "hybrid.choosing", "relearn": "hybrid.relearning", "correct_prior": "hybrid.prior_correction",
    "save": "saving", "load": "saving",
}  # fmt: skip

if TYPE_CHECKING:
    from deeppatch.data.corruptions import corruption as corruption
    from deeppatch.data.dataset import Data as Data
    from deeppatch.data.dataset import load_data as load_data
    from deeppatch.decomposition.head import decompose as decompose
    from deeppatch.decomposition.influence import influence as influence
    from deeppatch.evaluation import evaluate as evaluate
    from deeppatch.hybrid.choosing import choose_labels as choose_labels
    from deeppatch.hybrid.prior_correction import correct_prior as correct_prior
    from deeppatch.hybrid.relearning import relearn as relearn
    from deeppatch.ledger.comparing import compare as compare
    from deeppatch.localization.ratio_estimation import estimate_ratio as estimate_ratio
    from deeppatch.localization.scoring import rank_filters as rank_filters
    from deeppatch.modular.assembling import SplitModel as SplitModel
    from deeppatch.modular.assembling import assemble as assemble
    from deeppatch.modular.joining import join_module as join_module
    from deeppatch.modular.splitting import split_into_modules as split_into_modules
    from deeppatch.patching.calibration import fit_switch as fit_switch
    from deeppatch.patching.training import train_patch as train_patch
    from deeppatch.retrain.finetune import finetune as finetune
    from deeppatch.saving import load as load
    from deeppatch.saving import save as save
    from deeppatch.zoo.classifier import Classifier as Classifier
    from deeppatch.zoo.loading import load_classifier as load_classifier

__all__ = sorted([*_PUBLIC, "__version__"])  # noqa: PLE0605


def __getattr__(name: str) -> Any:
    """Import a public name on its first use (PEP 562)."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'deeppatch' has no attribute {name!r}; it has {', '.join(_PUBLIC)}")
    value = getattr(importlib.import_module(f"deeppatch.{_PUBLIC[name]}"), name)
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return list(__all__)
