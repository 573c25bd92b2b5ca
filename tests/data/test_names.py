"""Names of data sets: those of the registries, without a heavy import."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

from deeppatch.data import names, sources

ROOT = Path(__file__).resolve().parents[2]


def test_the_names_are_those_of_the_registries():
    assert (*sources.SOURCES, *sources.LISTED) == names.DATASET_NAMES
    assert names.MIXES.keys() == sources.MIXES.keys()


def test_neither_torch_nor_numpy_is_imported_for_them():
    code = (
        "import sys, deeppatch.data.names, deeppatch.zoo.names, deeppatch.zoo.entries, deeppatch.patching.names, "
        "deeppatch.pretraining.recipes; print(sorted({'torch', 'numpy', 'pandas', 'sklearn'} & sys.modules.keys()))"
    )
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT / "src", capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


def test_artifacts_are_kept_under_the_name_of_the_data_set(monkeypatch):
    monkeypatch.chdir(ROOT)
    assert names.slug("digits") == "digits"
    assert re.fullmatch("folder-b-[0-9a-f]{6}", names.slug("folder:a/b"))
    assert names.slug("folder:a/../a/b/") == names.slug("folder:a/b")
    assert names.slug("folder:c/b") != names.slug("folder:a/b")
    assert names.slug("folder:.").startswith(f"folder-{ROOT.name}-")
