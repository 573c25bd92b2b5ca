"""The methods of other papers as commands: what each leaves and costs, and that later stages take it."""

from __future__ import annotations

import pytest
import safetensors.torch

from deeppatch.artifacts import state_digest, tensors_from_bytes
from deeppatch.cli import parsing
from deeppatch.cli.correct import command
from deeppatch.cli.correct.runners import PEERS
from deeppatch.cli.corrections import PEER_OPTIONS
from deeppatch.cli.naming import artifact_id

# 24 images of train and 6 of val, clean and at six levels
VAL = 6 * 7
# the command of each, its training passes and those that are forward only; None where they depend on what it finds
LINES = {
    "sensei": ("--epochs 2", 48, 2 * (7 * 24 + VAL)),
    "apricot": ("--rdlm 2 --rdlm_images 12 --rdlm_epoch 1 --fix_steps 3 --eta 0.5 --epochs 1", None, None),
    "robot": ("--select multisection --select_images 4 --passes 24", None, VAL),
    "gini": ("--epochs 2 --select-images 3", 2 * 27, 24 + 2 * VAL),
    "augmix": ("--passes 72", 72, VAL),
}


@pytest.fixture(scope="module")
def corrected(chain, tmp_path_factory):
    """What pretrain left, and all methods of other papers."""
    bench = chain.copy(tmp_path_factory.mktemp("peers") / "output", "pretrain")
    for name, (line, _train, _forward) in LINES.items():
        bench.ran(f"correct -c {name} {line}")
    return bench


def test_every_method_has_a_line_here_and_options():
    assert [*LINES] == [*PEERS] == [*PEER_OPTIONS]


@pytest.mark.parametrize("name", LINES)
def test_it_leaves_a_network_and_says_what_it_cost(corrected, name):
    _line, train, forward = LINES[name]
    metrics = corrected.json(f"correct-{name}/metrics.json")
    assert metrics["method"] == name
    if name == "apricot":
        assert metrics["passes"]["train"] == 24 * (1 + metrics["accepted_steps"])
    else:
        candidates = metrics["scored_images"] if name == "robot" else 0
        assert metrics["passes"] == {"train": (train or 24 + candidates), "forward": forward}
    path = corrected.at(f"correct-{name}/weights.safetensors")
    _tensors, meta = tensors_from_bytes(path.read_bytes(), path)
    base = safetensors.torch.load_file(corrected.at("pretrain/weights.safetensors"))
    assert meta["base"] == state_digest(base)
    assert 0 < metrics["stored_bytes"] <= path.stat().st_size or name == "apricot"


@pytest.mark.parametrize("name", ["sensei", "gini"])
def test_later_stages_take_it(corrected, name):
    said = corrected.ran(f"eval --state corrected -c {name}").out
    assert f"inherited {corrected.at(f'correct-{name}/weights.safetensors')}" in said
    assert corrected.json(f"eval-{name}/metrics.json")["weights"] == f"corrected: {name}"


def test_the_chosen_images_are_a_file(corrected):
    for name, count in (("gini", 3), ("robot", 4)):
        chosen = corrected.json(f"correct-{name}/selection.json")
        assert {key: len(values) for key, values in chosen.items()} == {"index": count, "level": count, "score": count}
        assert corrected.json(f"correct-{name}/metrics.json")["selected_images"] == count


def test_robot_and_gini_are_trained_for_their_published_epochs_where_none_are_given():
    for name in PEERS:
        usual, longer = (
            parsing.parse(command, ["-c", name, *given], "python src/{script}.py") for given in ([], ["--epochs", "40"])
        )
        assert usual.crt_epoch == (40 if name in ("robot", "gini") else 20)
        names = [artifact_id("correct", options, {}) for options in (usual, longer)]
        assert names[0] == f"correct-{name}"
        assert (names[1] == names[0]) == (usual.crt_epoch == 40)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-c finetune --popsize 3", "--popsize can only be used with -c sensei and patch, not with finetune"),
        ("-c augmix --select_only", "--select_only can only be used with -c robot and gini, not with augmix"),
        ("-c gini --select_only --select_half", "--select_only and --select_half exclude each other"),
        ("-c gini --select_images 0", "--select_images 0: give a number above 0"),
        ("-c sensei --popsize 0", "--popsize 0: give a number from 1 to 100"),
        ("-c sensei --crossover_prob 2", "--crossover_prob 2.0: give a number from 0 to 1"),
        ("-c apricot --rdlm 0", "--rdlm 0: give a number above 0"),
        ("-c apricot --strategy 4", "invalid choice: 4; choose from 1, 2, 3"),
        ("-c augmix --augmix_weight -1", "--augmix_weight -1.0: give 0 or more"),
    ],
)
def test_what_does_not_fit_is_one_line(pretrained, line, said):
    assert said in pretrained.refused(f"correct {line}")


def test_a_patch_on_images_of_sensei(corrected):
    corrected.ran("select -f activation")
    corrected.ran("correct -f activation --train_on sensei --epochs 1 --popsize 3")
    metrics = corrected.json("correct-patch-replace-activation/metrics.json")
    assert (metrics["train_on"], metrics["search"], metrics["candidates"]) == ("sensei", "sampled levels", 3)
    assert metrics["passes"] == {"train": 24, "forward": 3 * 24 + VAL}
    said = corrected.refused("correct -f activation --popsize 3")
    assert said == "--popsize can only be used with -c sensei or --train_on sensei"


def test_a_patch_on_top_of_the_network_of_sensei_and_its_neighbours(corrected):
    base = corrected.at("correct-sensei")
    line = f"-f activation -p SS-DP --base_from {base}"
    corrected.ran(f"select {line}")
    corrected.ran(f"correct {line} --epochs 1")
    patch = "correct-patch-replace-activation-spatial"
    assert corrected.json(f"{patch}/metrics.json")["train_on"] == "clean"
    weights = base / "weights.safetensors"
    _tensors, meta = tensors_from_bytes(corrected.at(f"{patch}/patch.safetensors").read_bytes(), weights)
    assert meta["base"] == state_digest(safetensors.torch.load_file(weights))
    said = corrected.ran(f"switch {line} --neighbours 2").out
    assert f"inherited {weights}" in said
    assert "2 neighbours of each test image at each severity, in percent" in said
    report = "switch-patch-replace-activation-probe-spatial"
    found = corrected.json(f"{report}/metrics.json")
    assert found["neighbours"] == 2
    shares = {(row["network"], row["measure"]): row for row in found["neighbours_percent"]}
    assert len(shares) == 2 * 3, "pretrained, patched always on, and switched"
    for network in ("pretrained", "patched always on", "switched"):
        share, everywhere = (shares[network, each] for each in ("right neighbours", "images with all right"))
        assert 0 <= everywhere["overall"] <= share["overall"] <= 100
        assert share["overall"] == pytest.approx(sum(share[f"spatial-{level}"] for level in range(1, 6)) / 5)
    assert corrected.at(f"{report}/neighbours.csv").exists()
    other = corrected.at("pretrain")
    said = corrected.refused(f"select -f activation -p SS-DP --base_from {other}")
    assert f"{other} was left by pretrain, not by correct" in said
    assert corrected.refused(f"switch -f activation --base_from {base} --neighbours 2") == (
        "--neighbours can only be used with -n spatial, which draws other versions of an image"
    )
