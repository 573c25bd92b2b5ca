from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from deeppatch import training
from deeppatch.artifacts import Checkpoint, state_digest
from deeppatch.data import views
from deeppatch.data.corruptions import GaussianBlur
from deeppatch.errors import StaleArtifact

EPOCHS = 4


class Killed(BaseException):
    """Stands in for kill -9: nothing catches it."""


@dataclass
class Run:
    """One training of a tiny network with dropout; `die_at` kills it while that epoch (from 1) is validated."""

    model: nn.Module
    images: views.Images
    blur: GaussianBlur
    accuracies: tuple[float, ...] = (0.2, 0.6, 0.6, 0.4)
    die_at: int | None = None
    watch: Callable[[nn.Module], Any] | None = None
    choose: Callable[[training.History], int] = lambda history: history.best
    after_epoch: Callable[[nn.Module, training.History], object] | None = None

    def __post_init__(self) -> None:
        self.model = copy.deepcopy(self.model)
        self.model.network.fc = nn.Sequential(nn.Dropout(), self.model.network.fc)
        self.model.to(memory_format=torch.channels_last)
        self.read: list[int] = []
        self.states: list[str] = []

    def stream(self, epoch: int) -> views.Shuffled:
        return views.Shuffled(self.images, 16, 3, epoch, self.blur, augment=True)

    def epochs(self) -> Iterator[views.Shuffled]:
        for epoch in range(EPOCHS):
            self.read.append(epoch)
            yield self.stream(epoch)

    def validate(self, model: nn.Module) -> float:
        self.states.append(state_digest(model.state_dict()))
        epoch = self.done + len(self.states)
        if epoch == self.die_at:
            raise Killed
        return self.accuracies[epoch - 1]

    def fit(self, checkpoint: Checkpoint | None = None) -> training.History:
        saved = checkpoint.load() if checkpoint else None
        torch.manual_seed(99 if saved else 11)  # a run that resumes starts from other random states
        self.done = len(saved["history"]["loss"]) if saved else 0
        optimizer, schedule = training.sgd(
            self.model.parameters(), lr=0.1, momentum=0.9, weight_decay=5e-4, steps=EPOCHS * len(self.stream(0))
        )
        return training.fit(
            self.model, self.epochs(), self.validate, loss=training.cross_entropy, optimizer=optimizer,
            schedule=schedule, checkpoint=checkpoint, watch=self.watch, choose=self.choose,
            after_epoch=self.after_epoch,
        )  # fmt: skip


@pytest.fixture
def spread(tiny, images):
    """The tiny network with its logits centred over the images, so that it predicts several classes."""
    with torch.no_grad():
        tiny.network.fc.bias -= tiny(views.to_float(images.pixels)).mean(0)
    return tiny


@pytest.fixture
def run(tiny, images, blur):
    """Make a run; keyword arguments are those of Run."""
    return lambda **changes: Run(tiny, images, blur, **changes)


def checkpoint(path, **settings) -> Checkpoint:
    return Checkpoint(path / "checkpoint.pt", {"lr": 0.1, **settings}, resume=True)


def test_fit_keeps_the_earliest_of_the_best_epochs(run):
    whole = run()
    history = whole.fit()
    assert history.accuracy == [0.2, 0.6, 0.6, 0.4]
    assert history.best == 1
    assert len(set(whole.states)) == EPOCHS
    assert state_digest(whole.model.state_dict()) == whole.states[1]
    assert not any(module.training for module in whole.model.modules())


@pytest.mark.parametrize("best", range(EPOCHS))
def test_fit_keeps_the_best_epoch_wherever_it_is(run, best):
    whole = run(accuracies=tuple(0.9 if epoch == best else 0.1 for epoch in range(EPOCHS)))
    assert whole.fit().best == best
    assert state_digest(whole.model.state_dict()) == whole.states[best]


@pytest.mark.parametrize("killed", [None, *range(1, EPOCHS + 1)])
def test_the_last_epoch_is_kept_where_that_is_asked_for_and_after_an_interruption(run, tmp_path, killed):
    whole, resumed = run(choose=training.last_epoch), run(choose=training.last_epoch)
    history = whole.fit()
    if killed:
        with pytest.raises(Killed):
            run(choose=training.last_epoch, die_at=killed).fit(checkpoint(tmp_path))
        assert resumed.fit(checkpoint(tmp_path)) == history
        whole = resumed
    assert history.best == 1
    assert state_digest(whole.model.state_dict()) == whole.states[-1]
    assert not any(module.training for module in whole.model.modules())


