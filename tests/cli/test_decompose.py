"""influence and decompose as commands: what they leave, what they refuse, and that nothing is computed twice."""

from __future__ import annotations

import json
import re
import shutil
import signal

import pandas as pd
import pytest
import safetensors.torch
import torch
from sklearn.metrics import mutual_info_score

from deeppatch import features, training
from deeppatch.artifacts import Checkpoint

KS = (5, 10, 20)
INFLUENCE = {"run.json", "indices.json", "influence.json", "influence.csv", "influence.png", "overlap.png"}
TUNED = {"run.json", "weights.safetensors", "history.csv", "metrics.json"}
CHAIN = {
    "influence": ("influence", INFLUENCE),
    "decompose-validate": ("decompose validate", {"run.json", "metrics.json", "metrics.csv", "timing.json"}),
    "decompose-essential": ("decompose essential", {"run.json", "essential.json", "essential.csv", "essential.png"}),
    "decompose-mutual-info": ("decompose mutual-info", {"run.json", "mutual-info.json", "mutual-info.csv"}),
    "decompose-finetune": ("decompose finetune -e 3", TUNED),
    "decompose-finetune-head": ("decompose finetune --head-only -e 3", TUNED),
    "decompose-sweep-k5-64": (
        "decompose sweep -k 5 64 --epochs 2",
        {"run.json", "sweep.json", "sweep.csv", "sweep.png"},
    ),
}


@pytest.fixture(scope="module")
def heads(chain, tmp_path_factory):
    """Every command once, on what the chain's pretrain left; tests change nothing."""
    bench = chain.copy(tmp_path_factory.mktemp("heads") / "output", "pretrain")
    for line, _files in CHAIN.values():
        bench.ran(line)
    return bench


@pytest.fixture
def fresh(heads, tmp_path):
    """A copy of all that those commands left, to damage."""
    return heads.copy(tmp_path / "output")


@pytest.fixture
def refuse(fresh):
    """Refuse a set of features: write it, validate it, and return the line."""

    def refused(content: str | dict[str, list[int]]) -> str:
        path = fresh.output / "sets.json"
        path.write_text(content if isinstance(content, str) else json.dumps(content))
        line = fresh.refused(f"decompose validate -i {path}")
        assert line.startswith(str(path))
        return line

    return refused


def test_each_command_leaves_exactly_these_files(heads):
    left = {name: heads.files(name) for name in CHAIN}
    assert left == {name: files for name, (_line, files) in CHAIN.items()}
    assert heads.names() == {
        *CHAIN, "pretrain", "features", *(f"influence-k{k}" for k in KS[1:])
    }  # fmt: skip
    assert all(heads.files(f"influence-k{k}") == INFLUENCE for k in KS[1:])


def test_indices_are_in_the_published_form(heads):
    for k, name in zip(KS, ("influence", "influence-k10", "influence-k20"), strict=True):
        sets = heads.json(f"{name}/indices.json")
        assert list(sets) == ["0", "1", "2"]
        assert all(len(set(row)) == k and set(row) <= set(range(64)) for row in sets.values())
        table = pd.read_csv(heads.at(name) / "influence.csv")
        assert len(table) == 3 * 64
        chosen = table[table["rank"] > 0].sort_values(["class", "rank"])
        assert chosen["feature"].tolist() == [feature for row in sets.values() for feature in row]
        assert heads.json(f"{name}/influence.json")["training_images"] == 30, "train and val"
        assert heads.json(f"{name}/run.json")["settings"]["k"] == k


def test_validate_compares_the_whole_layer_with_the_decomposed_one(heads):
    whole, sparse = heads.json("decompose-validate/metrics.json")["heads"]
    pretrained = heads.json("pretrain/metrics.json")["accuracy_percent"]["clean"]
    assert whole["accuracy_percent"] == pretrained
    assert (whole["multiply_adds"], sparse["multiply_adds"]) == (3 * 64, 3 * 5)
    assert heads.json("decompose-sweep-k5-64/sweep.json")["rows"][0]["decomposed_percent"] == sparse["accuracy_percent"]
    assert heads.json("decompose-validate/timing.json")["microseconds_a_batch"].keys() == {
        "whole layer", "influence, k=5"
    }  # fmt: skip


def test_all_features_a_class_are_the_whole_layer(heads):
    sweep = heads.json("decompose-sweep-k5-64/sweep.json")
    assert [row["k"] for row in sweep["rows"]] == [5, 64]
    assert sweep["rows"][1]["decomposed_percent"] == sweep["whole_layer_percent"]


