"""relearn as a command: what each method leaves and reports, what is refused, and a killed run that goes on alike."""

from __future__ import annotations

import io
import json
import logging
import signal

import pandas as pd
import pytest
import safetensors.torch
import torch
from PIL import Image

from deeppatch import metrics, training
from deeppatch.artifacts import Checkpoint
from deeppatch.cli.relearn import report
from deeppatch.data import sources, views
from deeppatch.data.scaling import Sizing
from deeppatch.data.splits import split
from deeppatch.hybrid import semisupervised
from deeppatch.zoo.architectures import ARCHITECTURES
from deeppatch.zoo.classifier import Classifier

pytestmark = pytest.mark.slow  # stages from end to end, each some seconds

LEFT = {"run.json", "weights.safetensors", "history.csv", "metrics.json", "row.csv", "classes.csv"}
SHARED = "--bias B --budget 6 --views 2"
TRAINING = "-e 2 --lr 0.003 --max_batches 2 --pseudo_labels published"
# of the methods that buy labels only, two: what they choose is another, and what relearn does with it is the same
LEARNT = ("none", "gini", "coreset", "ssl-random", "ssl-consistency", "ssl-consistency-imp", "hybrid")
LINES = {
    **{method: f"relearn {SHARED} --method {method} {TRAINING}" for method in LEARNT},
    "hybrid-labels": f"relearn {SHARED} --method hybrid {TRAINING} --use labels",
    "hybrid-unlabelled": f"relearn {SHARED} --method hybrid {TRAINING} --use unlabelled",
}
FOLDERS = {
    name: "relearn-" + name.replace("hybrid-", "hybrid-budget6-views2-") + "-published-biasB"
    if name.startswith("hybrid-") else f"relearn-{name}-budget6-views2-published-biasB" for name in LINES
}  # fmt: skip
SEEDS = {2021: "", 7: "-seed7"}
PAID = {"none": 0, "hybrid-unlabelled": 0}


@pytest.fixture(scope="module")
def repaired(new_bench, waves, tmp_path_factory):
    """A biased model, every method's choice, and every repair, once; tests change nothing."""
    place = tmp_path_factory.mktemp("hybrid")
    bench = new_bench(waves(place / "waves", train=24, test=12), place / "output")
    bench.ran("eval --train --bias B -e 4 --lr 0.1")
    for method in LEARNT:
        bench.ran(f"annotate {SHARED} --method {method}")
    for line in LINES.values():
        bench.ran(line)
    bench.ran("relearn --compare --bias B")
    return bench


@pytest.fixture
def fresh(repaired, tmp_path):
    """A copy of all that, to damage."""
    return repaired.copy(tmp_path / "output")


def row(bench, name: str) -> dict:
    (found,) = pd.read_csv(bench.at(FOLDERS[name]) / "row.csv").to_dict("records")
    return found


@pytest.mark.parametrize("name", LINES)
def test_each_run_leaves_exactly_these_files(repaired, name):
    assert repaired.files(FOLDERS[name]) == LEFT


@pytest.mark.parametrize("name", LINES)
def test_the_headline_is_the_last_epoch_and_before_is_the_fine_tuned_model(repaired, name):
    found, history = row(repaired, name), pd.read_csv(repaired.at(FOLDERS[name]) / "history.csv")
    assert found["last_percent"] == pytest.approx(history["test_percent"].iloc[-1], abs=1e-3)
    assert found["gained_points"] == pytest.approx(found["last_percent"] - found["finetuned_percent"], abs=1e-3)
    assert found["fixed"] - found["broken"] == round(found["gained_points"] * found["test_images"] / 100)
    assert (found["labels_bought"], found["seed"], found["bias"]) == (PAID.get(name, 6), 2021, "B")
    metrics = repaired.json(f"{FOLDERS[name]}/metrics.json")
    assert metrics["test_percent_by_epoch"] == pytest.approx(history["test_percent"].tolist(), abs=1e-3)
    assert sum(each["images"] for each in metrics["classes"]) == found["test_images"] == 9


