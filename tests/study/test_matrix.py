"""What a configuration stands for: the commands, which of them read which, and the mistakes that are told."""

from __future__ import annotations

import datetime
import importlib
import os
import subprocess
import sys
from pathlib import Path

import pytest
import schema
import study as study_script
import yaml
from chains import STAGES
from matrix import RULES, jobs, machine, places, spelled

from deeppatch.cli.options import RepairOptions
from deeppatch.cli.parsing import parse
from deeppatch.errors import UserError

CONFIG = Path(__file__).resolve().parents[2] / "workflow" / "config"
FILES = sorted(CONFIG.glob("*.yaml"))


def study(**matrix):
    return {"matrices": {"one": {"models": {"resnet8": {}}, "data": ["digits"], "seeds": [1], **matrix}}}


def two(**other):
    """Two matrices that differ in one thing."""
    first = study(methods=["norms"])["matrices"]["one"]
    return {"matrices": {"one": first, "two": {**first, **other}}}


def partners():
    """Two matrices with the same patch, of which one has a fine-tuned network to switch to."""
    first = study(methods=["finetune", "patch"])["matrices"]["one"]
    return {"matrices": {"one": first, "two": {**first, "methods": ["patch"]}}}


def by_label(found):
    """Jobs by rule and label: what stands between the seed and the hash."""
    return {(job.rule, key.partition("seed1")[2].rpartition("-")[0].strip("-")): job for key, job in found.items()}


def test_a_patch_reads_base_and_ranking_and_is_switched_beside_the_fine_tuned_network():
    found = jobs(study(methods=["finetune", "patch"], ratios=[0.25], correct={"epochs": 2}))
    job = by_label(found)
    base, ranking = job["pretrain", ""], job["assess", "perfloss"]
    tuned, patch = job["correct", "finetune"], job["correct", "patch-ratio0.25"]
    assert base.reads == {}
    assert ranking.reads == tuned.reads == {"weights": base.key}
    assert patch.reads == {"weights": base.key, "ranking": ranking.key}
    switched = job["evaluate", "patch-ratio0.25"]
    assert switched.reads == {"weights": base.key, "patch": patch.key, "finetuned": tuned.key}
    assert job["compare", ""].networks == (tuned.key, patch.key, switched.key)
    assert patch.words[-8:] == (
        "--epochs", "2", "--crt_method", "patch", "--fs_method", "perfloss", "--susp_ratio", "0.25"
    )  # fmt: skip
    assert switched.about == {
        "model": "resnet8", "data": "digits", "degradation": "blur", "seed": 1, "method": "patch", "ratio": 0.25,
        "switched": True,
    }  # fmt: skip
    order = list(found)
    assert all(order.index(read) < order.index(key) for key, each in found.items() for read in each.reads.values())


def test_a_method_s_own_training_is_told_to_correct_alone():
    quick = {"crt_method": "patch", "fs_method": "random", "lr": 0.1}
    found = by_label(jobs({**study(methods=["random", "quick"], ratios=[0.25]), "methods": {"quick": quick}}))
    corrected, switched = found["correct", "quick-ratio0.25"], found["evaluate", "quick-ratio0.25"]
    assert "--lr" in corrected.words
    assert "--lr" not in switched.words
    assert switched.words == found["evaluate", "random-ratio0.25"].words, "they differ in what they read"
    assert switched.reads["patch"] == corrected.key != found["evaluate", "random-ratio0.25"].reads["patch"]


def test_filters_at_random_and_all_filters_need_no_ranking():
    found = by_label(jobs(study(methods=["random", "patch"], ratios=[0.25, 1])))
    assert found["correct", "random-ratio0.25"].reads.keys() == {"weights"}
    assert found["correct", "patch-ratio1"].reads.keys() == {"weights"}
    assert found["correct", "patch-ratio0.25"].reads.keys() == {"weights", "ranking"}


def test_what_trains_nothing_is_not_told_how_to_train_and_interpolation_brings_its_fine_tuned_network():
    found = by_label(jobs(study(methods=["interpolate", "statistics"], correct={"epochs": 3})))
    assert "--epochs" not in found["correct", "interpolate"].words
    assert found["correct", "statistics"].words[-4:] == ("--epochs", "0", "--crt_method", "norms")
    tuned = found["correct", "finetune"]
    assert found["correct", "interpolate"].reads["finetuned"] == tuned.key
    assert tuned.key not in found["compare", ""].networks, "which the configuration does not ask for"


