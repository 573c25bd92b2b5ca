"""--splits FILE: the three stages of HybridRepair take the train and val images that a file names."""

from __future__ import annotations

import numpy as np
import pytest

from deeppatch.data import biased_split

BIASED = "--bias B --splits {file} --limit 20"


@pytest.fixture(scope="module")
def trained(tmp_path_factory, waves, new_bench):
    """A model that was trained on the split of a file, and the file."""
    place = tmp_path_factory.mktemp("splits")
    bench = new_bench(waves(place / "waves", train=40, test=20), place / "output")
    file = place / "own.npz"
    np.savez(file, B_train=np.arange(40)[::-2], B_val=np.arange(9))
    bench.ran(f"eval -e 1 --train {BIASED.format(file=file)}")
    return bench, file


def test_the_stages_take_the_images_of_the_file_and_find_each_other(trained):
    bench, file = trained
    (folder,) = bench.root.glob("pretrain-biasB-splits??????-limit20*")
    path = folder / "split.safetensors"
    parts = biased_split.partition_from_bytes(path.read_bytes(), path)
    assert (len(parts.train), len(parts.val)) == (20, 9)
    assert str(file) in bench.json(f"{folder.name}/run.json")["inputs"]
    choice = f"{BIASED.format(file=file)} --method mcp --budget 3 --views 2"
    said = bench.ran(f"annotate {choice}").out
    assert f"inherited {folder}/weights.safetensors" in said
    bench.ran(f"relearn {choice} -e 1 --steps 1")
    assert len([*bench.root.glob("relearn-mcp-budget3-views2-biasB-splits??????-limit20*/row.csv")]) == 1
    bench.ran(f"relearn {choice} --compare")
    (runs,) = bench.root.glob("relearn-compare-biasB-splits??????-limit20*/runs.csv")
    assert len(runs.read_text().splitlines()) == 2
    assert "nothing to compare" in bench.refused("relearn --bias B --limit 20 --compare")


def test_another_file_and_a_drawn_split_are_other_runs(trained, tmp_path):
    bench, file = trained
    other = tmp_path / "other.npz"
    np.savez(other, B_train=np.arange(30), B_val=np.arange(9))
    choice = "--method mcp --budget 3 --views 2"
    for line in (f"--bias B --limit 20 {choice}", f"{BIASED.format(file=other)} {choice}"):
        said = bench.refused(f"annotate {line}")
        assert "weights.safetensors is missing; finished runs differ: pretrain-biasB-splits" in said
        assert "split_digest" in said
    assert f"--bias B --splits {other} " in said
    same = tmp_path / "same.npz"  # a file counts by content, not by path
    same.write_bytes(file.read_bytes())
    assert "inherited" in bench.ran(f"annotate {BIASED.format(file=same)} {choice}").out


@pytest.mark.parametrize(
    ("arrays", "options", "said"),
    [
        ({"A_train": [1], "A_val": [1]}, "--bias B", "has no B_train: its arrays are A_train, A_val"),
        ({"B_train": [1, 99], "B_val": [1]}, "--bias B", "B_train has index 99, and the slice for train has "),
        ({"B_train": [1, 1], "B_val": [1]}, "--bias B", "B_train has index 1 2 times"),
        ({"B_train": [1], "B_val": [1]}, "", "--splits says which images --bias takes: give --bias too"),
    ],
)
def test_a_bad_file_is_one_line(trained, tmp_path, arrays, options, said):
    bench, _ = trained
    np.savez(tmp_path / "bad.npz", **arrays)
    assert said in bench.refused(f"eval -e 1 --train {options} --splits {tmp_path / 'bad.npz'}")


def test_a_file_that_is_cut_off_or_absent_is_one_line(trained, tmp_path):
    bench, file = trained
    (tmp_path / "cut.npz").write_bytes(file.read_bytes()[:200])
    assert "cut.npz is damaged" in bench.refused(f"eval -e 1 --train --bias B --splits {tmp_path / 'cut.npz'}")
    said = bench.refused(f"eval -e 1 --train --bias B --splits {tmp_path / 'none.npz'}")
    assert "none.npz: No such file or directory; check the path" in said