def test_the_loss_falls_and_is_the_mean_of_the_batches(run, images):
    whole = run(accuracies=(0.1, 0.2, 0.3, 0.4))
    losses = []

    def recorded(model, batch):
        losses.append(training.cross_entropy(model, batch))
        return losses[-1]

    optimizer, schedule = training.sgd(whole.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0, steps=60)
    history = training.fit(
        whole.model, (whole.stream(0) for _ in range(15)), lambda _m: 0.5, loss=recorded,
        optimizer=optimizer, schedule=schedule,
    )  # fmt: skip
    assert history.loss[-1] < history.loss[0]
    assert len(losses) == 15 * 4
    assert history.loss[0] == pytest.approx(torch.stack(losses[:4]).mean().item())


@pytest.mark.parametrize("milestones", [[], [2, 5], [0, 7]])
def test_with_drops_the_rate_is_constant_but_for_falls_to_a_tenth(milestones):
    weight = nn.Parameter(torch.zeros(1))
    optimizer, schedule = training.sgd([weight], lr=0.4, momentum=0, weight_decay=0, steps=8, milestones=milestones)
    rates = []
    for _batch in range(8):
        rates.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        schedule.step()
    assert rates == pytest.approx([0.4 * 0.1 ** sum(batch >= drop for drop in milestones) for batch in range(8)])


def test_what_follows_an_epoch_sees_its_state_and_history_before_it_is_saved(run, tmp_path):
    whole, seen = run(), []

    def note(model, history):
        saved = checkpoint(tmp_path).load()
        seen.append(
            (state_digest(model.state_dict()), len(history.accuracy), len(saved["history"]["loss"]) if saved else 0)
        )

    whole.after_epoch = note
    whole.fit(checkpoint(tmp_path))
    assert seen == [(state, epoch + 1, epoch) for epoch, state in enumerate(whole.states)]


@pytest.mark.parametrize("killed", range(1, EPOCHS + 1))
@pytest.mark.parametrize("best_first", [True, False])
def test_a_run_killed_in_any_epoch_resumes_to_the_same_bytes(run, tmp_path, killed, best_first):
    accuracies = (0.8, 0.6, 0.6, 0.4) if best_first else (0.2, 0.3, 0.4, 0.4)
    whole, killed_run, resumed = (run(accuracies=accuracies, die_at=at) for at in (None, killed, None))
    history = whole.fit()
    with pytest.raises(Killed):
        killed_run.fit(checkpoint(tmp_path))
    assert resumed.fit(checkpoint(tmp_path)) == history
    assert killed_run.states[: killed - 1] + resumed.states == whole.states
    assert state_digest(resumed.model.state_dict()) == state_digest(whole.model.state_dict())


def test_a_run_killed_twice_resumes_to_the_same_bytes(run, tmp_path):
    whole = run()
    history = whole.fit()
    for at in (2, 4):
        with pytest.raises(Killed):
            run(die_at=at).fit(checkpoint(tmp_path))
    last = run()
    assert last.fit(checkpoint(tmp_path)) == history
    assert state_digest(last.model.state_dict()) == state_digest(whole.model.state_dict())


def test_a_finished_run_resumes_without_training(run, tmp_path):
    whole, again = run(), run()
    history = whole.fit(checkpoint(tmp_path))
    assert again.fit(checkpoint(tmp_path)) == history
    assert again.states == []
    assert state_digest(again.model.state_dict()) == state_digest(whole.model.state_dict())


def test_what_is_watched_is_noted_and_chooses_nothing(run):
    plain, states = run(), []

    def watch(model):
        states.append(state_digest(model.state_dict()))
        return (0.9, 0.1, 0.2, 1.0)[len(states) - 1]

    watched = run(watch=watch)
    without, history = plain.fit(), watched.fit()
    assert without.watched == []
    assert history.watched == [0.9, 0.1, 0.2, 1.0]
    assert (history.loss, history.accuracy, history.best) == (without.loss, without.accuracy, 1)
    assert states == watched.states, "what is watched is what was validated"
    assert state_digest(watched.model.state_dict()) == state_digest(plain.model.state_dict())