def test_a_matrix_multiplies_and_what_two_matrices_share_is_run_once():
    first = study(methods=["finetune"], seeds=[1, 2], degradations={"blur": {}, "fog": {"noise_type": "fog"}})
    one = jobs(first)
    assert len([job for job in one.values() if job.rule == "pretrain"]) == 2, "one for each seed, for all degradations"
    assert len([job for job in one.values() if job.rule == "correct"]) == 4
    assert len([job for job in one.values() if job.rule == "compare"]) == 4
    two = {"matrices": {**first["matrices"], "two": {**first["matrices"]["one"], "methods": ["norms"], "seeds": [1]}}}
    both = jobs(two)
    assert one.keys() - both.keys() == {key for key in one if key.startswith("compare/") and "seed1" in key}
    assert len(both) == len(one) + 2, "norms against blur and fog"


def test_a_job_s_name_changes_with_its_words_and_with_what_it_reads_but_not_with_the_machine():
    usual = study(methods=["patch"])
    names = set(jobs(usual))
    assert (
        set(jobs({**usual, "device": "cpu", "output_dir": "elsewhere", "rules": {"assess": {"threads": 4}}})) == names
    )
    trained = study(methods=["patch"])
    trained["matrices"]["one"]["models"] = {"resnet8": {"train": True}}
    assert not set(jobs(trained)) & names, "another base, and so everything else"


def test_weights_are_published_ones_or_a_file():
    named = study(methods=["norms"])
    named["matrices"]["one"]["models"] = {
        "resnet8": {"weights": "some.safetensors"},
        "resnet20": {"weights": "published"},
    }
    words = {job.about["model"]: job.words for job in jobs(named).values() if job.rule == "pretrain"}
    assert words["resnet8"][-2:] == ("--weights", "some.safetensors")
    assert "--weights" not in words["resnet20"]


