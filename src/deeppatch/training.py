"""The training loop that all methods share, with exact resumption, and the batches that it takes; single steps."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.optim.lr_scheduler import LRScheduler

from deeppatch import runtime
from deeppatch.artifacts import Checkpoint, Stateful, load_states, states_of
from deeppatch.data import views
from deeppatch.data.corruptions import Corruption
from deeppatch.data.epochs import clean_epochs as clean_epochs
from deeppatch.data.epochs import degraded_epochs as degraded_epochs
from deeppatch.data.images import Images
from deeppatch.distributed import ranks
from deeppatch.distributed.data_parallel import Batch, Stream, gather_batches, own_shards, replicated
from deeppatch.divergence import FirstLoss, Validation, check_accuracy, check_loss
from deeppatch.divergence import Loss as Loss
from deeppatch.metrics import accuracy
from deeppatch.optimizers import FreshMoments as FreshMoments
from deeppatch.optimizers import adam as adam
from deeppatch.optimizers import adam_with_initial_rate as adam_with_initial_rate
from deeppatch.optimizers import constant_sgd as constant_sgd
from deeppatch.optimizers import sgd as sgd
from deeppatch.progress import info, measured, track


def cross_entropy(model: nn.Module, batch: Batch) -> Tensor:
    """Return the mean cross entropy of a batch (pixels (N, 3, H, W), labels (N,))."""
    pixels, labels = batch
    return F.cross_entropy(model(pixels), labels)


def train_epoch(
    model: nn.Module,
    batches: Stream,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    *,
    amp: bool = False,
    label: str = "training",
) -> float:
    """Train for one epoch over `batches` and return the mean loss per batch; the schedule steps after each batch.

    With several ranks each computes its shard of every batch, and `model` is what `data_parallel.replicated` yields.
    The loss must be a mean over images, because shards are weighted by their number of images. UserError where a batch
    of one image has too few values for a batch normalisation.
    """
    device = next(model.parameters()).device
    total = torch.zeros((), device=device)
    for batch, share in track(own_shards(batches), len(batches), label):
        with runtime.autocast(device, amp), runtime.explained_single_images():
            value = loss(model, batch)
        optimizer.zero_grad(set_to_none=True)
        weight = share * runtime.ranks()  # because gradients are averaged over ranks
        (value if weight == 1 else value * weight).backward()
        optimizer.step()
        schedule.step()
        if share:
            total += value.detach() * share
    return (ranks.all_reduce_sum(total) / max(1, len(batches))).item()


@torch.inference_mode()
def predict(model: nn.Module, batches: Stream, *, amp: bool = False, label: str = "evaluating") -> Tensor:
    """Return the predicted classes (M,) of all batches, on the model's device, in eval mode; ranks share the work."""
    device = next(model.parameters()).device
    model.eval()
    predictions = []
    for (pixels, _labels), _share in track(own_shards(batches), len(batches), label):
        with runtime.autocast(device, amp):
            predictions.append(model(pixels).argmax(1))
    return gather_batches(predictions)


@torch.inference_mode()
def mean_loss(model: nn.Module, batches: Stream, loss: Loss = cross_entropy, *, amp: bool = False) -> float:
    """Return the mean loss per image over all batches, in eval mode."""
    device = next(model.parameters()).device
    model.eval()
    total, count = 0.0, 0
    for batch in batches:
        with runtime.autocast(device, amp):
            total += loss(model, batch).item() * len(batch[1])
        count += len(batch[1])
    return total / max(1, count)


@dataclass(frozen=True)
class SGDSettings:
    """The initial learning rate, momentum (plain or Nesterov's) and L2 penalty of SGD with a cosine schedule."""

    lr: float = 0.01
    momentum: float = 0.9
    weight_decay: float = 5e-4
    nesterov: bool = False

    def optimizer(
        self, parameters: Iterable[nn.Parameter], epochs: Sequence[Stream]
    ) -> tuple[torch.optim.Optimizer, LRScheduler]:
        """Return SGD for the parameters, and the schedule that ends with the last batch of `epochs`."""
        return sgd(parameters, **asdict(self), steps=sum(len(batches) for batches in epochs))


def accuracy_on(images: Images, *, batch_size: int = 256, amp: bool = False) -> Validation:
    """Return a function that measures a model's accuracy, in [0, 1], on clean images that are on its device."""
    view = views.clean(images, batch_size)
    return Validation(lambda model: accuracy(predict(model, view, amp=amp), view.labels), view.labels)


@dataclass
class History:
    """The mean training loss and the validation accuracy in [0, 1] of each epoch.

    `watched` has what the `watch` function of `fit` returned, and is empty without one. Epochs before `eligible`, from
    0 on, are not the best one, but where there are no others.
    """

    loss: list[float] = field(default_factory=list)
    accuracy: list[float] = field(default_factory=list)
    watched: list[Any] = field(default_factory=list)
    eligible: int = 0

    def latest(self) -> dict[str, float]:
        """Return the loss, the validation accuracy in percent and other numbers of the latest epoch."""
        watched = self.watched[-1] if self.watched and isinstance(self.watched[-1], dict) else {}
        numbers = {name: float(value) for name, value in watched.items() if isinstance(value, (int, float))}
        return {"loss": self.loss[-1], "val_accuracy_percent": 100 * self.accuracy[-1], **numbers}

    @property
    def best(self) -> int:
        """Return the earliest epoch of highest validation accuracy."""
        start = min(self.eligible, len(self.accuracy) - 1)
        return start + self.accuracy[start:].index(max(self.accuracy[start:]))


