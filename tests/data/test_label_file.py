from __future__ import annotations

import codecs
import csv
import io
import unicodedata
from pathlib import Path

import pandas as pd
import pytest

from deeppatch.data.label_file import SKIPPED, count_labels, read_labels, skip_mark, table_to_bytes
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


@pytest.mark.parametrize("encoding", ["utf-16", "utf-16-le", "utf-16-be", "utf-8-sig"])
def test_other_unicode_encodings_are_read(encoding):
    content = table(*GOOD).decode().replace("\n", "\r\n").encode(encoding)
    assert read(content) == [0, 1, 1]
    if encoding in ("utf-16-le", "utf-16-be"):
        mark = {"utf-16-le": codecs.BOM_UTF16_LE, "utf-16-be": codecs.BOM_UTF16_BE}[encoding]
        assert read(mark + content) == [0, 1, 1]


@pytest.mark.parametrize("line", ["sep=;", '"sep=;"', "SEP=;\r"])
def test_the_line_that_names_the_delimiter_is_obeyed(line):
    rows = ["a.png;x,y,z;cat", "sub/b, c.png;;dog", "d.png;;dog"]
    assert read(table(*rows, heading=f"{line}\nfile;why, where, when;label")) == [0, 1, 1]
    assert read(table(*(row.replace(";", "|") for row in rows), heading="sep=|\nfile|a|label")) == [0, 1, 1]


@pytest.mark.parametrize("heading", [" File ,Reason, LABEL", "FILE,reason,Label\u00a0", '"file ",, "label"'])
def test_headings_may_be_of_any_case_with_spaces(heading):
    rows = ["a.png,,cat", '"sub/b, c.png",,dog', "d.png,,dog"]
    assert read(table(*rows, heading=heading.replace(', "', ',"'))) == [0, 1, 1]


def test_empty_rows_are_passed_over():
    content = table("", ",,", *GOOD, ",,", " , ,\t", "", heading="\n,,\n\nfile,reason,label")
    assert read(content) == [0, 1, 1]
    assert count_labels(content, PLACE) == 3


def test_cells_may_be_of_any_length_and_of_several_lines():
    content = table('d.png,"' + "x" * 300_000 + '",dog', 'a.png,"two\nlines",cat', '"sub/b, c.png",,dog')
    before = csv.field_size_limit()
    assert read(content) == [0, 1, 1]
    assert csv.field_size_limit() == before


@pytest.mark.parametrize("there", ["NFC", "NFD"])
@pytest.mark.parametrize("here", ["NFC", "NFD"])
def test_names_with_accents_are_found_however_they_are_composed(there, here):
    files = [unicodedata.normalize(here, name) for name in ("Zoë.png", "plain.png")]
    classes = [unicodedata.normalize(here, name) for name in ("café", "thé")]
    content = unicodedata.normalize(there, table("Zoë.png,,thé", "plain.png,,café").decode()).encode()
    assert read_labels(content, PLACE, files, classes).tolist() == [1, 0]


def test_two_files_that_differ_in_composition_only_are_told_apart():
    files = [unicodedata.normalize(form, "é.png") for form in ("NFC", "NFD")]
    content = table(f"{files[1]},,dog", f"{files[0]},,cat")
    assert read_labels(content, PLACE, files, CLASSES).tolist() == [0, 1]


COMPUTED = ["=HYPERLINK(1).png", "+1.png", "-1.png", "@x.png", "'=x.png", "=x.png", "'plain.png", "\tx.png", "a b.png"]


def test_no_cell_is_computed_by_a_spreadsheet_and_all_are_read_back():
    written = table_to_bytes(pd.DataFrame({"file": COMPUTED, "score": -0.5, "label": "=dog"}))
    assert written.startswith(codecs.BOM_UTF8)
    rows = list(csv.reader(io.StringIO(written.decode("utf-8-sig"), newline="")))
    assert all(not row[0].startswith(("=", "+", "-", "@", "\t")) for row in rows)
    assert all(row[1:] == ["-0.5", "'=dog"] for row in rows[1:])
    assert read_labels(written, PLACE, COMPUTED, ["cat", "=dog"]).tolist() == [1] * len(COMPUTED)
    plain = table(*(f'"{name}",,cat' for name in COMPUTED if "'" not in name))
    files = [name for name in COMPUTED if "'" not in name]
    assert read_labels(plain, PLACE, files, CLASSES).tolist() == [0] * len(files)


