from __future__ import annotations

import pytest

from deeppatch.data import corruption_names
from deeppatch.data.corruption_names import BENCHMARK, COMMON, parse
from deeppatch.errors import UserError


def test_lists_and_groups_stand_for_their_members_once_in_the_order_of_the_table():
    assert parse("gaussion").names == parse("gaussian-blur").names == ("gaussion",)
    assert parse("all").names == BENCHMARK
    assert len(BENCHMARK) == 15
    assert len(COMMON) == 19
    assert not set(parse("all").names) & set(parse("extra").names)
    assert parse("fog, noise ,gaussian_noise").names == ("gaussian_noise", "shot_noise", "impulse_noise", "fog")
    assert parse("my.own:rain,spatial,fog,gaussian-blur").names == ("gaussion", "fog", "spatial", "my.own:rain")
    assert parse("folder:a/b").names == ("folder:a/b",)


def test_severities_are_numbers_and_ranges():
    assert parse("fog").severities == (1, 2, 3, 4, 5)
    assert parse("fog", "5,1,3").severities == (1, 3, 5)
    assert parse("fog,gaussion", "2..4").severities == (2, 3, 4)


@pytest.mark.parametrize(
    ("text", "severity", "said"),
    [
        ("frog", None, "no corruption called frog (did you mean fog?)"),
        ("jpeg", None, "(did you mean jpeg_compression?)"),
        ("motion-blur", None, "(did you mean motion_blur?)"),
        ("fog,,snow", None, "fog,,snow: a name is missing"),
        ("", None, "a name is missing"),
        ("folder:", None, "no corruption called folder:"),
        ("fog", "0", "severity 0: give numbers from 1 to 5"),
        ("fog", "4..2", "severity 4..2: give numbers from 1 to 5"),
        ("gaussion", "1", "severity 1: gaussion has no severities"),
    ],
)
def test_mistakes_are_one_line(text, severity, said):
    with pytest.raises(UserError) as caught:
        parse(text, severity)
    assert said in str(caught.value)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("text", "severity", "stem"),
    [
        ("gaussion", None, ""),
        ("gaussian-blur", None, ""),
        ("weather", "3,5", "weather-sev35"),
        ("fog,snow", None, "snow+fog"),
        ("my.own:rain", None, "my.own-rain"),
        ("noise,blur,fog", None, "noise+blur+fog"),
        ("released:data/CIFAR-10-C,all", "1", "all+released-CIFAR-10-C-sev1"),
        ("folder:photos/rainy days/", None, "folder-rainy-days"),
    ],
)
def test_the_stem_of_a_folder_s_name(text, severity, stem):
    assert parse(text, severity).stem == stem


def test_a_long_list_has_a_short_name_of_its_own():
    stems = {parse(f"gaussian_noise,impulse_noise,frost,fog,{last}").stem for last in ("glass_blur", "spatter")}
    assert len(stems) == 2
    assert all(len(stem) <= 40 and stem.startswith("gaussian_noise+") for stem in stems)


def test_types_are_held_out():
    kept = parse("all").without("weather,jpeg_compression")
    assert set(BENCHMARK) - set(kept.names) == {"snow", "frost", "fog", "brightness", "jpeg_compression"}
    with pytest.raises(UserError, match="spatter cannot be held out of all"):
        parse("all").without("spatter")
    with pytest.raises(UserError, match="leaves no degradation"):
        parse("fog").without("fog")


def test_an_import_path_is_one():
    assert corruption_names.is_function("a.b_c:d")
    assert not any(
        map(corruption_names.is_function, ["fog", "folder:path", "released:x", "a-b:c", "a:b:c", ":c", "1a:b"])
    )
