"""Sets of features: the published form and what is wrong with a file, membership, overlap, and sets from gates."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from deeppatch.decomposition.index_sets import common_features, from_gates, membership, overlap, parse, to_json
from deeppatch.errors import UserError

FILE = Path("some/where.json")
CLASSES, WIDTH = 3, 8
SOUND = {"0": [0, 7], "1": [5, 2], "2": [0, 1]}


def drawn(seed: int, classes: int, k: int, width: int) -> torch.Tensor:
    draw = torch.Generator().manual_seed(seed)
    return torch.stack([torch.randperm(width, generator=draw)[:k] for _ in range(classes)])


# --- files


@pytest.mark.parametrize(("classes", "k", "width"), [(1, 1, 1), (5, 3, 12), (100, 64, 64)])
def test_a_set_survives_being_written_and_read(classes, k, width):
    indices = drawn(1, classes, k, width)
    found = parse(to_json(indices), FILE, classes, width)
    assert torch.equal(found, indices), "in order, the most influential first"
    assert found.dtype == torch.int64


def test_the_published_form_is_class_to_features():
    content = to_json(torch.tensor(list(SOUND.values())))
    assert content == b'{"0": [0, 7], "1": [5, 2], "2": [0, 1]}\n'
    assert json.loads(content) == SOUND


def test_the_order_of_classes_in_a_file_does_not_matter():
    shuffled = {label: SOUND[label] for label in ("2", "0", "1")}
    assert parse(json.dumps(shuffled).encode(), FILE, CLASSES, WIDTH).tolist() == list(SOUND.values())


def sets(**changed: object) -> bytes:
    """A sound file but for the classes given as c0, c1, ...; None leaves a class out."""
    rows = SOUND | {name.removeprefix("c"): row for name, row in changed.items()}
    return json.dumps({label: row for label, row in rows.items() if row is not None}).encode()


PROBLEMS = {
    "nothing": (b"", "is not JSON"),
    "text": (b"class 0: 1, 2", "is not JSON"),
    "cut short": (sets()[:-3], "is not JSON"),
    "no text": (b"\xff\xfe\x00\x80", "is not JSON"),
    "a list": (b"[[0, 7], [5, 2], [0, 1]]", "is not of the form {class: [features]}"),
    "a number": (b"3", "is not of the form {class: [features]}"),
    "no lists": (sets(c1=5), "is not of the form {class: [features]}"),
    "sets in sets": (sets(c1={"5": 2}), "is not of the form {class: [features]}"),
    "a class too few": (sets(c2=None), "has 2 classes (0, 1), the data set has 3 (0 to 2)"),
    "a class too many": (sets(c3=[1, 2]), "has 4 classes (0, 1, 2, 3), the data set has 3 (0 to 2)"),
    "many classes": (sets(**{f"c{n}": [1, 2] for n in range(10)}), "has 10 classes (0, 1, 2, 3, ...)"),
    "class by name": (sets(c2=None, cat=[0, 1]), "has 3 classes (0, 1, at), the data set has 3 (0 to 2)"),
    "no class": (b"{}", "has 0 classes"),
    "too high": (sets(c1=[5, 8]), "class 1 names 8, the network's features are 0 to 7"),
    "negative": (sets(c1=[5, -1]), "class 1 names -1, the network's features are 0 to 7"),
    "a truth": (sets(c1=[5, True]), "class 1 names True, the network's features are 0 to 7"),
    "a fraction": (sets(c1=[5, 2.5]), "class 1 names 2.5, the network's features are 0 to 7"),
    "a whole float": (sets(c1=[5, 2.0]), "class 1 names 2.0, the network's features are 0 to 7"),
    "a word": (sets(c1=[5, "2"]), "class 1 names '2', the network's features are 0 to 7"),
    "null": (sets(c1=[5, None]), "class 1 names None, the network's features are 0 to 7"),
    "no number": (sets(c1=[5, float("nan")]), "is not JSON; give a file of the form {class: [features]}"),
    "nested": (sets(c1=[[5, 2]]), "class 1 names [5, 2], the network's features are 0 to 7"),
    "twice": (sets(c2=[6, 6]), "class 2 names feature 6 more than once"),
    "unequal": (sets(c1=[5]), "classes have 1, 2 features; give every class the same number"),
    "one empty": (sets(c1=[]), "classes have 0, 2 features"),
    "all empty": (sets(c0=[], c1=[], c2=[]), "classes have 0 features"),
}


@pytest.mark.parametrize(("content", "problem"), PROBLEMS.values(), ids=PROBLEMS.keys())
def test_what_is_wrong_with_a_file_is_one_line_that_names_it(content, problem):
    with pytest.raises(UserError) as error:
        parse(content, FILE, CLASSES, WIDTH)
    message = str(error.value)
    assert message.startswith(str(FILE))
    assert problem in message
    assert "\n" not in message
    assert message.count("; ") == 1, "it says what to do"


def test_the_file_that_the_problems_are_made_from_is_sound():
    assert parse(sets(), FILE, CLASSES, WIDTH).tolist() == list(SOUND.values())


# --- sets


@pytest.mark.parametrize("k", [1, 4, 12])
def test_membership_says_which_features_a_class_has(k):
    indices = drawn(2, 5, k, 12)
    found = membership(indices, 12)
    assert (found.dtype, found.shape) == (torch.bool, (5, 12))
    assert [set(row.nonzero().flatten().tolist()) for row in found] == [set(row) for row in indices.tolist()]


@pytest.mark.parametrize(("k", "other_k"), [(1, 1), (4, 4), (3, 7), (12, 5)])
def test_overlap_is_the_size_of_each_intersection(k, other_k):
    one, other = drawn(3, 5, k, 12), drawn(4, 5, other_k, 12)
    found = overlap(one, other, 12)
    want = [[len(set(a) & set(b)) for b in other.tolist()] for a in one.tolist()]
    assert found.tolist() == want
    assert found.dtype == torch.int64
    assert len({count for row in want for count in row}) > 1 or k == 12
    assert common_features(one, other, 12).tolist() == [row[label] for label, row in enumerate(want)]


@pytest.mark.parametrize("highest", [True, False])
@pytest.mark.parametrize("k", [1, 3, 12])
@pytest.mark.parametrize("levels", [3, 1000])
def test_gates_give_the_highest_or_lowest_features_of_each_class(highest, k, levels):
    gates = torch.randint(0, levels, (5, 12), generator=torch.Generator().manual_seed(6)) / levels
    before = gates.clone()
    sign = -1 if highest else 1
    want = [sorted(range(12), key=lambda place: (sign * row[place], place))[:k] for row in gates.tolist()]
    assert from_gates(gates, k, highest=highest).tolist() == want
    assert torch.equal(gates, before)


def test_equal_gates_go_by_index():
    assert from_gates(torch.full((2, 40), 0.5), 3, highest=True).tolist() == [[0, 1, 2]] * 2
    assert from_gates(torch.full((2, 40), 0.5), 3, highest=False).tolist() == [[0, 1, 2]] * 2