def test_an_image_may_be_skipped_but_not_left_open():
    assert read(table("a.png,,(skipped)", '"sub/b, c.png",,dog', "d.png,, (Skipped) ")) == [SKIPPED, 1, SKIPPED]
    with pytest.raises(Contradictions) as error:
        read(table("a.png,,(skipped)", '"sub/b, c.png",,dog', "d.png,,"))
    assert str(error.value) == (
        "labels.csv: 1 of 3 chosen images have no label yet, first d.png: load the table into annotate's contact.html "
        "and go on, or write (skipped) where no label can be given"
    )


def test_a_class_may_be_called_like_the_mark_of_what_is_skipped():
    classes = ("(Skipped)", "((skipped))", "cat")
    assert skip_mark(classes) == "(((skipped)))"
    content = table("a.png,,(Skipped)", "sub/b; c.png,,((skipped))", "d.png,,(((skipped)))")
    assert read_labels(content, PLACE, ["a.png", "sub/b; c.png", "d.png"], classes).tolist() == [0, 1, SKIPPED]


def test_names_with_all_kinds_of_line_ends_are_read_back():
    names = ["a\nb.png", "a\rb.png", "a\r\nb.png", 'a"\n".png', "plain.png"]
    written = table_to_bytes(pd.DataFrame({"file": names, "label": "dog"}))
    assert read_labels(written, PLACE, names, CLASSES).tolist() == [1] * len(names)


@pytest.mark.parametrize("heading", ["file,label,Label ", "file,label,label", "File,file,label"])
def test_a_column_that_is_there_twice_is_refused(heading):
    with pytest.raises(UserError, match=r"labels.csv has 2 columns (label|file); keep the one that counts"):
        read(table("a.png,cat,dog", heading=heading))


def test_labels_without_a_file_are_refused():
    with pytest.raises(UserError, match="1 labels stand in rows without a file"):
        read(table(*GOOD, ",,cat"))


def test_a_workbook_is_no_table():
    for content in (b"PK\x03\x04rest", b"\xd0\xcf\x11\xe0rest"):
        with pytest.raises(UserError, match=r"labels.csv is a workbook of a spreadsheet; save it as CSV UTF-8"):
            read(content)


def test_rows_without_a_label_for_images_that_were_not_chosen_do_no_harm():
    assert read(table(*GOOD, "other.png,,")) == [0, 1, 1]


def test_a_row_that_is_there_twice_does_no_harm_nor_an_empty_one_beside_it():
    assert read(table(*GOOD, *GOOD, "a.png,,", "d.png,other reason,dog")) == [0, 1, 1]


def test_all_that_is_wrong_is_said_at_once():
    content = table("a.png,,bird", "z.png,,dog", "d.png,,", "a.png,,DOG", "a.png,,cat", "a.png,,cat", "a.png,,")
    with pytest.raises(Contradictions) as error:
        read(content)
    assert str(error.value).split("; ") == [
        "labels.csv: 2 of 3 chosen images have no label yet, first sub/b, c.png: load the table into annotate's "
        "contact.html and go on, or write (skipped) where no label can be given",
        "2 labels name no class of cat, dog, correct them: a.png (bird), a.png (DOG) (did you mean dog?)",
        "1 labels are of images that were not chosen, delete these rows, or name with --selection the "
        "selection.safetensors that they were given for: z.png",
        "1 images are there more than once with other labels, keep the row that counts: a.png (bird, DOG, cat)",
    ]


def test_a_long_list_of_mistakes_is_told_whole_and_of_what_is_missing_the_first():
    files, strangers = ([f"{kind}{number}.png" for number in range(300)] for kind in ("own", "other"))
    content = table(*(f"{name},,bird" for name in files[::2]), *(f"{name},,dog" for name in strangers))
    with pytest.raises(Contradictions) as error:
        read_labels(content, PLACE, files, CLASSES)
    missing, unknown, surplus = str(error.value).split("; ")
    assert missing.startswith("labels.csv: 150 of 300 chosen images have no label yet, first own1.png: load the table ")
    assert unknown.endswith(", ".join(f"{name} (bird)" for name in files[::2]))
    assert surplus.startswith("300 labels are of images that were not chosen, delete these rows, or name with ")
    assert surplus.endswith(f": {', '.join(strangers)}")


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