def test_raw_is_the_accuracy_that_pretrain_measured_and_before_that_of_the_kept_start(repaired):
    (kept,) = (repaired.at("relearn-start")).iterdir()
    model = Classifier(ARCHITECTURES["resnet8"](3), [0.0] * 3, [1.0] * 3)
    model.load_state_dict(safetensors.torch.load_file(kept))
    source = sources.load(f"folder:{repaired.data}", repaired.data, 2021, Sizing(32))
    test = views.clean(split(source, 2021, bias="B").test, 9)
    start = 100 * metrics.accuracy(training.predict(model.eval(), test), test.labels)
    raw = repaired.json("pretrain-biasB/metrics.json")["accuracy_percent"]["clean"]
    assert raw != start, "the two can be told apart"
    for name in LINES:
        found = row(repaired, name)
        assert (found["raw_percent"], found["finetuned_percent"]) == pytest.approx((raw, start), abs=1e-3)


def test_every_run_starts_from_the_same_fine_tuned_model_which_is_trained_once(repaired, fresh, monkeypatch):
    (kept,) = (repaired.at("relearn-start")).iterdir()
    assert len({row(repaired, name)["finetuned_percent"] for name in LINES}) == 1
    base = safetensors.torch.load_file(repaired.at("pretrain-biasB") / "weights.safetensors")
    start = safetensors.torch.load_file(kept)
    assert base.keys() == start.keys()
    assert not torch.equal(base["network.conv1.weight"], start["network.conv1.weight"])
    labels, fit = [], training.fit

    def note(*given, **named):
        labels.append(named["label"])
        return fit(*given, **named)

    monkeypatch.setattr(semisupervised, "fit", note)
    before = fresh.hashes(FOLDERS["gini"])
    fresh.ran(LINES["gini"])
    assert labels == ["relearn"]
    assert fresh.hashes(FOLDERS["gini"]) == before, "found or made, the start is the same"
    for path in (fresh.at("relearn-start")).iterdir():
        path.write_bytes(path.read_bytes()[:-1])
    assert "is damaged; computing it again" in fresh.ran(LINES["gini"]).out
    assert labels == ["relearn", "finetune", "relearn"]
    assert fresh.hashes(FOLDERS["gini"]) == before


@pytest.mark.parametrize("change", ["--seed 7", "-e 3", "--lr 0.02", "-b 16", "--steps 1"])
def test_a_start_of_other_settings_is_another_one(fresh, change):
    before = {path.name for path in (fresh.at("relearn-start")).iterdir()}
    if "seed" in change:
        fresh.ran(f"eval --train --bias B -e 4 --lr 0.1 {change}")
        fresh.ran(f"annotate {SHARED} --method gini {change}")
    fresh.ran(f"{LINES['gini']} {change}")
    assert len({path.name for path in (fresh.at("relearn-start")).iterdir()} - before) == 1


def test_methods_differ_and_the_same_seed_gives_the_same_bytes(repaired, fresh):
    digests = {name: repaired.hashes(FOLDERS[name])["weights.safetensors"] for name in LINES}
    assert len(set(digests.values())) == len(digests)
    for name in ("none", "gini", "ssl-random", "ssl-consistency-imp", "hybrid", "hybrid-labels", "hybrid-unlabelled"):
        before = repaired.hashes(FOLDERS[name])
        fresh.ran(LINES[name])
        assert fresh.hashes(FOLDERS[name]) == before


def test_the_pool_s_entropy_is_followed_where_weights_follow_it(repaired):
    for name in LINES:
        table = pd.read_csv(repaired.at(FOLDERS[name]) / "history.csv")
        weighted = name in ("hybrid", "hybrid-unlabelled")
        assert ("pool_entropy" in table) is weighted, name
        found = row(repaired, name)
        if weighted:
            best = table["pool_entropy"].idxmin()
            assert found["least_entropy_epoch"] == best + 1
            assert found["least_entropy_percent"] == pytest.approx(table["test_percent"][best], abs=1e-3)
        else:
            assert pd.isna(found["least_entropy_epoch"])


def test_what_the_field_cannot_know_is_marked(repaired):
    metrics = repaired.json(f"{FOLDERS['hybrid']}/metrics.json")
    diagnosed = metrics["diagnostics_not_available_in_the_field"]
    assert {"propagated_labels_correct_percent", "own_predictions_correct_on_members_percent"} <= diagnosed.keys()
    assert not diagnosed.keys() & metrics.keys()
    marked = {name for name in row(repaired, "hybrid") if name.startswith("diagnostic_")}
    assert marked == {f"diagnostic_{name}" for name in diagnosed}