@contextmanager
def seeded(seed: int | None) -> Iterator[None]:
    """Seed torch within the block, and restore all global random states afterwards; with None, do neither."""
    if seed is None:
        yield
        return
    before = runtime.random_states()
    torch.manual_seed(seed)
    try:
        yield
    finally:
        runtime.restore_random_states(before)


def accuracy_over_levels(
    images: Images, corruption: Corruption, *, batch_size: int = 256, amp: bool = False
) -> Validation:
    """Return a function that measures a model's accuracy, in [0, 1], on all images, clean and at each level."""
    view = views.append(images, corruption, batch_size)
    return Validation(
        lambda model: accuracy(predict(model, view, amp=amp, label="validating"), view.labels), view.labels
    )


def take_step(optimizer: torch.optim.Optimizer, loss: Tensor | Sequence[Tensor | None]) -> None:
    """Take one step of an optimizer, for methods that adapt to the batches of a stream instead of running epochs.

    `loss` is a scalar whose gradients are computed, or the gradients themselves, one for each parameter in the order of
    the optimizer's groups. Parameters that the loss does not read stay as they are, and no gradient is left behind.
    """
    parameters = [each for group in optimizer.param_groups for each in group["params"]]
    gradients = torch.autograd.grad(loss, parameters, allow_unused=True) if isinstance(loss, Tensor) else loss
    for parameter, gradient in zip(parameters, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)


def last_epoch(history: History) -> int:
    """Return the last epoch; for `fit(choose=...)`."""
    return len(history.loss) - 1


def fit(
    model: nn.Module,
    epochs: Iterable[Stream],
    validate: Callable[[nn.Module], float],
    *,
    loss: Loss,
    optimizer: torch.optim.Optimizer,
    schedule: LRScheduler,
    checkpoint: Checkpoint | None = None,
    enter_training: Callable[[nn.Module], object] = nn.Module.train,
    watch: Callable[[nn.Module], Any] | None = None,
    choose: Callable[[History], int] = lambda history: history.best,
    after_epoch: Callable[[nn.Module, History], object] | None = None,
    carried: Stateful | None = None,
    eligible: int = 0,
    amp: bool = False,
    label: str = "training",
) -> History:
    """Train a model in place, and leave it in the state of its best epoch, in eval mode.

    A resumed run has the same result, to the byte, as a run without interruption. UserError when the training has
    become useless, as `divergence` defines it. `amp` runs forward passes in bfloat16, and `label` names the training in
    messages.

    Args:
        epochs: A stream of batches for each epoch. Streams of epochs that an interrupted run has finished are not read,
            so one that selects its data by the model must do so when it is read, independently of earlier epochs.
        validate: Returns the validation accuracy in [0, 1] after each epoch; nan where there is none. With a
            `Validation`, a model that falls from above chance to chance is an error.
        loss: Returns the loss of a model on a batch.
        schedule: The schedule of the optimizer's learning rate, which steps after each batch.
        checkpoint: Where the state after each epoch is saved, and resumed from.
        enter_training: Sets the training mode before each epoch.
        watch: Returns further values after each epoch, as JSON values; they become `History.watched`.
        choose: Returns the best epoch so far (default: the earliest one of highest validation accuracy).
        after_epoch: Is called with model and history after each epoch, before the checkpoint is saved.
        carried: What else the checkpoint saves and restores: what a stream of batches keeps of earlier epochs.
        eligible: The first epoch, from 0 on, that may be the best one.
    """
    history = History(eligible=eligible)
    given_state: dict[str, Tensor] = copy.deepcopy(model.state_dict())
    best_state = given_state
    saved = ranks.broadcast_from_rank0(checkpoint.load) if checkpoint else None
    others: dict[str, Stateful] = {"optimizer": optimizer, "schedule": schedule}
    others |= {"carried": carried} if carried else {}
    if saved and checkpoint:
        with checkpoint.undamaged():
            history = History(**saved["history"])
            model.load_state_dict(saved["model"])
            best_state = {key: value.to(best_state[key].device) for key, value in saved["best"].items()}
            load_states(others, saved)
        info(f"{label}: resumed after epoch {len(history.loss)}")
    first = FirstLoss(saved.get("first_loss") if saved else None)
    with torch.enable_grad(), replicated(model) as replica:
        for epoch, batches in enumerate(epochs):
            if epoch < len(history.loss):
                # drawing the skipped epochs may have changed the random states
                if saved and checkpoint and epoch == len(history.loss) - 1:
                    with checkpoint.undamaged():
                        runtime.restore_random_states(saved["random"])
                continue
            enter_training(model)
            name = f"{label}, epoch {epoch + 1}"
            noted = first.noting(loss)
            history.loss.append(train_epoch(replica, batches, noted, optimizer, schedule, amp=amp, label=name))
            check_loss(name, model, history.loss[-1], first)
            history.accuracy.append(validate(model))
            on_val = f", validation accuracy {100 * history.accuracy[-1]:.2f} %"
            info(f"{name}: loss {history.loss[-1]:.4f}{'' if math.isnan(history.accuracy[-1]) else on_val}")
            if watch:
                history.watched.append(watch(model))
            measured(label, epoch + 1, **history.latest())
            if choose(history) == epoch:
                best_state = copy.deepcopy(model.state_dict())
            if after_epoch:
                after_epoch(model, history)
            if checkpoint:
                checkpoint.save(
                    {
                        "history": asdict(history),
                        "model": model.state_dict(),
                        "best": best_state,
                        **states_of(others),
                        "first_loss": first.value,
                        "random": runtime.random_states(),
                    }
                )
    if history.accuracy:
        check_accuracy(label, validate, model, history.accuracy[choose(history)], given_state)
    model.load_state_dict(best_state)
    model.eval()
    return history
