from __future__ import annotations

import ast
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from deeppatch.data.images import Images
from deeppatch.errors import UserError
from deeppatch.hybrid import selection_inputs, selection_methods
from deeppatch.hybrid.choice_settings import ChoiceSettings
from deeppatch.hybrid.diagnostics import PoolTruth
from deeppatch.hybrid.oracle import Oracle
from deeppatch.hybrid.selection import UNKNOWN
from deeppatch.hybrid.selection_inputs import SelectionInputs
from deeppatch.hybrid.selection_methods import MEMBERS_PER_LABEL, METHODS
from deeppatch.metrics.calibration import fit_temperature

BUDGET = 12
PACKAGE = Path(selection_methods.__file__).parent


def imported_words(tree: ast.AST) -> set[str]:
    """Every part of every dotted name that a module imports, whatever it calls it."""
    found = set()
    for node in ast.walk(tree):
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            found |= {word for alias in node.names for word in alias.name.split(".")}
            found |= set((getattr(node, "module", None) or "").split("."))
    return found


@pytest.fixture
def pool() -> Tensor:
    """Ninety images of stripes of five kinds, with noise; uint8 (90, 3, 12, 12)."""
    draw = torch.Generator().manual_seed(2)
    kinds = torch.randint(0, 256, (5, 3, 12, 12), generator=draw)
    noisy = kinds[torch.arange(90) % 5] + 30 * torch.randn(90, 3, 12, 12, generator=draw)
    return noisy.clamp(0, 255).to(torch.uint8)


@pytest.fixture
def truth() -> Tensor:
    return torch.arange(90) % 5


@pytest.fixture
def evidence(tiny, pool, images):
    def gathered(seed: int = 1, encode=None) -> SelectionInputs:
        return SelectionInputs(tiny, pool, images.pixels, seed, views=2, encode=encode, batch_size=32)

    return gathered


@pytest.mark.parametrize("name", METHODS)
def test_a_method_buys_its_budget_once_and_repeats_by_seed(evidence, truth, name):
    oracle = Oracle(truth, BUDGET)
    choice = METHODS[name](evidence(), oracle, BUDGET)
    found = choice.selection
    count = 0 if name == "none" else BUDGET
    assert len(found.bought) == len(found.bought.unique()) == oracle.labels_bought == count
    assert torch.equal(found.labels, truth[found.bought])
    assert len(found.members) == len(found.members.unique()) == len(found.lender)
    assert torch.isin(found.bought, found.members).all(), "what is bought trains with its own label"
    places = {place: number for number, place in enumerate(found.members.tolist())}
    own = torch.tensor([places[place] for place in found.bought.tolist()], dtype=torch.long)
    assert found.lender[own].tolist() == list(range(count))
    assert len(choice.reasons) == len(choice.clusters) == count
    assert choice.predictions.shape == (90, 5)
    torch.testing.assert_close(choice.predictions.sum(1), torch.ones(90))
    again = METHODS[name](evidence(), Oracle(truth, BUDGET), BUDGET).selection
    assert again.to_bytes() == found.to_bytes()


@pytest.mark.parametrize("name", METHODS)
def test_a_method_does_without_labels_and_chooses_the_same(evidence, truth, name):
    simulated = METHODS[name](evidence(), Oracle(truth, BUDGET), BUDGET).selection
    field = METHODS[name](evidence(), Oracle(None, BUDGET), BUDGET).selection
    for part in ("bought", "members", "lender", "unlabelled", "weights"):
        assert torch.equal(getattr(field, part), getattr(simulated, part)), part
    assert (field.labels == UNKNOWN).all()


@pytest.mark.parametrize("name", ["random", "badge", "typiclust", "ssl-random", "ssl-consistency", "hybrid"])
def test_another_seed_chooses_otherwise(evidence, truth, name):
    first, other = (METHODS[name](evidence(seed), Oracle(truth, BUDGET), BUDGET).selection for seed in (1, 2))
    assert first.bought.tolist() != other.bought.tolist()