def test_every_row_names_the_features_and_the_split(repaired):
    rows = [row(repaired, name) for name in LINES]
    assert {found["features"] for found in rows} == {"penultimate"}
    assert all(pd.isna(found["encoder"]) and pd.isna(found["encoder_epochs"]) for found in rows)
    assert {found["split"] for found in rows} == {"seeded permutation"}
    assert len({found["split_digest"] for found in rows}) == 1


def test_rows_name_the_encoder_and_those_of_different_ones_are_compared_apart(fresh):
    folders = {}
    for epochs in (1, 2):
        chosen = f"{SHARED} --method coreset --features ssl --encoder resnet8 --encoder_epochs {epochs}"
        fresh.ran(f"annotate {chosen}")
        fresh.ran(f"relearn {chosen} {TRAINING}")
        folders[epochs] = f"relearn-coreset-budget6-ssl-encoderresnet8-epochs{epochs}-views2-published-biasB"
        metrics = fresh.json(f"{folders[epochs]}/metrics.json")
        named = {name: metrics[name] for name in ("features", "encoder", "encoder_epochs")}
        assert named == {"features": "ssl", "encoder": "resnet8", "encoder_epochs": epochs}
        (found,) = pd.read_csv(fresh.at(folders[epochs]) / "row.csv").to_dict("records")
        assert named.items() <= found.items()
    said = fresh.ran("relearn --compare --bias B").out
    table = pd.read_csv(fresh.at("relearn-compare-biasB") / "comparison.csv")
    assert len(table) == len(LINES) + 2
    for name in ("features=penultimate", "features=ssl encoder_epochs=1 ", "features=ssl encoder_epochs=2 "):
        assert f"coreset {name}" in said


@pytest.mark.parametrize("name", ["hybrid", "ssl-random", "gini"])
def test_an_interrupted_repair_goes_on_to_the_same_bytes(repaired, fresh, monkeypatch, name):
    line, folder = LINES[name], fresh.at(FOLDERS[name])
    for path in [*folder.iterdir(), *(fresh.at("relearn-start")).iterdir()]:
        path.unlink()
    save, calls = Checkpoint.save, []
    for stop in (1, 2):  # in the warm start, then in the repair

        def interrupted(checkpoint, state):
            save(checkpoint, state)
            calls.append(checkpoint.path.name)
            if len(calls) == stop:  # noqa: B023
                raise KeyboardInterrupt

        calls.clear()
        with monkeypatch.context() as patch:
            patch.setattr(Checkpoint, "save", interrupted)
            assert fresh.run(f"{line} -r").status == 128 + signal.SIGINT
        assert calls[-1] == ("checkpoint-start.pt" if stop == 1 else "checkpoint.pt")
    assert "relearn: resumed after epoch 1" in fresh.ran(f"{line} -r").out
    assert fresh.hashes(FOLDERS[name]) == repaired.hashes(FOLDERS[name])
    assert fresh.files(FOLDERS[name]) == LEFT
    with monkeypatch.context() as patch:
        patch.setattr(training, "train_epoch", lambda *_, **__: pytest.fail("it has finished"))
        assert "finished already" in fresh.ran(f"{line} -r").out


def test_labels_in_rounds_are_chosen_by_repaired_networks_and_a_killed_run_goes_on(fresh, monkeypatch):
    line = f"{SHARED} --method coreset --coreset_start pool --step 4"
    fresh.ran(f"annotate {line}")
    stem = "coreset-budget6-views2-from-pool-step4"
    relearned = f"relearn-{stem}-published-biasB"
    first = safetensors.torch.load_file(fresh.at(f"annotate-{stem}-biasB") / "selection.safetensors")["bought"]
    assert (len(first), first[0]) == (4, 0)
    said = fresh.ran(f"relearn {line} {TRAINING}").out
    assert "round 2 of 2: 6 labels bought" in said
    found = fresh.json(f"{relearned}/metrics.json")
    assert (found["labels_bought"], found["step"], found["coreset_start"]) == (6, 4, "pool")
    before = fresh.hashes(relearned)
    for path in fresh.at(relearned).iterdir():
        path.unlink()
    save = Checkpoint.save

    def interrupted(checkpoint, state):
        save(checkpoint, state)
        assert checkpoint.path.name == "checkpoint-round1.pt"
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Checkpoint, "save", interrupted)
        assert fresh.run(f"relearn {line} {TRAINING} -r").status == 128 + signal.SIGINT
    assert "relearn: resumed after epoch 1" in fresh.ran(f"relearn {line} {TRAINING} -r").out
    assert fresh.hashes(relearned) == before
    assert fresh.files(relearned) == LEFT