def test_mutual_information_is_that_of_the_sets(heads):
    for row in heads.json("decompose-mutual-info/mutual-info.json")["sets"]:
        name = "influence" if row["k"] == 5 else f"influence-k{row['k']}"
        sets = [set(features) for features in heads.json(f"{name}/indices.json").values()]
        members = [[int(feature in row) for feature in range(64)] for row in sets]
        pairs = [mutual_info_score(a, b) for a in members for b in members]
        assert row["mean_mutual_information_nats"] == pytest.approx(sum(pairs) / 9, abs=1e-12)


def test_essential_counts_by_class_add_up(heads):
    measured = heads.json("decompose-essential/essential.json")["sets"]["influence, k=5"]
    rows = pd.read_csv(heads.at("decompose-essential") / "essential.csv")
    assert rows["images"].tolist() == [8, 8, 8]
    assert 100 * rows["whole"].sum() / 24 == pytest.approx(measured["whole"])
    assert 100 * rows["noise_at"].sum() / 24 == pytest.approx(measured["noise_at"], rel=1e-4)


def test_fine_tuning_trains_the_head_or_everything(heads):
    base = safetensors.torch.load_file(heads.at("pretrain") / "weights.safetensors")
    for name, moved in (("decompose-finetune", True), ("decompose-finetune-head", False)):
        tuned = safetensors.torch.load_file(heads.at(name) / "weights.safetensors")
        assert tuned["network.fc.weight"].shape == (3, 5)
        kept = base["network.fc.weight"].gather(1, tuned["network.fc.indices"])
        assert not torch.equal(tuned["network.fc.weight"], kept)
        assert torch.equal(tuned["network.conv1.weight"], base["network.conv1.weight"]) is not moved
        history = pd.read_csv(heads.at(name) / "history.csv")
        best = history[history["best"]]["test_accuracy_percent"].item()
        assert heads.json(f"{name}/metrics.json")["test_accuracy_percent"]["best_epoch"] == pytest.approx(
            best, abs=1e-3
        )


def test_features_are_computed_once(fresh, monkeypatch):
    monkeypatch.setattr(features, "embed", lambda *_, **__: pytest.fail("the features are there"))
    before = fresh.hashes("decompose-essential")
    for name, (line, _files) in CHAIN.items():
        if name != "decompose-finetune":
            fresh.ran(line)
    assert fresh.hashes("decompose-essential") == before


def test_the_same_seed_gives_the_same_bytes(heads, chain, tmp_path):
    again = chain.copy(tmp_path / "output", "pretrain")
    for line, _files in CHAIN.values():
        again.ran(line)
    ours, theirs = again.hashes(), heads.hashes()
    for hashes in (ours, theirs):
        (timing,) = [name for name in hashes if name.endswith("/timing.json")]
        del hashes[timing]
    assert ours == theirs


def test_given_files_are_judged_side_by_side(fresh):
    paths = [fresh.at(f"{name}/indices.json") for name in ("influence", "influence-k20")]
    said = fresh.ran(f"decompose validate -i {paths[0]} {paths[1]}").out
    assert re.search(r"^ *indices +5 ", said, re.M)
    assert re.search(rf"^ *\S*{paths[1].parent.name}/indices.json +20 ", said, re.M)
    (left,) = [path for path in fresh.root.iterdir() if path.name.startswith("decompose-validate-given-")]
    assert len(json.loads((left / "metrics.json").read_text())["heads"]) == 3


def test_influence_compares_with_a_given_file(fresh):
    path = fresh.at("influence/indices.json")
    before = set(fresh.root.iterdir())
    said = fresh.ran(f"influence -k 5 --compare {path}").out
    assert "k = 5: in common with indices.json, by class: 5 5 5" in said
    (left,) = set(fresh.root.iterdir()) - before
    assert json.loads((left / "influence.json").read_text())["compared"] == {"indices.json": [5, 5, 5]}
    line = fresh.refused(f"influence -k 10 --compare {path}")
    assert line.endswith("has another k; add it to -k")


def test_features_of_cropped_and_mirrored_images_have_folders_of_their_own(fresh, launch, refusal, tmp_path):
    before = fresh.hashes("influence")
    fresh.ran("influence -k 5 --augment")
    assert fresh.files("influence-augment") == INFLUENCE
    assert fresh.json("influence-augment/influence.json")["augmented"] is True
    assert fresh.hashes("influence") == before
    for arguments in (["--train", "-e", "1", "--limit", "20"], ["--augment", "--limit", "20", "-k", "5"]):
        script = "eval" if "--train" in arguments else "influence"
        result = launch(script, ["-m", "resnet8", "-d", "digits", "--output_dir", str(tmp_path / "digits"), *arguments])
    assert "would change the class in digits" in refusal(result)