@pytest.mark.parametrize("killed", range(1, EPOCHS + 1))
def test_a_run_killed_while_it_watches_resumes_with_what_it_had_noted(run, tmp_path, killed):
    def watch(die_at=None):
        def drawn(_model):
            value = torch.rand(()).item()  # watching may draw random numbers
            calls.append(1)
            if len(calls) == die_at:
                raise Killed
            return value

        calls = []
        return drawn

    whole, resumed = run(watch=watch()), run(watch=watch())
    history = whole.fit()
    with pytest.raises(Killed):
        run(watch=watch(killed)).fit(checkpoint(tmp_path))
    assert resumed.fit(checkpoint(tmp_path)) == history
    assert len(set(history.watched)) == EPOCHS
    assert len(resumed.states) == EPOCHS - killed + 1
    assert state_digest(resumed.model.state_dict()) == state_digest(whole.model.state_dict())


def test_several_numbers_may_be_watched_and_come_back_from_a_checkpoint(run, tmp_path):
    def watch(_model):
        return {"one": 1.5, "many": [1, 2], "none": None}

    history = run(watch=watch).fit()
    with pytest.raises(Killed):
        run(watch=watch, die_at=3).fit(checkpoint(tmp_path))
    assert run(watch=watch).fit(checkpoint(tmp_path)) == history
    assert history.watched == [watch(None)] * EPOCHS


def test_the_random_states_after_a_resumed_run_are_those_after_a_whole_one(run, tmp_path):
    run().fit()
    after = torch.rand(3).tolist()
    with pytest.raises(Killed):
        run(die_at=3).fit(checkpoint(tmp_path))
    run().fit(checkpoint(tmp_path))
    assert torch.rand(3).tolist() == after


def test_a_checkpoint_of_other_settings_is_refused(run, tmp_path):
    with pytest.raises(Killed):
        run(die_at=3).fit(checkpoint(tmp_path))
    with pytest.raises(StaleArtifact, match="momentum"):
        run().fit(checkpoint(tmp_path, momentum=0.5))


def test_epochs_are_read_one_at_a_time_and_may_be_a_generator(run):
    whole = run()
    order = []
    validate = whole.validate
    whole.validate = lambda model: (order.append(list(whole.read)), validate(model))[1]
    whole.fit()
    assert order == [[0], [0, 1], [0, 1, 2], [0, 1, 2, 3]]


def test_a_generator_may_choose_its_data_by_the_model_as_it_is(tiny, images, blur):
    whole, seen = Run(tiny, images, blur), []

    def epochs():
        for epoch in range(2):
            seen.append(state_digest(whole.model.state_dict()))
            yield whole.stream(epoch)

    optimizer, schedule = training.sgd(whole.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0, steps=8)
    start = state_digest(whole.model.state_dict())
    ends = []
    training.fit(
        whole.model, epochs(), lambda m: ends.append(state_digest(m.state_dict())) or 0.5,
        loss=training.cross_entropy, optimizer=optimizer, schedule=schedule,
    )  # fmt: skip
    assert seen == [start, ends[0]]


def test_the_model_enters_training_as_the_caller_says(run):
    whole = run()
    modes = []

    def enter(model):
        model.eval()
        model.network.bn2.train()

    def loss(model, batch):
        modes.append([name for name, module in model.named_modules() if module.training])
        return training.cross_entropy(model, batch)

    optimizer, schedule = training.sgd(whole.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0, steps=8)
    training.fit(
        whole.model, [whole.stream(0), whole.stream(1)], lambda m: float(not m.eval()), loss=loss,
        optimizer=optimizer, schedule=schedule, enter_training=enter,
    )  # fmt: skip
    assert modes == [["network.bn2"]] * 8


