from __future__ import annotations

import shutil

import pytest
import torch

from deeppatch import training
from deeppatch.artifacts import Checkpoint
from deeppatch.localization import ratio_estimation, scoring_run
from deeppatch.patching import training as patch_training
from deeppatch.stage import Stage

pytestmark = pytest.mark.slow  # stages from end to end, each some seconds

# what each stage needs; those that the chain of all tests does not run have a command of their own
NEEDED = {
    "pretrain": ["none"],
    "assess-perfloss": ["pretrain"],
    "assess-featswap": ["pretrain"],
    "assess-perfloss-race1e-06": ["pretrain"],
    "assess-activation-refine8": ["pretrain"],
    "correct-patch-replace-perfloss": ["pretrain", "assess-perfloss"],
    "correct-patch-crtunit-featswap-ratio0.5-rear": ["pretrain", "assess-featswap"],
    "correct-finetune": ["pretrain"],
}
OWN = {
    "assess-perfloss-race1e-06": "select -f perfloss --race 1e-6",
    "assess-activation-refine8": "select -f activation --refine 8",
}
TUNE = "correct -c finetune --crt_epoch 3 --lr 0.1"


class Killed(BaseException):
    """No part of the package catches it."""


@pytest.mark.parametrize(
    "stage",
    [pytest.param(name, marks=pytest.mark.slow) if name == "assess-perfloss-race1e-06" else name for name in NEEDED],
)
def test_a_stage_stopped_in_the_middle_goes_on_to_the_same_bytes(chain, chain_lines, tmp_path, monkeypatch, stage):
    bench, line = chain.copy(tmp_path / "stopped", *NEEDED[stage]), chain_lines.get(stage) or OWN[stage]
    save, saved = Checkpoint.save, []

    def save_and_stop(self, state):
        save(self, state)
        saved.append(1)
        if len(saved) == 2:
            raise Killed

    with monkeypatch.context() as patch:
        patch.setattr(scoring_run, "at_most_once_a_second", lambda save: lambda _state: save())
        patch.setattr(Checkpoint, "save", save_and_stop)
        with pytest.raises(Killed):
            bench.run(line)
    assert left_by(bench, stage) == {"checkpoint.pt"}
    said = bench.ran(f"{line} -r").out
    assert stage.startswith("assess") or "resumed after epoch 2" in said
    whole = chain if stage in chain_lines else chain.copy(tmp_path / "whole", *NEEDED[stage])
    if whole is not chain:
        whole.ran(line)
    assert bench.hashes(stage) == whole.hashes(stage)
    assert bench.files(stage) == whole.files(stage)