def test_the_comparison_has_every_kind_of_run_and_every_seed(fresh):
    for line in ("eval --train --bias B -e 4 --lr 0.1", f"annotate {SHARED} --method gini", LINES["gini"]):
        fresh.ran(f"{line} --seed 7")
    said = fresh.ran("relearn --compare --bias B").out
    folder = fresh.at("relearn-compare-biasB")
    assert fresh.files("relearn-compare-biasB") == {
        "run.json", "runs.csv", "comparison.csv", "comparison.json", "gained.png",
    }  # fmt: skip
    runs = pd.read_csv(folder / "runs.csv").set_index(["method", "use", "seed"])
    assert len(runs) == len(LINES) + 1
    walls = {seed: fresh.json(f"{FOLDERS['gini']}{end}/run.json")["wall_seconds"] for seed, end in SEEDS.items()}
    assert {seed: runs.loc[("gini", "both", seed), "wall_seconds"] for seed in SEEDS} == pytest.approx(walls, rel=1e-4)
    table = pd.read_csv(folder / "comparison.csv").set_index(["method", "use"])
    assert len(table) == len(LINES)
    assert (table.loc[("gini", "both"), "seeds"], table.loc[("hybrid", "both"), "seeds"]) == (2, 1)
    other = fresh.json("relearn-gini-budget6-views2-published-biasB-seed7/metrics.json")
    gains = [row(fresh, "gini")["gained_points"], other["gained_points"]]
    assert table.loc[("gini", "both"), "gained_points"] == pytest.approx(sum(gains) / 2, abs=1e-3)
    assert table.loc[("gini", "both"), "wall_seconds"] == pytest.approx(sum(walls.values()) / 2, rel=1e-4)
    assert json.loads((folder / "comparison.json").read_text())[0].keys() >= {
        "gained_points",
        "gained_points_deviation",
    }
    assert "hybrid use=labels" in said
    with Image.open(io.BytesIO((folder / "gained.png").read_bytes())) as image:
        assert image.format == "PNG"


def test_the_comparison_leaves_out_other_biases_and_what_has_not_finished(fresh):
    (fresh.at(FOLDERS["gini"]) / "run.json").unlink()
    (fresh.at(FOLDERS["hybrid-labels"]) / "run.json").write_text("{")
    fresh.ran("relearn --compare --bias B")
    runs = pd.read_csv(fresh.at("relearn-compare-biasB") / "runs.csv")
    assert len(runs) == len(LINES) - 2
    line = fresh.refused("relearn --compare --bias A")
    assert line.startswith(f"nothing to compare under {fresh.root}; make a run with: python src/relearn.py ")


def test_what_is_missing_is_made_by_the_command_that_the_message_names(fresh):
    line = fresh.refused(f"relearn {SHARED} --method gini --budget 5")
    assert "annotate-gini-budget5-views2-biasB/selection.safetensors is missing; finished runs differ: " in line
    assert fresh.type_in(f"{line.split('; make it with: ')[1]} --device cpu").status == 0
    fresh.ran(f"relearn {SHARED} --method gini --budget 5 -e 1")


def test_a_selection_for_another_model_is_refused(fresh):
    fresh.overwrite_base("pretrain-biasB")
    line = fresh.refused(LINES["gini"])
    assert "make it again with: python src/annotate.py " in line


@pytest.fixture
def field(new_bench, waves, tmp_path):
    """Images of one's own with a pool that nobody has labelled, a model, and what hybrid chose."""
    data = waves(tmp_path / "own", train=12, test=6)
    strangers = waves(tmp_path / "strangers", train=15, test=1, seed=3)
    for file in (strangers / "train").rglob("*.png"):
        (data / "pool").mkdir(exist_ok=True)
        file.rename(data / "pool" / f"{file.parent.name}-{file.name}")
    bench = new_bench(data, tmp_path / "output")
    bench.ran("eval --train -e 4 --lr 0.1")
    bench.ran("annotate --budget 6 --views 2")
    return bench


