"""Three hundred malformed inputs, generated from the seed: each ends with status 2 and one line."""

from __future__ import annotations

import malformed
import malformed_files
import pytest
from forked import Running
from malformed import Place
from workshop import LINES

pytestmark = pytest.mark.campaign

INPUTS = 300
KINDS = [
    malformed.unknown_flag, malformed.flag_value, malformed.flag_value, malformed.data_name, malformed.model_name,
    malformed.degradation, malformed.image, malformed.image_folder, malformed.archive, malformed.downloaded,
    malformed_files.weights, malformed_files.weights, malformed_files.artifact, malformed_files.artifact,
    malformed_files.record, malformed_files.ranking, malformed_files.indices, malformed_files.labels,
    malformed_files.checkpoint, malformed_files.output_folder, malformed_files.given_file,
]  # fmt: skip


@pytest.mark.parametrize("number", range(INPUTS))
def test_a_malformed_input_is_one_line(workshop, draw, count, tmp_path, number):
    kind = KINDS[number % len(KINDS)]
    place = Place(tmp_path / "given", workshop.place / f"after-{[*LINES][-1]}", tmp_path / "output")
    place.folder.mkdir()
    case = kind(draw, place)
    script, *arguments = case.line
    if "--output_dir" not in arguments:
        arguments += ["--output_dir", str(place.output)]
    if "--data_dir" not in arguments:
        arguments += ["--data_dir", str(place.folder / "no data")]
    ended = Running(script, arguments).wait(60)
    wrong = ended.fault or ""
    count(
        "malformed input",
        f"{number:03} {kind.__name__}",
        case.what,
        "failed" if wrong else "refused",
        wrong,
        ended.seconds,
    )