def test_parameters_that_the_optimizer_does_not_hold_stay(run):
    whole = run()
    before = {key: value.clone() for key, value in whole.model.state_dict().items()}
    optimizer, schedule = training.sgd(
        whole.model.network.fc.parameters(), lr=0.1, momentum=0.9, weight_decay=0, steps=4
    )
    training.fit(
        whole.model, [whole.stream(0)], lambda _m: 1.0, loss=training.cross_entropy, optimizer=optimizer,
        schedule=schedule, enter_training=nn.Module.eval,
    )  # fmt: skip
    changed = [key for key, value in whole.model.state_dict().items() if not torch.equal(value, before[key])]
    assert changed == ["network.fc.1.weight", "network.fc.1.bias"]


def rates_of(whole: Run, optimizer, schedule, epochs: int) -> list[float]:
    """Train, and return the learning rate of every step."""
    rates = []

    def loss(model, batch):
        rates.append(optimizer.param_groups[0]["lr"])
        return training.cross_entropy(model, batch)

    for epoch in range(epochs):
        training.train_epoch(whole.model, whole.stream(epoch), loss, optimizer, schedule)
    return rates


def test_the_learning_rate_falls_with_every_batch_along_a_cosine_to_zero(run):
    whole = run()
    steps = 2 * len(whole.stream(0))
    optimizer, schedule = training.sgd(whole.model.parameters(), lr=0.1, momentum=0.9, weight_decay=0, steps=steps)
    want = [0.05 * (1 + torch.cos(torch.tensor(torch.pi * step / steps)).item()) for step in range(steps)]
    assert rates_of(whole, optimizer, schedule, 2) == pytest.approx(want, abs=1e-7)
    assert optimizer.param_groups[0]["lr"] == pytest.approx(0, abs=1e-12)


