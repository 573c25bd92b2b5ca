"""Compare a model with its corrections: always applied, switched by a router, and switched by a perfect router."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from deeppatch import metrics
from deeppatch.data import corruptions, views
from deeppatch.data.dataset import Data
from deeppatch.evaluation import CorrectPredictions, correct_predictions, oracle_router
from deeppatch.graph.hooks import eval_mode
from deeppatch.metrics import Interval
from deeppatch.patching.alarms import alarm_metrics
from deeppatch.patching.calibration import Experts, classifiers
from deeppatch.patching.patch_file import Patch
from deeppatch.patching.routing import Routing, route_by_level
from deeppatch.patching.switch import Switch
from deeppatch.zoo.classifier import device_of

PRETRAINED = "pretrained"
FINETUNED = "finetuned"
ALWAYS = "patched always on"
SWITCHED = "switched"
ORACLE = "oracle router"


@dataclass(frozen=True)
class Comparison:
    """Which test images each network classifies correctly, and how the switched model routes them.

    Args:
        level_names: The names of the levels of the corruption, without clean.
        correct: The correct predictions by name of the network: `pretrained`, `finetuned` if there is one,
            `patched always on` (or the names of the networks, where others than a single patch are switched),
            `switched`, and `oracle router`: the original network for clean images, and for degraded ones the other
            that is best at this level.
        routing: The scores and decisions of the switched model's router.
        experts: The names of the networks between which is switched, the original one first.
    """

    level_names: tuple[str, ...]
    correct: dict[str, CorrectPredictions]
    routing: Routing
    experts: tuple[str, ...] = ("original", "patched")

    @property
    def images(self) -> int:
        """The number of test images."""
        return len(self.routing.scores[0])

    def accuracies(self, mean: str = "mean") -> dict[str, dict[str, float]]:
        """Return the accuracies of each network, in percent.

        Keys are clean, each level, `mean` for the mean over the levels, append for the mean with clean, and mixed.
        """
        return {name: each.accuracies(self.level_names, mean) for name, each in self.correct.items()}

    def changes(self, mean: str = "mean") -> dict[str, dict[str, dict[str, float]]]:
        """Return the `repair` and `break` rates of each other network against the pretrained one, in percent.

        Both have the keys of `accuracies`.
        """
        before = self.correct[PRETRAINED]
        others = {name: each for name, each in self.correct.items() if name != PRETRAINED}
        return {name: each.repair_and_break_rates(before, self.level_names, mean) for name, each in others.items()}

    def differences(self, mean: str = "mean") -> dict[str, dict[str, Interval]]:
        """Return the differences in accuracy of pairs of networks, in percentage points, with 95 % intervals.

        The pairs are `finetuned against pretrained`, `switched against pretrained` and `switched against finetuned`;
        those of `finetuned` only if there is one. Each has the keys clean, each level, `mean` for the mean over the
        levels, and mixed. Intervals are those of `metrics.paired_difference`, in which an image counts once.
        """
        pairs = [(FINETUNED, PRETRAINED), (SWITCHED, PRETRAINED), (SWITCHED, FINETUNED)]
        known = [pair for pair in pairs if set(pair) <= self.correct.keys()]
        return {f"{after} against {before}": self._differences(after, before, mean) for after, before in known}

    def _differences(self, after: str, before: str, mean: str) -> dict[str, Interval]:
        one, two = self.correct[after], self.correct[before]
        tables: dict[str, tuple[metrics.Rows, metrics.Rows]] = {
            name: (one.by_level[row], two.by_level[row])
            for row, name in enumerate(metrics.view_names(self.level_names))
        }
        tables |= {mean: (one.by_level[1:], two.by_level[1:]), "mixed": (one.in_stream, two.in_stream)}
        return {name: metrics.paired_difference(*pair).scaled(100) for name, pair in tables.items()}

    def router_metrics(self, mean: str = "mean") -> dict[str, Any]:
        """Return the measures of the router's decisions; see `metrics.router_metrics`."""
        return metrics.router_metrics(self.routing.scores, self.routing.switched, self.level_names, mean)

    def alarm_metrics(self, mean: str = "mean") -> dict[str, Any]:
        """Return the measures of the alarms for samples that resemble nothing; see `alarms.alarm_metrics`."""
        assert self.routing.alarm is not None
        return alarm_metrics(self.routing.alarm, self.level_names, mean)

    def answered_percent(self) -> dict[str, dict[str, float]]:
        """Return the share of samples that each network answered on each view, in percent, by name of the network."""
        assert self.routing.expert is not None
        views_of_table = metrics.view_names(self.level_names)
        return {
            name: {
                view: 100 * (row == number).double().mean().item()
                for view, row in zip(views_of_table, self.routing.expert, strict=True)
            }
            for number, name in enumerate(self.experts)
        }


