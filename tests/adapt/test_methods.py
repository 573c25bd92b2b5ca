"""What every method promises: the model given is not changed, `reset` is complete, and what answers depend on."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import nn

from deeppatch.adapt import names
from deeppatch.adapt.adapter import Passes, batch_norms
from deeppatch.adapt.methods import METHODS, adapter
from deeppatch.adapt.roid import RoidSettings
from deeppatch.adapt.tent import TentSettings
from deeppatch.data.streams import STREAMS
from deeppatch.errors import UserError

NEED_BATCH_NORM = ("bn-1", "bn-alpha", "bn-prior")
TRAIN_NORMS = ("tent", "eta", "eata", "sar", "roid")


def made(name, model, **settings):
    """Return an adapter with settings of its own where they are given."""
    own = METHODS[name].settings(**settings) if settings else None
    return adapter(name, model, own, source=torch.rand(12, 3, 8, 8, generator=torch.Generator().manual_seed(1)))


def bold(name, model):
    """Return an adapter that adapts to every batch, in large steps, so that its effect is seen."""
    settings = {
        "eta": {"margin": 1.1, "similarity": 2.0}, "eata": {"margin": 1.1, "similarity": 2.0},
        "sar": {"margin": 1.1, "reset_below": 0.0, "lr": 0.5}, "cotta": {"memory": 0.5, "views": 2},
    }.get(name, {})  # fmt: skip
    if name in (*TRAIN_NORMS, "cotta") and name != "sar":
        settings = {**settings, "lr": 0.05}
    return made(name, model, **settings)


def test_names_are_those_of_the_registries():
    assert tuple(METHODS) == names.METHODS
    assert tuple(STREAMS) == names.STREAMS


@pytest.mark.parametrize("name", names.METHODS)
def test_the_model_given_is_not_changed_and_reset_forgets_everything(name, model, batches):
    before, training = copy.deepcopy(model.state_dict()), model.training
    method = bold(name, model)
    first = [method.predict(batch) for batch in batches]
    method.reset()
    with torch.no_grad():
        again = [method.predict(batch) for batch in batches]
    assert all(torch.equal(one, two) for one, two in zip(first, again, strict=True))
    assert all(torch.equal(before[key], value) for key, value in model.state_dict().items())
    assert (model.training, [each.requires_grad for each in model.parameters()]) == (training, [True] * 10)
    assert not any(each.requires_grad for each in first)


@pytest.mark.parametrize("name", names.METHODS)
def test_answers_depend_on_neighbours_where_the_method_says_so(name, model, batches):
    method = bold(name, model)
    one = method.predict(batches[0])[0]
    method.reset()
    other = method.predict(torch.cat([batches[0][:1], batches[2][1:]]))[0]
    difference = (one.softmax(0) - other.softmax(0)).abs().max().item()
    assert method.depends_on_neighbours == (difference > 1e-4)
    assert method.depends_on_neighbours or difference < 1e-6


@pytest.mark.parametrize("name", names.METHODS)
def test_answers_depend_on_the_past_where_the_method_says_so(name, model, batches):
    method = bold(name, model)
    fresh = method.predict(batches[2])
    method.reset()
    for batch in (batches[0], batches[1]):
        method.predict(batch)
    later = method.predict(batches[2])
    difference = (fresh.softmax(1) - later.softmax(1)).abs().max().item()
    assert method.depends_on_past == (difference > 1e-4)
    assert method.depends_on_past or difference == 0


@pytest.mark.parametrize("name", names.METHODS)
def test_answers_without_adapting_leave_no_trace(name, model, batches):
    one, two = bold(name, model), bold(name, model)
    one.answer(batches[1])
    assert one.passes == Passes()
    assert torch.equal(one.predict(batches[0]), two.predict(batches[0]))
    one.answer(batches[1])
    assert torch.equal(one.predict(batches[2]), two.predict(batches[2]))
    assert one.passes == two.passes


@pytest.mark.parametrize("name", names.METHODS)
def test_passes_are_those_of_the_network(name, model, batches):
    method = bold(name, model)
    seen = {}
    for part in ("model", "teacher", "anchor"):
        if hasattr(method, part):
            getattr(method, part).register_forward_hook(
                lambda _module, inputs, _output, part=part: seen.update({part: seen.get(part, 0) + len(inputs[0])})
            )
    for batch in batches:
        method.predict(batch)
    looked = 1 if name.startswith("lame") else 0  # for the last layer, once
    assert sum(seen.values()) == method.passes.forward + method.passes.train + looked
    assert (method.passes.train > 0) == (name in (*TRAIN_NORMS, "cotta"))


@pytest.mark.parametrize("name", names.METHODS)
def test_networks_without_batch_normalisation_are_refused_where_it_is_needed(name):
    torch.manual_seed(1)
    plain = nn.Sequential(nn.Conv2d(3, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(4, 4))
    if name not in (*NEED_BATCH_NORM, *TRAIN_NORMS):
        assert tuple(made(name, plain).predict(torch.rand(5, 3, 8, 8)).shape) == (5, 4)
        return
    with pytest.raises(UserError, match="this network has no"):
        made(name, plain)
    grouped = nn.Sequential(plain[0], nn.GroupNorm(2, 4), *plain[1:])
    if name in NEED_BATCH_NORM:
        with pytest.raises(UserError, match=f"^{name} replaces"):
            made(name, grouped)
    else:
        assert not batch_norms(grouped)
        assert len(made(name, grouped).parameters) == 2


def test_mistakes_are_one_line(model):
    with pytest.raises(UserError, match=r"called tend \(did you mean tent\?\)"):
        adapter("tend", model)
    with pytest.raises(UserError, match="give a TentSettings"):
        adapter("tent", model, RoidSettings())
    with pytest.raises(UserError, match="eata reads source images"):
        adapter("eata", model)
    assert adapter("tent", model, TentSettings(lr=0.5)).optimizer.param_groups[0]["lr"] == 0.5