def test_sgd_is_that_of_the_definition(tiny):
    """One step: v = g + weight_decay * w, w = w - lr * v; the second: v = momentum * v + g + weight_decay * w."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0]))
    optimizer, schedule = training.sgd([weight], lr=0.1, momentum=0.9, weight_decay=0.5, steps=2)
    gradients = (torch.tensor([0.3, 0.7]), torch.tensor([-0.1, 0.2]))
    want, speed = weight.detach().clone(), torch.zeros(2)
    for rate, gradient in zip((0.1, 0.05), gradients, strict=True):
        weight.grad = gradient.clone()
        optimizer.step()
        schedule.step()
        speed = 0.9 * speed + gradient + 0.5 * want
        want = want - rate * speed
    assert torch.allclose(weight.detach(), want)


def test_adam_is_that_of_the_definition():
    """m and v are running means of g and g^2, each divided by 1 - beta^t; w = w - lr * m / (sqrt(v) + 1e-8)."""
    weight = nn.Parameter(torch.tensor([1.0, -2.0, 3.0]))
    optimizer, schedule = training.adam([weight], lr=0.1)
    draw = torch.Generator().manual_seed(1)
    want, mean, square = weight.detach().clone().double(), torch.zeros(3), torch.zeros(3)
    for step in range(1, 6):
        weight.grad = torch.randn(3, generator=draw)
        mean = 0.9 * mean + 0.1 * weight.grad.double()
        square = 0.999 * square + 0.001 * weight.grad.double() ** 2
        want -= 0.1 * (mean / (1 - 0.9**step)) / ((square / (1 - 0.999**step)).sqrt() + 1e-8)
        optimizer.step()
        schedule.step()
    assert torch.allclose(weight.detach().double(), want, rtol=1e-5)


def test_the_learning_rate_of_adam_stays(run):
    whole = run()
    optimizer, schedule = training.adam(whole.model.parameters(), lr=0.003)
    assert rates_of(whole, optimizer, schedule, 3) == [0.003] * 12
    assert schedule.get_last_lr() == [0.003]


def test_the_learning_rate_of_steady_sgd_stays_and_its_steps_are_those_of_sgd(run):
    steady, falling = run(), run()
    optimizer, schedule = training.constant_sgd(steady.model.parameters(), lr=0.02, momentum=0.9, weight_decay=5e-4)
    assert rates_of(steady, optimizer, schedule, 2) == [0.02] * 8
    kinds = [(group["momentum"], group["weight_decay"]) for group in optimizer.param_groups]
    assert kinds == [(0.9, 5e-4)]
    assert type(optimizer) is type(
        training.sgd(falling.model.parameters(), lr=1, momentum=0, weight_decay=0, steps=1)[0]
    )


def test_training_without_a_step_still_makes_a_schedule(tiny):
    assert training.sgd(tiny.parameters(), lr=0.1, momentum=0, weight_decay=0, steps=0)[1].T_max == 1


def test_predict_runs_in_eval_mode_and_in_the_order_of_the_view(spread, images, blur):
    view = views.append(images, blur, 16)
    with torch.no_grad():
        want = torch.cat([spread(pixels) for pixels, _ in view]).argmax(1)
    spread.train()
    statistics = spread.network.bn1.running_mean.clone()
    found = training.predict(spread, view)
    assert torch.equal(found, want)
    assert not any(module.training for module in spread.modules())
    assert torch.equal(spread.network.bn1.running_mean, statistics)
    assert len(set(found.tolist())) > 1


def test_a_prediction_does_not_depend_on_the_batch_size(spread, images, blur):
    found = [training.predict(spread, views.clean(images, size)) for size in (1, 7, 60)]
    assert torch.equal(found[0], found[1])
    assert torch.equal(found[0], found[2])


def test_predict_with_amp_computes_in_bfloat16(spread, images, blur):
    kinds = []
    spread.network.conv1.register_forward_hook(lambda _m, _i, output: kinds.append(output.dtype))
    training.predict(spread, views.clean(images, 60), amp=True)
    training.predict(spread, views.clean(images, 60))
    assert kinds == [torch.bfloat16, torch.float32]


def test_cross_entropy_is_the_mean_over_the_batch(spread, images):
    pixels = views.to_float(images.pixels[:7])
    plain = [-F.log_softmax(spread(pixels), 1)[row, label] for row, label in enumerate(images.labels[:7])]
    assert torch.allclose(training.cross_entropy(spread, (pixels, images.labels[:7])), torch.stack(plain).mean())


def test_a_generator_that_draws_from_the_global_random_state_resumes_exactly(tmp_path):
    def epochs():
        for _ in range(4):
            yield [(torch.randn(8, 4), torch.randint(0, 2, (8,)))]

    def train(path, *, resume=False, dies_after=None):
        torch.manual_seed(1)
        model = nn.Linear(4, 2)
        optimizer, schedule = training.sgd(model.parameters(), lr=0.1, momentum=0.9, weight_decay=0.0, steps=4)
        seen = []

        def validate(_model):
            seen.append(1)
            if len(seen) == dies_after:
                raise KeyboardInterrupt
            return len(seen) / 10

        saved = Checkpoint(path, {}, resume)
        named = {"loss": training.cross_entropy, "optimizer": optimizer, "schedule": schedule, "checkpoint": saved}
        return training.fit(model, epochs(), validate, **named).loss

    whole = train(tmp_path / "a.pt")
    with pytest.raises(KeyboardInterrupt):
        train(tmp_path / "b.pt", dies_after=3)
    assert train(tmp_path / "b.pt", resume=True) == whole


def test_a_single_step_is_the_optimizer_s_and_leaves_no_gradient(tiny, images):
    plain = copy.deepcopy(tiny)
    pixels = views.to_float(images.pixels)
    chosen = [tiny.network.bn1.weight, tiny.network.bn1.bias, nn.Parameter(torch.ones(2))]
    optimizer, _ = training.constant_sgd(chosen, lr=0.1, momentum=0.9, weight_decay=0)
    loss = F.cross_entropy(plain(pixels), images.labels)
    loss.backward()
    expected = plain.network.bn1.weight - 0.1 * plain.network.bn1.weight.grad
    training.take_step(optimizer, F.cross_entropy(tiny(pixels), images.labels))
    torch.testing.assert_close(tiny.network.bn1.weight, expected)
    assert chosen[2].tolist() == [1, 1], "what the loss does not read stays"
    assert torch.equal(tiny.network.bn2.weight, plain.network.bn2.weight), "as does what the optimizer does not have"
    assert all(each.grad is None for each in tiny.parameters())
    before = chosen[1].detach().clone()
    training.take_step(optimizer, [None, torch.ones_like(before), None])
    momentum = 0.9 * plain.network.bn1.bias.grad
    torch.testing.assert_close(chosen[1].detach(), before - 0.1 * (1 + momentum))