def test_gates_are_compared_on_their_own_network(fresh):
    base = safetensors.torch.load_file(fresh.at("pretrain") / "weights.safetensors")
    state = {k.removeprefix("network."): v for k, v in base.items() if k.startswith("network.")}
    state |= {"csg": torch.rand(3, 64, generator=torch.Generator().manual_seed(1))}
    path = fresh.output / "csg.pth"
    torch.save({"model_state_dict": state}, path)
    for action in ("mutual-info", "essential"):  # not those without gates, which lie beside
        shutil.rmtree(fresh.at(f"decompose-{action}"))
    fresh.ran(f"decompose mutual-info --csg {path}")
    names = [row["set"] for row in fresh.json("decompose-mutual-info/mutual-info.json")["sets"]]
    assert names[3:5] == ["CSG, lowest gates (as published), k=5", "CSG, highest gates, k=5"]
    assert len(names) == 9
    fresh.ran(f"decompose essential --csg {path}")
    sets = fresh.json("decompose-essential/essential.json")["sets"]
    assert len({row["whole"] for row in sets.values()}) == 1, "here its network is the base"
    assert len(sets) == 3
    assert "holds no gates" in fresh.refused(f"decompose essential --csg {fresh.at('pretrain')}/weights.safetensors")


@pytest.mark.parametrize(
    ("content", "said"),
    [
        ("{", "is not JSON"),
        ("[1]", "is not of the form"),
        ({"0": [1], "1": [2]}, "has 2 classes (0, 1), the data set has 3 (0 to 2)"),
        ({"0": [1], "1": [2], "2": [64]}, "class 2 names 64, the network's features are 0 to 63"),
        ({"0": [1, 2], "1": [3, 3], "2": [4, 5]}, "class 1 names feature 3 more than once"),
        ({"0": [1, 2], "1": [3], "2": [4, 5]}, "classes have 1, 2 features"),
    ],
)
def test_a_wrong_file_is_one_clear_line(refuse, content, said):
    assert said in refuse(content)


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("decompose validate -k 7", "python src/influence.py -m resnet8 "),
        ("decompose validate -k 7", "-k 7"),
        ("decompose validate -i nowhere.json", "nowhere.json: No such file or directory; check the path"),
        ("decompose validate --csg x.pth", "--csg can only be used with essential and mutual-info, not with validate"),
        (
            "decompose mutual-info --lr 1 --draws 0",
            "--lr can only be used with finetune and sweep, not with mutual-info; --draws 0",
        ),
        ("decompose sweep --head-only", "--head_only can only be used with finetune, not with sweep"),
        ("decompose validate -k 5 -i x.json", "-k and -i exclude each other"),
        ("decompose finetune -k 5 10", "finetune takes one set of features"),
        ("decompose finetune --lr 0", "--lr 0.0: give a number above 0"),
        ("decompose sweep -k 65", "resnet8 has 64 features"),
        ("decompose", "ACTION"),
        ("decompose nonsense", "nonsense"),
        ("influence -k 65", "-k 65: resnet8 has 64 features; give at most 64"),
        ("influence -k 0", "-k 0: give at least 1 feature"),
        ("influence -k 5 5", "give each number once"),
        ("influence -m vgg13_bn -e 1", "-e"),
    ],
)
def test_a_mistake_is_one_line(fresh, line, said):
    assert said in fresh.refused(line)


def test_the_missing_extraction_is_made_by_the_command_that_the_message_names(fresh):
    line = fresh.refused("decompose validate -k 7")
    assert fresh.type_in(f"{line.split('; make it with: ')[1]} --device cpu").status == 0
    fresh.ran("decompose validate -k 7")


@pytest.mark.slow
def test_a_network_with_several_linear_layers_is_decomposed_at_its_last_one(empty):
    empty.ran("eval -m vgg13_bn -e 1 --limit 6")
    empty.ran("influence -m vgg13_bn -k 5 --limit 6")
    said = empty.ran("decompose validate -m vgg13_bn --limit 6").out
    assert "influence, k=5" in said


@pytest.mark.parametrize("line", ["decompose finetune -e 3", "decompose finetune -e 3 --head-only"])
def test_interrupted_fine_tuning_goes_on_to_the_same_bytes(heads, tmp_path, monkeypatch, line):
    name = "decompose-finetune" + ("-head" if "head" in line else "")
    bench = heads.copy(tmp_path / "output", "pretrain", "influence", "features")
    save, calls = Checkpoint.save, []

    def interrupted(checkpoint: Checkpoint, state: dict) -> None:
        save(checkpoint, state)
        calls.append(1)
        if len(calls) == 2:
            raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", interrupted)
        assert bench.run(line).status == 128 + signal.SIGINT
    assert "resumed after epoch 2" in bench.ran(f"{line} -r").out
    assert bench.hashes(name) == heads.hashes(name)
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_epoch", lambda *_, **__: pytest.fail("it has finished"))
        assert "finished already" in bench.ran(f"{line} -r").out