@pytest.mark.parametrize("file", FILES, ids=lambda file: file.stem)
def test_every_configuration_is_understood_by_the_stages(file):
    configuration = yaml.safe_load(file.read_text())
    found = list(jobs(configuration).values())
    of_chains = {stage for chain in configuration.get("chains", {}).values() for stage in chain["stages"]}
    assert {job.rule for job in found} == {"pretrain", "assess", "correct", "evaluate", "compare"} | of_chains
    for job in found[:: max(1, len(found) // 12)]:  # those of a study resemble each other
        module = importlib.import_module(f"deeppatch.cli.{job.rule}.command")
        parse(module, [*job.words, *places(configuration)], RepairOptions.prefix)
        assert machine(configuration, job.rule)["mem_mb"] >= 1000


def test_a_chain_is_one_stage_after_another_for_each_seed_and_method():
    chain = {
        "stages": ["annotate", "relearn"], "models": {"mobilenet": {"train": True}}, "data": ["cifar10"],
        "seeds": [1, 2], "methods": ["hybrid", "random"], "options": {"bias": "B"}, "annotate": {"budget": "1%"},
    }  # fmt: skip
    found = jobs({"chains": {"few": chain}})
    assert [sum(job.rule == rule for job in found.values()) for rule in ("pretrain", "annotate", "relearn")] == [
        2,
        4,
        4,
    ]
    job = by_label({key: each for key, each in found.items() if "seed1" in key})
    base, chosen, last = job["pretrain", ""], job["annotate", "random"], job["relearn", "random"]
    assert (base.reads, chosen.reads) == ({}, {"weights": base.key})
    assert last.reads == {"weights": base.key, "selection": chosen.key}
    assert all({"--bias", "B"} <= set(each.words) for each in (base, chosen, last))
    assert ("--budget" in chosen.words, "--budget" in last.words) == (True, False)
    assert (base.chain, chosen.chain, last.chain) == ("", "", "few")
    assert last.about == {"model": "mobilenet", "data": "cifar10", "seed": 1, "method": "random"}


def test_options_are_spelled_as_on_the_command_line():
    given = {"train": True, "epochs": 3, "amp": False, "base": None, "adapt": ["bn-1", "tent"]}
    assert spelled(given) == ["--train", "--epochs", "3", "--adapt", "bn-1", "tent"]


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({}, "no matrices; give at least one"),
        ({"matrixes": {}}, "the configuration: no matrixes (did you mean matrices?); there are chains, data_dir, "),
        (study(methods=["finetun"]), "methods of matrix one: no finetun (did you mean finetune?); there are apricot, "),
        (study(), "matrices.one has no methods"),
        (study(methods=["patch"], ratio=[1]), "matrices.one: no ratio (did you mean ratios?)"),
        ({**study(methods=["patch"]), "rules": {"switch": {}}}, "rules: no switch"),
        (study(methods=["patch"], ratios=[2]), "--susp_ratio 2.0: give a share above 0, at most 1"),
        (study(methods=["patch"], correct={"epoch": 1}), "unrecognized arguments: --epoch"),
        (study(methods=["patch"], ratios=["half"]), "matrices.one.ratios.0: 'half' is not a number"),
        (study(methods="patch"), "matrices.one.methods: 'patch' is not a list"),
        (study(methods=["patch"], seeds=3), "matrices.one.seeds: 3 is not a list"),
        (study(methods=["patch"], models={"resnet8": 3}), "matrices.one.models.resnet8: 3 is not a mapping"),
        ({"chains": {"one": {"models": ["a"], "data": ["b"]}}}, "chains.one has no stages"),
        ({"chains": {"one": {"models": ["a"], "data": ["b"], "stages": ["annotate"]}}}, "cannot end with annotate"),
        (
            {"chains": {"one": {"models": ["a"], "data": ["b"], "stages": ["asses"]}}},
            "chains.one.stages.0: no asses; there are annotate, ",
        ),
        ({**study(methods=["patch"]), "device": "tpu"}, "device: no tpu; there are auto, cpu, cuda"),
        ({"matrices": [1]}, "matrices: [1] is not a mapping"),
        ({"matrices": {"one": 3}}, "matrices.one: 3 is not a mapping"),
        ({**study(methods=["patch"]), "rules": {"assess": 3}}, "rules.assess: 3 is not a mapping"),
        ({**study(methods=["mine"]), "methods": {"mine": {"fs_method": "taylor"}}}, "methods.mine has no crt_method"),
        (study(methods=[["norms"]]), "matrices.one.methods.0: ['norms'] is not text"),
        (study(methods=[]), "matrices.one.methods is empty"),
        (study(methods=["norms"], models=[["a"]]), "matrices.one.models.0: ['a'] is not text"),
        (study(methods=["norms"], models={}), "matrices.one.models is empty"),
        (study(methods=["norms"], models={3: {}}), "matrices.one.models: the name 3 is no text; write it in quotes"),
        (study(methods=["norms"], correct={True: 1}), "matrices.one.correct: the name True is no text"),
        (study(methods=["norms"], correct={"lr": {"a": 1}}), "matrices.one.correct.lr: {'a': 1} is not text or a num"),
        (
            study(methods=["norms"], data=[datetime.date(2026, 11, 27)]),
            "data.0: datetime.date(2026, 11, 27) is not text",
        ),
        (study(methods=["norms"], seeds=[1.5]), "matrices.one.seeds.0: 1.5 is not a whole number"),
        (study(methods=["norms"], switched=["norm"]), "switched of matrix one: norm is none of its methods, which are"),
        ({**study(methods=["norms"]), "output_dir": ["a"]}, "output_dir: ['a'] is not text"),
        ({**study(methods=["norms"]), "data_dir": ""}, "data_dir is empty"),
        ({**study(methods=["norms"]), "render": "yes"}, "render: 'yes' is not true or false"),
        (
            {**study(methods=["norms"]), "rules": {"assess": {"mem_gb": 4}}},
            "rules.assess: no mem_gb (did you mean mem_",
        ),
        ({**study(methods=["norms"]), "rules": {"assess": {"cpus": 4}}}, "rules.assess: no cpus; there are clusters, "),
        ({**study(methods=["norms"]), "rules": {"assess": {"threads": 0}}}, "rules.assess.threads: 0 is less than the"),
        ({**study(methods=["norms"]), "rules": {"assess": {"runtime": "4h"}}}, "runtime: '4h' is not a whole number"),
        (study(methods=["norms"], correct={"seed": 7}), "matrices.one.correct: seed is no option here; models, da"),
        (study(methods=["norms"], degradations={"a{b}": {}}), "degradations: the name a{b} is empty or has one of { }"),
        (study(methods=["norms"], ratios=["1e-3"]), "matrices.one.ratios.0: '1e-3' is not a number; write it as 0.001"),
        (study(methods=["norms"], seeds=[1.0]), "matrices.one.seeds.0: 1.0 is not a whole number"),
        (
            {**study(methods=["norms"]), "methods": {"before repair": {"crt_method": "norms"}}},
            "methods: before repair is",
        ),
        (
            {**study(methods=["norms"]), "methods": {"a": {"crt_method": None}}},
            "methods.a.crt_method: None is not text",
        ),
        (
            {"chains": {"levels": {"models": ["a"], "data": ["b"], "stages": ["compose"]}}},
            "another table of the name lev",
        ),
        (
            {"chains": {"a/b": {"models": ["a"], "data": ["b"], "stages": ["compose"]}}},
            "chains: the name a/b is empty or",
        ),
        (
            partners(),
            "called patch, ratio 0.25, switched; give one of them a name of its own under methods, with its op",
        ),
        (partners(), "; or write finetune in both matrices, or `switched: []` in one"),
        (two(models={"resnet8": {"train": True}}), "two matrices have resnet8 on digits, blur, seed 1, but other opt"),
        (two(compare={"limit": 3}), "two matrices have resnet8 on digits, blur, seed 1, but other options of the mod"),
        (two(degradations={"blur": {"noise_type": "fog"}}), "name the degradation of one of them differently"),
        (two(correct={"epochs": 3}), "digits, blur, seed 1: two different runs would be called norms; give one of"),
    ],
)
def test_a_mistake_in_a_configuration_is_one_line_that_says_what_is_wrong(wrong, message):
    with pytest.raises(UserError) as caught:
        jobs(wrong)
    assert message in str(caught.value)