def test_supervised_methods_read_nothing_else_and_look_at_no_view(evidence, truth, monkeypatch):
    monkeypatch.setattr(selection_inputs, "consistency", lambda *_a, **_k: pytest.fail("nine passes for nothing"))
    by_labels = ("none", "random", "mcp", "margin", "entropy", "gini", "coreset", "badge", "typiclust", "uherding")
    for name in (*by_labels, "ssl-random"):
        found = METHODS[name](evidence(), Oracle(truth, BUDGET), BUDGET).selection
        assert torch.equal(found.members, found.bought)
        assert (len(found.unlabelled) == 0) == (name != "ssl-random")
        assert found.facts == {"weighted": False, "tau": None}


def test_what_an_image_is_chosen_for_is_said_in_words(evidence, truth):
    said = {
        "margin": "the two likeliest classes are nearly equally likely",
        "entropy": "the prediction is spread over several classes",
        "uherding": "stands for similar images of uncertain class",
    }
    for name, reason in said.items():
        found = METHODS[name](evidence(), Oracle(truth, BUDGET), BUDGET)
        assert set(found.reasons) == {reason}
        assert (found.clusters == -1).all()
    found = METHODS["typiclust"](evidence(), Oracle(truth, BUDGET), BUDGET)
    assert len(found.clusters.unique()) == BUDGET, "one image of each cluster"
    sizes = [int(reason.split()[2]) for reason in found.reasons if reason != "like no other image"]
    assert sizes == sorted(sizes, reverse=True)
    assert len(found.reasons) == BUDGET


def test_a_class_is_known_by_the_labels_of_its_training_images_or_by_what_the_model_predicts(evidence, images):
    own = evidence()
    features = torch.nn.functional.normalize(own.train_features, dim=1)
    labels = images.labels.clamp(min=1)  # no image of class 0
    for known, found in (
        (own.train_embeddings.logits.argmax(1), own.class_means),
        (labels, replace(own, train_labels=labels).class_means),
    ):
        expected = torch.stack([features[known == label].mean(0) for label in known.unique().tolist()])
        torch.testing.assert_close(found, expected)


def test_predictions_are_calibrated_on_val_where_there_is_one(evidence, images):
    own = evidence()
    assert torch.equal(own.calibrated, own.embeddings.probabilities)
    logits = own.train_embeddings.logits
    right = torch.arange(len(images)) % 3 > 0
    val = Images(images.pixels, torch.where(right, logits.argmax(1), images.labels))
    temperature = fit_temperature(logits.numpy(), val.labels.numpy())
    expected = (own.embeddings.logits / temperature).softmax(1)
    torch.testing.assert_close(replace(own, val=val).calibrated, expected)
    assert temperature != pytest.approx(1, abs=0.01)


def test_what_is_bought_leaves_the_stream_but_for_imp(evidence, truth):
    streams = {
        name: METHODS[name](evidence(), Oracle(truth, BUDGET), BUDGET).selection
        for name in ("ssl-random", "ssl-consistency", "ssl-consistency-imp")
    }
    for name in ("ssl-random", "ssl-consistency"):
        together = torch.cat([streams[name].bought, streams[name].unlabelled])
        assert torch.equal(together.sort().values, torch.arange(90))
    assert torch.equal(streams["ssl-consistency-imp"].unlabelled, torch.arange(90))
    assert torch.equal(streams["ssl-consistency-imp"].bought, streams["ssl-consistency"].bought)
    for found in streams.values():
        assert (found.weights == 1).all()


def test_consistency_buys_what_views_change_most(evidence, truth):
    each = evidence()
    bought = METHODS["ssl-consistency"](each, Oracle(truth, BUDGET), BUDGET).selection.bought
    variance = each.consistency.variance
    rest = variance[~torch.isin(torch.arange(90), bought)]
    assert variance[bought].min() >= rest.max()


def test_hybrid_buys_centres_and_reads_what_is_at_most_as_uncertain_as_tau(evidence, truth):
    each = evidence()
    choice = METHODS["hybrid"](each, Oracle(truth, BUDGET), BUDGET)
    found, entropy = choice.selection, each.consistency.entropy
    tau = found.facts["tau"]
    assert found.facts["weighted"]
    assert 0 < tau < 1
    assert torch.equal(found.unlabelled, (entropy <= tau).nonzero().flatten())
    torch.testing.assert_close(found.weights, 1 - entropy[found.unlabelled])
    assert BUDGET < len(found.members) <= MEMBERS_PER_LABEL * BUDGET, "a label reaches few of a cluster"
    assert torch.bincount(found.lender).max() <= MEMBERS_PER_LABEL
    assert torch.equal(found.member_labels, found.labels[found.lender])