def test_in_the_field_a_person_fills_in_the_labels(field, tmp_path):
    table, line = field.at("annotate-hybrid-budget6-views2") / "selection.csv", "relearn --budget 6 --views 2"
    said = field.refused(f"{line} {TRAINING}")
    assert said == (
        f"nobody has given the labels yet: label the images in {table.parent / 'contact.html'}, or fill in {table}, "
        "and give the table with --labels FILE"
    )
    chosen = pd.read_csv(table)
    chosen["label"] = [name.split("-")[0] for name in chosen["file"]]
    filled = tmp_path / "filled.csv"
    wrong = pd.concat([chosen[:-1], pd.DataFrame({"file": ["x.png", "y.png"], "label": "class0"})])
    wrong.iloc[:2, wrong.columns.get_loc("label")] = "class9"
    wrong.to_csv(filled, index=False)
    names = chosen["file"].tolist()
    assert field.refused(f"{line} {TRAINING} --labels {filled}") == (
        f"{filled}: 1 of 6 chosen images have no label yet, first {names[-1]}: load the table into annotate's "
        "contact.html and go on, or write (skipped) where no label can be given; "
        f"2 labels name no class of class0, class1, class2, correct them: {names[0]} (class9) (did you mean class2?), "
        f"{names[1]} (class9) (did you mean class2?); "
        "2 labels are of images that were not chosen, delete these rows, or name with --selection the "
        "selection.safetensors that they were given for: x.png, y.png"
    )
    twice = tmp_path / "twice.csv"
    twice.write_text("file;label;Label \n")
    assert (
        field.refused(f"{line} {TRAINING} --labels {twice}") == f"{twice} has 2 columns label; keep the one that counts"
    )
    assert "nowhere.csv: No such file or directory" in field.refused(f"{line} {TRAINING} --labels nowhere.csv")
    filled = table  # in place, as docs/commands.md has it
    chosen.to_csv(filled, index=False, sep=";", encoding="utf-16")  # as a spreadsheet may leave it
    field.ran(f"{line} {TRAINING} --labels {filled}")
    folder = "relearn-hybrid-budget6-views2-published"
    assert field.files(folder) == LEFT
    metrics, bought = (
        field.json(f"{folder}/metrics.json"),
        safetensors.torch.load_file(table.with_suffix(".safetensors")),
    )
    assert metrics["diagnostics_not_available_in_the_field"] == {}
    assert (metrics["labels_bought"], metrics["labelled_images"]) == (6, len(bought["members"]))
    assert metrics["split"] == "the data set's own"
    assert field.json(f"{folder}/run.json")["inputs"][str(filled.relative_to(field.output))]
    first = field.at(f"{folder}/weights.safetensors")
    chosen["label"] = chosen["label"].replace({"class0": "class1", "class1": "class0"})
    chosen.to_csv(filled, index=False)
    assert "finished already" not in field.ran(f"{line} {TRAINING} --labels {filled} -r").out, "other labels"
    both = list(field.root.glob(f"{folder}-*/weights.safetensors"))
    assert len(both) == 2, "other labels, another run"
    assert len({path.read_bytes() for path in both}) == 2
    assert first in both
    said = field.ran("relearn --compare").out
    assert f"left out: {first.parent}/row.csv was made from another {filled}; " in said
    assert len(pd.read_csv(field.at("relearn-compare/runs.csv"))) == 1


def test_images_that_a_person_has_skipped_are_left_out(field, tmp_path):
    table, line = field.at("annotate-hybrid-budget6-views2") / "selection.csv", "relearn --budget 6 --views 2"
    chosen, bought = pd.read_csv(table), safetensors.torch.load_file(table.with_suffix(".safetensors"))
    chosen["label"] = [name.split("-")[0] for name in chosen["file"]]
    chosen.loc[[0, 3], "label"] = "(skipped)"
    filled = tmp_path / "filled.csv"
    chosen.to_csv(filled, index=False)
    said = field.ran(f"{line} {TRAINING} --use labels --labels {filled}").out
    lost = int(((bought["lender"] == 0) | (bought["lender"] == 3)).sum())
    assert "2 of 6 chosen images are skipped: left out of the repair" in said
    assert (f", and {lost - 2} images that would have shared their labels" in said) is (lost > 2)
    metrics = field.json("relearn-hybrid-budget6-views2-labels-published/metrics.json")
    assert (metrics["labels_bought"], metrics["labelled_images"]) == (4, len(bought["members"]) - lost)
    chosen["label"] = "(skipped)"
    chosen.to_csv(filled, index=False)
    assert field.refused(f"{line} {TRAINING} --labels {filled}") == (
        f"{filled}: all 6 images are skipped; label at least one of them"
    )