def test_a_list_that_nobody_reads_to_its_end_is_no_error():
    script = str(CONFIG.parent / "scripts" / "study.py")
    listing = subprocess.Popen(
        [sys.executable, script, "published", "--list"], stdout=subprocess.PIPE, stderr=subprocess.PIPE
    )
    listing.stdout.close()
    assert listing.stderr.read() == b""
    assert listing.wait() == 1


def test_an_output_folder_that_cannot_be_written_is_one_line(tmp_path, capsys):
    (tmp_path / "file").touch()
    assert study_script.main(["demo", "--output_dir", str(tmp_path / "file")]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith(f"error: {tmp_path / 'file'}")
    assert line.endswith("Not a directory; choose another folder or file")


def test_what_means_the_same_is_the_same_however_it_is_written():
    first = study(methods=["patch"], ratios=[1], models={"resnet8": {"train": True, "epochs": 2}})["matrices"]["one"]
    other = {**first, "ratios": [1.0], "models": {"resnet8": {"epochs": 2, "train": True}}}
    one, both = jobs({"matrices": {"one": first}}), jobs({"matrices": {"one": first, "two": other}})
    assert list(one) == list(both)
    partner = partners()
    partner["matrices"]["two"]["switched"] = []
    assert list(jobs(partner)) == list(jobs({"matrices": {"one": partner["matrices"]["one"]}}))


def test_a_method_s_own_ratio_is_its_ratio():
    mine = {"crt_method": "patch", "fs_method": "random", "susp_ratio": 0.5}
    found = by_label(jobs({**study(methods=["random", "mine"], ratios=[0.1, 0.2]), "methods": {"mine": mine}}))
    labels = {label for rule, label in found if rule == "correct"}
    assert labels == {"random-ratio0.1", "random-ratio0.2", "mine-ratio0.5"}


def test_empty_keys_are_as_absent_ones(tmp_path):
    (tmp_path / "empty.yaml").write_text(
        "options:\nchains:\nmethods:\nrules: {correct: }\nmatrices:\n  one:\n    models: {resnet8: }\n"
        "    data: [digits]\n"
        "    methods: [norms]\n    seeds:\n    ratios:\n    switched:\n    degradations:\n    correct:\n"
    )
    found = schema.read(tmp_path / "empty.yaml")
    assert list(jobs(found)) == list(jobs(study(methods=["norms"], seeds=[2021])))
    assert machine(found, "correct")["threads"] == 1


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("matrices: {a: {}, a: {}}", "mine.yaml: a stands twice in one mapping, "),
        ("matrices:\n  a: 2026-99-99", "mine.yaml is no YAML: month must be in 1..12"),
        (
            "matrices: {a: {models: [a], data: [b], methods: [norms], ratios: &r [*r]}}",
            "an anchor that contains itself",
        ),
        ("file: x", "mine.yaml: no file; the configuration is this file"),
        ("- 1", "mine.yaml holds no configuration; it needs matrices"),
    ],
)
def test_a_file_that_is_no_configuration_is_one_line(tmp_path, capsys, text, message):
    (tmp_path / "mine.yaml").write_text(text)
    assert study_script.main([str(tmp_path / "mine.yaml"), "--list"]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert message in line


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--output_dir", "{a}", "--dry-run"], "{a}/studies/demo: a study's folder can have no braces in its name"),
        (["--dry-run", "--snakemake", "--config", "limit=3"], "--snakemake --config: write what it says into the conf"),
    ],
)
def test_what_snakemake_would_take_otherwise_is_refused(capsys, words, message):
    assert study_script.main(["demo", *words]) == 2
    assert capsys.readouterr().err.startswith(f"error: {message}")


