from __future__ import annotations

import sys
from types import SimpleNamespace

import pytest

from deeppatch.cli import completion, main
from deeppatch.cli.options import SCRIPTS
from deeppatch.errors import UserError


def test_the_parser_to_complete_knows_every_stage_and_its_options():
    parser = completion.whole_parser()
    options = parser.parse_args(["correct", "-m", "resnet8", "--epochs", "3", "--ranking", "r.json"])
    assert (options.stage, options.model, options.crt_epoch) == ("correct", "resnet8", 3)
    with pytest.raises(UserError, match="did you mean correct"):
        parser.parse_args(["corect"])
    for stage in SCRIPTS:
        assert stage in parser.format_help()


def test_files_and_folders_are_completed_as_such(monkeypatch):
    given = {}

    def complete(parser, shell):
        given.update({tuple(action.option_strings): action.complete for action in completion._actions(parser)
                      if hasattr(action, "complete")})  # fmt: skip
        return f"for {shell}"

    monkeypatch.setitem(sys.modules, "shtab", SimpleNamespace(FILE="file", DIRECTORY="folder", complete=complete))
    assert completion.script(["zsh"]) == "for zsh"
    assert given["--base", "--weights"] == "file"
    assert given["--output_dir",] == "folder"


def test_without_shtab_the_extra_is_named(monkeypatch, capsys):
    monkeypatch.setitem(sys.modules, "shtab", None)
    monkeypatch.setattr(sys, "argv", ["deeppatch", "--print-completion", "bash"])
    with pytest.raises(SystemExit, match="2"):
        main.console()
    said = capsys.readouterr().err
    assert said == "error: --print-completion needs shtab: pip install 'deeppatch[completion]'\n"


@pytest.mark.parametrize("given", [[], ["fish"], ["bash", "zsh"]])
def test_another_shell_is_refused(given):
    with pytest.raises(UserError, match="name a shell.*bash or zsh"):
        completion.script(given)


@pytest.mark.parametrize("shell", completion.SHELLS)
def test_shtab_writes_a_script(shell):
    pytest.importorskip("shtab")
    script = completion.script([shell])
    assert "--crt_epoch" in script
    assert "resnet32" in script