def test_hybrid_spreads_over_whole_clusters_where_features_are_not_the_model_s(evidence, truth, pool):
    def encode(pixels):
        return pixels.float().flatten(1)[:, ::9]

    found = METHODS["hybrid"](evidence(encode=encode), Oracle(truth, 3), 3)
    sizes = torch.bincount(found.selection.lender)
    assert sizes.max() > MEMBERS_PER_LABEL
    assert found.reasons == [f"centre of {size} similar images, uncertain together" for size in sizes.tolist()]
    assert (found.clusters >= 0).all()


def test_hybrid_spends_at_random_what_regions_leave(evidence, truth, monkeypatch):
    found = METHODS["hybrid"](evidence(), Oracle(truth, 90), 90)
    assert torch.equal(found.selection.bought.sort().values, torch.arange(90))
    assert torch.equal(found.selection.members.sort().values, torch.arange(90)), "every label is an image's own"
    assert torch.equal(found.selection.members[found.selection.lender.argsort()], found.selection.bought)
    spare = [number for number, reason in enumerate(found.reasons) if reason == "drawn at random"]
    assert spare
    assert (found.clusters[spare] == -1).all()


def test_what_tau_compares_are_pool_and_training_images_as_they_are(evidence, truth, pool, images, tiny, monkeypatch):
    seen = []
    monkeypatch.setattr(selection_inputs, "threshold", lambda *given: seen.append(given) or 0.5)
    METHODS["hybrid"](evidence(), Oracle(truth, BUDGET), BUDGET)
    ((_entropy, logits, train_logits, _draw),) = seen
    with torch.no_grad():
        torch.testing.assert_close(logits, tiny(pool.float() / 255))
        torch.testing.assert_close(train_logits, tiny(images.pixels.float() / 255))


def test_nothing_is_read_without_a_label_where_all_is_less_certain_than_tau(evidence, truth, monkeypatch):
    monkeypatch.setattr(selection_inputs, "threshold", lambda *_given: -0.1)
    found = METHODS["hybrid"](evidence(), Oracle(truth, BUDGET), BUDGET).selection
    assert len(found.unlabelled) == len(found.weights) == 0
    assert len(found.members) >= BUDGET