def compare_networks(
    model: nn.Module,
    patch: Experts,
    switched: Switch,
    data: Data,
    corruption: Any,
    *,
    finetuned: nn.Module | None = None,
    batch_size: int = 256,
    amp: bool = False,
    seed: int = 2021,
) -> Comparison:
    """Measure a model on test, clean and degraded, as it is and with its patch in each way of use.

    Args:
        model: The classifier that the patch was trained on; it is not changed.
        patch: The patch that `train_patch` returned, or what else `fit_switch` was given.
        switched: The switched model that `fit_switch` returned for both, on the same device.
        data: The data; the part `test` is measured, and two images of `val` are run through the network once.
        corruption: What `deeppatch.corruption` takes or returns.
        finetuned: A fine-tuned classifier to compare with, on the same device.
        batch_size: The number of images in a batch.
        amp: Whether networks run in bfloat16.
        seed: The seed of the mixed stream, in which each image is degraded with probability 1/2.

    Returns:
        The correct predictions of each network; their accuracies and changes are methods of the result.

    Raises:
        StaleArtifact: When the patch was trained on another model.

    >>> import torch
    >>> from deeppatch.patching.calibration import fit_switch
    >>> from deeppatch.patching.training import train_patch
    >>> model = nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 2))
    >>> pixels, labels = torch.rand(40, 3, 12, 16), torch.arange(40) % 2
    >>> data = Data.of((pixels, labels), (pixels, labels))
    >>> patch = train_patch(model, data, "gaussian-blur", {"0": [1, 2]}, epochs=1)
    >>> switched = fit_switch(model, patch, data, "gaussian-blur")
    >>> found = compare_networks(model, patch, switched, data, "gaussian-blur")
    >>> list(found.accuracies())
    ['pretrained', 'patched always on', 'switched', 'oracle router']
    >>> sorted(found.changes()["switched"])
    ['break', 'repair']
    """
    degrade = corruptions.corruption(corruption, seed=seed)
    device = device_of(model)
    test = data.test.to(device)
    others = classifiers(model, patch, data.example.to(device))
    others = {ALWAYS: others["patched"]} if isinstance(patch, Patch) else others
    networks = {PRETRAINED: model, FINETUNED: finetuned, **others}
    correct = {
        name: correct_predictions(network, test, degrade, batch_size=batch_size, amp=amp, seed=seed, label=name)
        for name, network in networks.items()
        if network is not None
    }
    with eval_mode(switched):
        correct[SWITCHED], routing = route_by_level(switched, test, degrade, batch_size=batch_size, amp=amp, seed=seed)
    stream = views.mixed_stream(test, degrade, batch_size, seed)
    best = best_by_level([correct[name] for name in others], stream)
    correct[ORACLE] = oracle_router(correct[PRETRAINED], best, stream)
    return Comparison(tuple(degrade.level_names), correct, routing, switched.names)


def best_by_level(networks: Sequence[CorrectPredictions], stream: views.View) -> CorrectPredictions:
    """Return the correct predictions of that network which has most of them, at each level; ties go to the first.

    `stream` is the mixed stream of the networks.
    """
    tables = list(zip(*(network.by_level for network in networks), strict=True))
    best = [max(range(len(rows)), key=lambda number: int(rows[number].sum())) for rows in tables]
    by_level = metrics.rows_of([rows[number] for rows, number in zip(tables, best, strict=True)])
    chosen = torch.tensor(best, device=stream.levels.device)[stream.levels]
    in_stream = torch.stack([network.in_stream for network in networks])
    return CorrectPredictions(by_level, in_stream.gather(0, chosen.unsqueeze(0))[0])
