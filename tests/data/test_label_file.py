from __future__ import annotations

from pathlib import Path

import pytest

from deeppatch.data.label_file import count_labels, read_labels
from deeppatch.errors import Contradictions, UserError

FILES = ["a.png", "sub/b, c.png", "d.png"]
CLASSES = ("cat", "dog")
PLACE = Path("labels.csv")


def table(*rows: str, heading: str = "file,reason,label") -> bytes:
    return "\n".join([heading, *rows, ""]).encode()


def read(content: bytes) -> list[int]:
    return read_labels(content, PLACE, FILES, CLASSES).tolist()


GOOD = ['d.png,"far, away",dog', "a.png,x, cat ", '"sub/b, c.png",,dog']


def test_labels_come_in_the_order_of_the_choice_whatever_that_of_the_rows():
    assert read(table(*GOOD)) == [0, 1, 1]
    assert count_labels(table(*GOOD), PLACE) == 3


@pytest.mark.parametrize(
    "content",
    [
        table(*GOOD).replace(b"\n", b"\r\n"),
        b"\xef\xbb\xbf" + table(*GOOD),
        table("d.png;far, away;dog", "a.png;;cat", "sub/b, c.png;;dog", heading="file;reason;label"),
        table("d.png\t\tdog", "a.png\t\tcat", "sub/b, c.png\t\tdog", heading="file\treason\tlabel"),
        table("dog,d.png", "cat,a.png", 'dog,"sub/b, c.png"', heading="label,file"),
    ],
    ids=["Windows", "marked UTF-8", "semicolons", "tabs", "other columns"],
)
def test_what_spreadsheets_make_of_it_is_read_too(content):
    assert read(content) == [0, 1, 1]


def test_rows_without_a_label_for_images_that_were_not_chosen_do_no_harm():
    assert read(table(*GOOD, "other.png,,")) == [0, 1, 1]


def test_all_that_is_wrong_is_said_at_once():
    content = table("a.png,,bird", "z.png,,dog", "d.png,,", "a.png,,bird")
    with pytest.raises(Contradictions) as error:
        read(content)
    assert str(error.value).split("; ") == [
        "labels.csv: 2 chosen images have no label: sub/b, c.png, d.png",
        "1 labels name no class of cat, dog: a.png (bird)",
        "1 labels are of images that were not chosen: z.png",
        "1 images are there more than once: a.png",
    ]


def test_a_long_list_is_told_whole():
    files, strangers = ([f"{kind}{number}.png" for number in range(300)] for kind in ("own", "other"))
    content = table(*(f"{name},,bird" for name in files[::2]), *(f"{name},,dog" for name in strangers))
    with pytest.raises(Contradictions) as error:
        read_labels(content, PLACE, files, CLASSES)
    missing, unknown, surplus = str(error.value).split("; ")
    assert missing == f"labels.csv: 150 chosen images have no label: {', '.join(files[1::2])}"
    assert unknown.endswith(", ".join(f"{name} (bird)" for name in files[::2]))
    assert surplus == f"300 labels are of images that were not chosen: {', '.join(strangers)}"


@pytest.mark.parametrize(
    ("content", "said"),
    [(b"\xff\xfe\x00", "UTF-8"), (b"", "columns"), (table("a", heading="name"), "columns file and label")],
)
def test_another_file_is_one_line(content, said):
    with pytest.raises(UserError, match=said) as error:
        read(content)
    assert "\n" not in str(error.value)
    assert "labels.csv" in str(error.value)


def test_a_short_row_counts_as_unlabelled():
    assert count_labels(table("a.png", "d.png,,dog"), PLACE) == 1