def test_tau_is_given_or_the_mean_of_the_pool_and_clusters_have_the_size_that_is_asked_for(evidence, truth):
    entropy = evidence().consistency.entropy
    for tau, expected in ((0.4, 0.4), (0, 0.0), ("mean", entropy.mean().item())):
        own = replace(evidence(), settings=ChoiceSettings(tau=tau))
        found = METHODS["hybrid"](own, Oracle(truth, 3), 3).selection
        assert found.facts["tau"] == pytest.approx(expected)
        assert torch.equal(found.unlabelled, (entropy <= found.facts["tau"]).nonzero().flatten())
    counts = {}
    for size in (5, 20):
        own = replace(evidence(), settings=ChoiceSettings(cluster_size=size))
        clusters = selection_methods.clusters.cluster_pool(own.features, 1, own.seed, size)
        counts[size] = len(clusters.centers)
        chosen = METHODS["hybrid"](own, Oracle(truth, 1), 1)
        assert chosen.selection.bought[0] == clusters.centers[chosen.clusters[0]]
    dense = int((clusters.cluster >= 0).sum())
    assert counts == {5: dense // 5, 20: dense // 20}


def test_coreset_starts_from_the_pool_where_that_is_asked_for(evidence, truth):
    own = replace(evidence(), settings=ChoiceSettings(coreset_start="pool"))
    assert METHODS["coreset"](own, Oracle(truth, 4), 4).selection.bought[0] == 0
    assert METHODS["coreset"](evidence(), Oracle(truth, 4), 4).selection.bought[0] != 0


@pytest.mark.parametrize(
    ("given", "said"),
    [
        ({"tau": "best"}, "tau='best': give auto, mean, or a number from 0 to 1"), ({"tau": float("nan")}, "tau=nan"),
        ({"tau": 1.5}, "tau=1.5: give"), ({"cluster_size": 0}, "cluster_size=0: give at least 1 image"),
        ({"coreset_start": "x"}, "coreset_start='x' is unknown; choose from train, pool"),
    ],
)  # fmt: skip
def test_settings_out_of_range_are_one_line(given, said):
    with pytest.raises(UserError, match=said):
        ChoiceSettings(**given)


def test_the_truth_s_holder_tells_the_truth_in_percent(evidence, truth):
    each = evidence()
    found = METHODS["hybrid"](each, Oracle(truth, BUDGET), BUDGET)
    own = each.embeddings.logits.argmax(1)
    guesses = found.predictions.argmax(1)
    selection = found.selection
    told = PoolTruth(truth, own).diagnostics(selection, guesses)
    outside = [place for place in selection.unlabelled.tolist() if place not in selection.members.tolist()]

    def share(hits: list[Tensor]) -> float:
        return pytest.approx(100 * sum(map(bool, hits)) / len(hits), abs=0.005)

    assert told == {
        "failures_in_pool_percent": share([a != b for a, b in zip(own, truth, strict=True)]),
        "failures_among_bought_percent": share([own[place] != truth[place] for place in selection.bought]),
        "propagated_labels_correct_percent": share(
            [label == truth[place] for place, label in zip(selection.members, selection.member_labels, strict=True)]
        ),
        "own_predictions_correct_on_members_percent": share(
            [own[place] == truth[place] for place in selection.members]
        ),
        "pseudo_labels_correct_on_unlabelled_percent": share([guesses[place] == truth[place] for place in outside]),
    }
    nothing = PoolTruth(truth, own).diagnostics(METHODS["none"](each, Oracle(truth, 1), 1).selection, guesses)
    assert nothing["failures_among_bought_percent"] is None


def test_nothing_that_selects_or_trains_can_see_the_truth():
    """The pool's labels reach the oracle and its holder only; the latter is for commands."""
    for path in PACKAGE.glob("*.py"):
        tree = ast.parse(path.read_text())
        assert path.stem == "diagnostics" or not imported_words(tree) & {"diagnostics", "PoolTruth"}, path.name
        hidden = {node.attr for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        assert path.stem in ("diagnostics", "oracle") or not hidden & {"_labels", "_truth", "truth"}, path.name


@pytest.mark.parametrize("line", [
    "from deeppatch.hybrid import diagnostics", "from deeppatch.hybrid import oracle, diagnostics as judge",
    "import deeppatch.hybrid.diagnostics", "from deeppatch.hybrid.diagnostics import PoolTruth as Judge",
    "from . import diagnostics", "from .diagnostics import PoolTruth",
])  # fmt: skip
def test_no_way_to_import_the_truth_s_holder_escapes_that_rule(line):
    assert imported_words(ast.parse(line)) & {"diagnostics", "PoolTruth"}


def test_commands_hand_the_truth_to_the_oracle_and_the_truth_s_holder_alone():
    found = {}
    for path in (PACKAGE.parent / "cli").rglob("*.py"):
        tree = ast.parse(path.read_text())
        uses = {
            ast.unparse(node).split("(")[0] for node in ast.walk(tree) for child in ast.iter_child_nodes(node)
            if isinstance(child, ast.Attribute) and child.attr == "truth"
        }  # fmt: skip
        found |= {f"{path.parent.name}/{path.stem}": uses} if uses else {}
        assert path.parent.name == "annotate" or not imported_words(tree) & {"diagnostics", "PoolTruth"}, path.name
    assert found == {
        "annotate/command": {"oracle=pool.truth"},
        "annotate/report": {"pool.truth is None", "PoolTruth"},
        "annotate/inputs": {"pool.truth is None", "judge_of_pseudo_labels"},
        "relearn/inputs": {"oracle=pool.truth"},
    }


def test_what_chooses_hands_the_labels_that_are_given_to_an_oracle_and_to_nothing_else():
    tree = ast.parse((PACKAGE / "choosing.py").read_text())
    uses = {
        ast.unparse(node) for node in ast.walk(tree) for child in ast.iter_child_nodes(node)
        if isinstance(child, ast.Name) and child.id == "oracle"
    }  # fmt: skip
    assert uses == {"oracle=oracle", "Oracle(oracle, count, images=len(inputs.pool))"}
