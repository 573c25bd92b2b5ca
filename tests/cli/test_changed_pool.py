"""What people have labelled is kept: in a pool that has changed since, and where annotate chooses anew."""

from __future__ import annotations

from dataclasses import replace
from types import SimpleNamespace

import pandas as pd
import pytest
import torch
from PIL import Image

from deeppatch.cli.annotate.report import PAGE, keep_earlier
from deeppatch.cli.relearn.changed_pool import in_present_pool, pool_of_selection
from deeppatch.cli.relearn.inputs import no_labels_yet
from deeppatch.data.label_file import table_to_bytes
from deeppatch.data.pool import Pool, folder_pool
from deeppatch.data.scaling import Scaling
from deeppatch.errors import StaleArtifact, UserError
from deeppatch.hybrid.selection import Selection
from deeppatch.report.labelling_page import Task, labelling_page

NAMES = [f"day/{letter}.png" for letter in "abcdef"]
SELECTION = Selection(
    torch.tensor([4, 1]), torch.tensor([7, 8]), torch.tensor([1, 4, 3, 0]), torch.tensor([1, 0, 0, 1]),
    torch.tensor([0, 2, 5]), torch.tensor([0.1, 0.2, 0.5]), {"method": "hybrid"},
)  # fmt: skip


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "pool/day").mkdir(parents=True)
    for number, name in enumerate(NAMES):
        Image.new("RGB", (4, 4), (number, 0, 0)).save(tmp_path / "pool" / name)
    return tmp_path / "pool"


def pool_in(folder, **named) -> Pool:
    return folder_pool(folder, Scaling(4, 4), torch.device("cpu"), **named)


def chosen_from(pool: Pool) -> Selection:
    return replace(SELECTION, facts={"pool_digest": pool.digest, "pool": len(pool), "files": pool.files})


def moved(found: Selection, pool: Pool, *, needed: bool = True) -> Selection:
    return in_present_pool(found, pool_of_selection(found, pool, pool.folder, "annotate"), pool, needed=needed)


def by_name(found: Selection, pool: Pool) -> dict[str, dict[str, float]]:
    """Each image of a selection by its name: labels, and weights."""
    names = pool.names
    pairs = {
        "bought": (found.bought, found.labels),
        "members": (found.members, found.member_labels),
        "unlabelled": (found.unlabelled, found.weights),
    }
    return {
        part: {names[place]: value for place, value in zip(places.tolist(), values.tolist(), strict=True)}
        for part, (places, values) in pairs.items()
    }


def test_images_are_found_by_name_where_others_are_gone_new_or_changed(folder, caplog):
    caplog.set_level("INFO", "deeppatch")
    pool = pool_in(folder)
    found = chosen_from(pool)
    assert pool_of_selection(found, pool, folder, "annotate") == [[name, ""] for name in NAMES]
    before = by_name(found, pool)
    (folder / NAMES[0]).unlink()  # a member, and unlabelled
    Image.new("RGB", (4, 4), (0, 99, 0)).save(folder / NAMES[5])  # unlabelled
    Image.new("RGB", (4, 4)).save(folder / "aa.png")
    now = pool_in(folder)
    after = by_name(moved(found, now), now)
    gone = {NAMES[0], NAMES[5]}
    assert after == {
        part: {name: value for name, value in each.items() if name not in gone} for part, each in before.items()
    }
    assert "is not as it was when annotate chose: 1 gone (day/a.png), 1 changed (day/f.png), 1 new (aa.png)" in (
        caplog.text
    )
    assert moved(found, now).facts["pool_digest"] == now.digest


def test_what_was_chosen_must_be_there_as_it_was_or_be_skipped_and_is_named(folder):
    pool = pool_in(folder)
    found = chosen_from(pool)
    (folder / NAMES[4]).unlink()
    Image.new("RGB", (4, 4), (0, 99, 0)).save(folder / NAMES[1])
    now = pool_in(folder)
    with pytest.raises(UserError) as error:
        moved(found, now)
    assert str(error.value) == (
        f"of the images that were chosen in {folder}, 1 gone (day/e.png), 1 changed (day/b.png): put back what it "
        "was, or write (skipped) as the label; annotate need not be run again"
    )
    skipped = found.with_answers(torch.tensor([-1, -1]))
    assert len(moved(skipped, now).bought) == 0
    guessing = moved(found, now, needed=False)
    assert (len(guessing.bought), by_name(guessing, now)["unlabelled"].keys()) == (0, {NAMES[0], NAMES[2], NAMES[5]})
    with pytest.raises(UserError, match=r"left out by --limit \(day/"):
        moved(found, pool_in(folder, limit=1))


def test_a_selection_that_names_no_files_is_refused_without_the_advice_to_choose_over_it(folder):
    pool = pool_in(folder)
    old = replace(SELECTION, facts={"pool_digest": "another", "pool": 6})
    for facts in ({}, {"files": [["a"]] * 6}, {"files": "damaged"}, {"files": [["a", "b"]] * 5}):
        with pytest.raises(StaleArtifact, match=rf"put {folder} back as it was, so that labels that were given count"):
            pool_of_selection(replace(old, facts={**old.facts, **facts}), pool, folder, "python src/annotate.py")
    simulated = replace(pool, folder=None)
    with pytest.raises(StaleArtifact, match="make it again with: python src/annotate.py"):
        pool_of_selection(old, simulated, folder, "python src/annotate.py")


def test_a_choice_that_asks_for_other_labels_takes_no_place(tmp_path, caplog):
    caplog.set_level("INFO", "deeppatch")
    folder = tmp_path / "annotate-hybrid"
    context = SimpleNamespace(stage=SimpleNamespace(folder=folder, writes=True))

    def task(names, pool="1") -> Task:
        return Task("", pd.DataFrame({"file": names, "label": ""}), ["cat", "dog"], pool, "")

    keep_earlier(context, task(NAMES))  # there is none
    folder.mkdir()
    (folder / PAGE).write_bytes(labelling_page(task(NAMES), [], []))
    keep_earlier(context, task(NAMES))
    assert folder.exists(), "the same images of the same pool: a browser keeps the labels for both"
    for number, other in enumerate((task(NAMES[:2]), task(NAMES, "2")), 1):
        folder.mkdir(exist_ok=True)
        (folder / PAGE).write_bytes(labelling_page(task(NAMES), [], []))
        keep_earlier(context, other)
        assert not folder.exists()
        assert (tmp_path / f"annotate-hybrid-earlier{number}" / PAGE).exists()
    assert f"--selection {tmp_path}/annotate-hybrid-earlier2/selection.safetensors --labels FILE" in caplog.text


def test_a_table_that_is_filled_in_where_annotate_left_it_is_named(tmp_path):
    table = tmp_path / "my selection.csv"
    assert no_labels_yet(table, 2).startswith(
        f"nobody has given the labels yet: label the images in {tmp_path / PAGE}, or"
    )
    for labels, said in (
        (["", ""], "nobody has given the labels yet"),
        (["cat", ""], f"{table} holds 1 labels of 2: load it into {tmp_path / PAGE} and go on"),
        (["cat", "dog"], f"{table} holds 2 labels, and relearn reads them with: --labels '{table}'"),
    ):
        table.write_bytes(table_to_bytes(pd.DataFrame({"file": NAMES[:2], "label": labels})))
        assert no_labels_yet(table, 2).startswith(said)