def test_a_name_that_was_listed_can_be_asked_for(tmp_path, capsys):
    mine = study(methods=["norms"], models=["resnet8"])
    (tmp_path / "mine.yaml").write_text(yaml.safe_dump(mine))
    for key in jobs(mine):
        assert study_script.main([str(tmp_path / "mine.yaml"), "--list", "--only", key]) == 0
        assert capsys.readouterr().out.splitlines()[0] == key


def test_the_schema_knows_all_stages():
    parts = schema.validator().schema["properties"]
    matrix_keys, chain = (parts[name]["additionalProperties"]["properties"] for name in ("matrices", "chains"))
    assert set(parts["rules"]["properties"]) == {*RULES, "collect"}
    assert set(RULES) - set(STAGES) <= set(matrix_keys)
    assert set(chain["stages"]["items"]["enum"]) == set(STAGES) <= set(chain)


def test_a_folder_without_a_name_is_one_line(capsys):
    assert study_script.main(["demo", "--list", "--output_dir", ""]) == 2
    assert capsys.readouterr().err == "error: output_dir is empty\n"


def test_a_list_has_the_commands_of_the_jobs_that_are_asked_for(capsys):
    assert study_script.main(["demo", "--list", "--only", "correct/*finetune*", "--output_dir", "some folder"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [name.rpartition("-")[0] for name in lines[::2]] == [
        f"correct/resnet8-digits-blur-seed{n}-finetune" for n in (1, 2)
    ]
    assert lines[1] == (
        "    python src/correct.py -m resnet8 -d digits --seed 1 --batch_size 64 --limit 400 --noise_type gaussion"
        " --epochs 2 --crt_method finetune --output_dir 'some folder' -r"
    )


def test_without_snakemake_a_study_says_in_one_line_what_to_install():
    script = str(CONFIG.parent / "scripts" / "study.py")
    without = (
        "import importlib.util, runpy, sys\n"
        "absent, find = {'snakemake', 'yaml', 'psutil', 'jsonschema'}, importlib.util.find_spec\n"
        "class Absent:\n"
        "    def find_spec(name, *_):\n"
        "        if name.split('.')[0] in absent: raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Absent)\n"
        "importlib.util.find_spec = lambda name, *rest: None if name in absent else find(name, *rest)\n"
        "sys.argv[:] = sys.argv[1:]\n"
        "runpy.run_path(sys.argv[0], run_name='__main__')\n"
    )
    command = [sys.executable, "-c", without, script, "demo"]
    done = subprocess.run(
        command,
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": str(CONFIG.parent / "scripts")},
    )
    assert (done.returncode, done.stderr) == (
        2, "error: a study needs Snakemake; install it with: pip install 'deeppatch[study]'\n"
    )  # fmt: skip