def test_without_labels_the_field_may_still_guess_and_another_pool_is_told(field):
    line = f"relearn --budget 6 --views 2 {TRAINING} --use unlabelled"
    field.ran(line)
    assert field.json("relearn-hybrid-budget6-views2-unlabelled-published/metrics.json")["labels_bought"] == 0
    gone = next((field.data / "pool").iterdir())
    gone.unlink()
    said = field.ran(f"{line} -r").out
    assert "finished already" not in said
    assert f"{field.data / 'pool'} is not as it was when annotate chose: 1 gone ({gone.name}); images are found" in said


@pytest.mark.parametrize(
    ("line", "said"),
    [
        ("-e 0 --steps 0", "--epochs 0: give at least 1; --max_batches 0: give at least 1"),
        ("--pseudo_labels published --ramp -1", "--ramp -1: give 0 or more"),
        ("--lr 0", "--lr 0.0: give a number above 0"),
        ("--pseudo_labels published --method gini --use unlabelled", "--method gini reads no unlabelled images"),
        ("--use unlabelled --labels x.csv", "--labels can only be used with --use both or labels; --labels"),
        ("--tau 2", "2: give auto, mean, or a number from 0 to 1"),
        ("--method gini --tau mean --cluster_size 3", "--tau mean can only be used with --method hybrid; --cluste"),
        ("--cluster_size 0 --rounds 0", "--cluster_size 0: give at least 1; --rounds 0: give at least 1"),
        ("--step 0", "--step 0: give at least 1"),
        ("--rounds 2 --step 2", "--rounds and --step exclude each other"),
        ("--rounds 2 --use unlabelled", "--use unlabelled buys no labels: leave --rounds and --step out"),
        ("--rounds 7", "--rounds 7: give at most the 6 labels of --budget"),
        ("--coreset_start pool", "--coreset_start pool can only be used with --method coreset"),
        ("--pseudo_labels published --method mcp --pool_weights equal", "equal can only be used with --method hybrid"),
        ("--pseudo_labels published --pseudo_weight -1", "--pseudo_weight -1.0: give 0 or more"),
        ("--pseudo_weight 3", "--ramp, --pseudo_weight and --pool_weights can only be used with"),
        ("--features sll", "invalid choice: sll; choose from penultimate, ssl, or give a checkpoint"),
        ("--features file", "--features file: name the checkpoint with --features_file"),
        ("--features nowhere.pt", "nowhere.pt: No such file or directory"),
        ("--method nonsense", "nonsense"),
        ("--use some", "some"),
    ],
)  # fmt: skip
def test_a_mistake_is_one_line(fresh, line, said):
    assert said in fresh.refused(f"relearn {SHARED} {line}")


@pytest.mark.parametrize(
    ("ours", "own", "spread", "said"),
    [
        (
            60.0,
            70.0,
            9,
            "propagated labels: 60.00 % correct, NO BETTER than the model's own 70.00 % on the same images",
        ),
        (70.0, 70.0, 9, "NO BETTER"),
        (70.0, 60.0, 9, "70.00 % correct, better than the model's own 60.00 %"),
        (60.0, 70.0, 5, None),
        (None, None, 9, None),
    ],
)
def test_labels_that_are_no_better_than_the_model_s_own_are_told(caplog, ours, own, spread, said):
    caplog.set_level(logging.INFO, "deeppatch")
    row = {"raw_percent": 1.0, "finetuned_percent": 2.0, "last_percent": 3.0, "gained_points": 1.0, "fixed": 2,
           "broken": 1, "labels_bought": 5, "labelled_images": spread}  # fmt: skip
    report.summarize(row, {
        "propagated_labels_correct_percent": ours, "own_predictions_correct_on_members_percent": own,
    })  # fmt: skip
    out = caplog.text
    assert (said in out) if said else ("propagated" not in out)