def test_filters_that_were_counted_are_not_counted_again(pretrained, chain, monkeypatch):
    bench, stage = pretrained, "assess-perfloss"
    saved, save = [], Checkpoint.save

    def note(self, state):
        save(self, state)
        saved.append((state["batches"], sum(map(len, state["current"].values()))))
        if len(saved) == stop:
            raise KeyboardInterrupt

    monkeypatch.setattr(scoring_run, "at_most_once_a_second", lambda save: lambda _counts: save())
    monkeypatch.setattr(Checkpoint, "save", note)
    stop = 500
    assert bench.run("select -f perfloss").status == 130
    stop = 0
    bench.ran("select -f perfloss -r")
    filters = saved.index((1, 1))
    assert filters < 500, "stopped in the second batch or behind it"
    assert saved == [(place // filters, place % filters + 1) for place in range(len(saved))]
    assert len(saved) % filters == 0
    assert bench.hashes(stage) == chain.hashes(stage), "larger batches, the same scores"


@pytest.mark.parametrize("writes", range(4))
def test_a_stop_between_the_last_writes_is_mended_too(pretrained, monkeypatch, writes):
    pretrained.ran(TUNE)
    whole, files = pretrained.hashes("correct-finetune"), pretrained.files("correct-finetune")
    clear(pretrained, "correct-finetune")
    left, write, finish = [writes], Stage.write, Stage.finish

    def count_down():
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "write", lambda self, *given: (count_down(), write(self, *given))[1])
        patch.setattr(Stage, "finish", lambda self: (count_down(), finish(self))[1])
        assert pretrained.run(TUNE).status == 130
    assert len(left_by(pretrained, "correct-finetune")) == writes + 1
    assert "checkpoint.pt" in left_by(pretrained, "correct-finetune")
    assert "make it with: python src/correct.py" in pretrained.refused("eval --state corrected -c finetune")
    pretrained.ran(f"{TUNE} -r")
    assert pretrained.hashes("correct-finetune") == whole
    assert pretrained.files("correct-finetune") == files


@pytest.mark.parametrize(
    "stage",
    ["pretrain", "assess-featswap", "correct-patch-replace-perfloss", "correct-finetune",
     "switch-patch-replace-perfloss-probe"],
)  # fmt: skip
def test_resuming_what_has_finished_does_nothing_and_says_so(bench, chain_lines, stage):
    before = {path: path.stat().st_mtime_ns for path in bench.root.rglob("*")}
    said = bench.ran(f"{chain_lines[stage]} -r").out
    assert said.splitlines()[-1] == (
        f"[info] finished already: {bench.at(stage)}; run without -r to do it again"
    )  # fmt: skip
    assert {path: path.stat().st_mtime_ns for path in bench.root.rglob("*")} == before


@pytest.mark.parametrize("change", ["--lr 0.2", "-b 8 --crt_epoch 4"])
def test_other_settings_have_a_place_of_their_own_where_an_interrupted_run_keeps_its(pretrained, change):
    interrupt(pretrained, TUNE)
    path = pretrained.unfinished("correct-finetune") / "checkpoint.pt"
    content = path.read_bytes()
    assert "resumed" not in pretrained.ran(f"{TUNE} {change} -r").out
    assert path.read_bytes() == content
    assert "resumed after epoch 1" in pretrained.ran(f"{TUNE} -r").out


def test_another_base_has_a_place_of_its_own(pretrained):
    interrupt(pretrained, TUNE)
    pretrained.overwrite_base()
    assert "resumed" not in pretrained.ran(f"{TUNE} -r").out


def test_finished_from_other_inputs_is_not_finished(bench):
    bench.ran(TUNE)
    bench.overwrite_base()
    assert "finished already" not in bench.ran(f"{TUNE} -r").out


def test_resuming_where_nothing_was_begun_begins(pretrained):
    pretrained.ran(f"{TUNE} -r")
    resumed = pretrained.hashes("correct-finetune")
    pretrained.ran(TUNE)
    assert pretrained.hashes("correct-finetune") == resumed


def test_without_r_an_interrupted_run_starts_anew(pretrained):
    interrupt(pretrained, TUNE)
    said = pretrained.ran(TUNE).out
    assert "resumed" not in said
    assert "finetune, epoch 1: loss" in said
    assert not pretrained.unfinished("correct-finetune").exists()


@pytest.mark.parametrize("left", [0, 1, 50, 5000])
def test_a_damaged_checkpoint_is_one_line(pretrained, left):
    interrupt(pretrained, TUNE)
    path = pretrained.unfinished("correct-finetune") / "checkpoint.pt"
    path.write_bytes(path.read_bytes()[:left])
    assert pretrained.refused(f"{TUNE} -r") == f"{path} is damaged; delete it and run without -r"


@pytest.mark.parametrize("content", ["junk", "list", "dict"])
def test_a_checkpoint_that_is_none_is_one_line(pretrained, content):
    interrupt(pretrained, TUNE)
    path = pretrained.unfinished("correct-finetune") / "checkpoint.pt"
    if content in ("list", "dict"):
        torch.save([] if content == "list" else {}, path)
    else:
        path.write_bytes(b"junk")
    assert pretrained.refused(f"{TUNE} -r") == f"{path} is damaged; delete it and run without -r"


@pytest.mark.parametrize("how", ["deleted", "damaged"])
def test_what_has_finished_and_was_lost_since_is_made_again(bench, chain, chain_lines, how):
    path = bench.at("pretrain") / "weights.safetensors"
    if how == "deleted":
        path.unlink()
    else:
        path.write_bytes(path.read_bytes()[:999])
    bench.ran(f"{chain_lines['pretrain']} -r")
    assert bench.hashes("pretrain") == chain.hashes("pretrain")


@pytest.mark.parametrize("content", ["[]", "null"])
def test_a_record_that_is_none_is_no_finished_run(pretrained, chain, chain_lines, content):
    (pretrained.at("pretrain") / "run.json").write_text(content)
    pretrained.ran(f"{chain_lines['pretrain']} -r")
    assert pretrained.hashes("pretrain") == chain.hashes("pretrain")


def test_a_file_half_written_when_killed_does_not_stay(pretrained, monkeypatch):
    interrupt(pretrained, TUNE)
    files = {"history.csv", "metrics.json", "run.json", "weights.safetensors"}
    (pretrained.unfinished("correct-finetune") / ".checkpoint.pt.1-2.partial").write_bytes(b"half")
    pretrained.ran(f"{TUNE} -r")
    assert pretrained.files("correct-finetune") == files


def test_a_run_over_a_finished_one_stopped_half_way_leaves_that_as_it_was(pretrained, chain_lines, monkeypatch):
    write, before = Stage.write, pretrained.hashes("pretrain")

    def stop_after_weights(self, name, content):
        write(self, name, content)
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(Stage, "write", stop_after_weights)
        assert pretrained.run(chain_lines["pretrain"]).status == 130
    assert pretrained.hashes("pretrain") == before
    pretrained.ran("select -f activation")


@pytest.mark.parametrize(
    "kind",
    [
        "replace",
        "crtunit",
    ],
)
def test_ratio_estimation_stopped_between_two_ratios_trains_the_same_patches(pretrained, monkeypatch, kind):
    monkeypatch.setattr(ratio_estimation, "RATIOS", (0.25, 0.5))
    line = f"select -f ratioestim --crt_epoch 1 --lr 0.2 --crt_type {kind}"
    patches, train = [], patch_training.train_patch

    def note(*given, **options):
        patches.append((patch := train(*given, **options)).to_bytes())
        return patch

    def stop_at_second(*given, **options):
        if patches:
            raise KeyboardInterrupt
        return note(*given, **options)

    monkeypatch.setattr(patch_training, "train_patch", note)
    pretrained.ran(line)
    whole, hashes = list(patches), pretrained.hashes()
    patches.clear()
    clear(pretrained, "assess-ratioestim" + ("-crtunit" if kind == "crtunit" else ""))
    monkeypatch.setattr(patch_training, "train_patch", stop_at_second)
    assert pretrained.run(line).status == 130
    monkeypatch.setattr(patch_training, "train_patch", note)
    pretrained.ran(f"{line} -r")
    assert patches == whole
    assert pretrained.hashes() == hashes


def test_ratio_estimation_stopped_within_a_ratio_goes_on(pretrained, monkeypatch):
    monkeypatch.setattr(ratio_estimation, "RATIOS", (0.25, 0.5))
    line = "select -f ratioestim --crt_epoch 3 --lr 0.2 --crt_type crtunit"
    pretrained.ran(line)
    whole = pretrained.hashes()
    clear(pretrained, "assess-ratioestim-crtunit")
    interrupt(pretrained, line, epochs=2)
    assert left_by(pretrained, "assess-ratioestim-crtunit") == {"checkpoint-84-filters.pt"}
    assert "patch: resumed after epoch 2" in pretrained.ran(f"{line} -r").out
    assert pretrained.hashes() == whole


def left_by(bench, stage: str) -> set[str]:
    """Return the files that an unfinished run has left."""
    return {path.name for path in bench.unfinished(stage).iterdir()}


def clear(bench, stage: str) -> None:
    """Delete what a stage left."""
    shutil.rmtree(bench.at(stage))


def interrupt(bench, line: str, epochs: int = 1) -> None:
    """Run a training stage and stop it after its first epochs, as Ctrl-C does."""
    left, train_epoch = [epochs], training.train_epoch

    def count_down(*given, **options):
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return train_epoch(*given, **options)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(training, "train_epoch", count_down)
        assert bench.run(line).status == 130
