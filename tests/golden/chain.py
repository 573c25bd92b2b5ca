"""Run every stage on the digits with fixed settings, and write down what each left: `python chain.py OUTPUT RESULT`."""

from __future__ import annotations

import hashlib
import io
import json
import os
import sys
from pathlib import Path
from typing import Any

# one instruction set and one thread, so that sums are added in the same order on as many processors as possible
PINNED = {
    "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "COMPATIBLE", "OMP_NUM_THREADS": "1",
    "OPENBLAS_CORETYPE": "Haswell", "DEEPPATCH_THREADS": "1", "MPLBACKEND": "agg",
}  # fmt: skip
SEARCH = "--search_images 100 --sensitivity_images 20"
HYBRID = "--bias B --budget 5% --views 2"
STEPS = {
    "pretrain": "eval -e 4 --lr 0.1",
    "perfloss": "select -f perfloss",
    "featswap": "select -f featswap",
    "taylor, refined": "select -f taylor --refine 4",
    "activation": "select -f activation",
    "replace": "correct -f perfloss --crt_epoch 2 --lr 0.05",
    "crtunit": "correct -f featswap --crt_type crtunit --susp_ratio 0.5 --susp_side rear --crt_epoch 2 --lr 0.05",
    "finetune": "correct -c finetune --crt_epoch 2 --lr 0.05",
    "switched by probe": "switch -f perfloss",
    "switched by flips": "switch -f perfloss --router flips",
    "switched by a batch": "switch -f perfloss --switch batch",
    "raced": "select -f perfloss --race 0.1",
    "influence": "influence -k 5 10",
    "decompose validate": "decompose validate -k 5 10",
    "decompose essential": "decompose essential -k 5",
    "decompose mutual-info": "decompose mutual-info -k 5 10",
    "decompose sweep": "decompose sweep -k 5 10 -e 2",
    "decompose finetune": "decompose finetune -k 5 -e 1",
    "decompose finetune head": "decompose finetune -k 5 -e 2 --head_only",
    "modularize grad": f"modularize --budget 7 --lr 0.05 {SEARCH}",
    "modularize grad without heads": f"modularize --no_head --budget 3 --lr 0.05 {SEARCH}",
    "modularize ga": f"modularize --method ga --budget 2 {SEARCH}",
    "compose": "compose --target 3 --weak_epoch 1",
    "pretrain, biased": "eval --train --bias B -e 3 --lr 0.1",
    "annotate hybrid": f"annotate {HYBRID}",
    "annotate badge": f"annotate {HYBRID} --method badge",
    "annotate coreset": f"annotate {HYBRID} --method coreset",
    "relearn hybrid": f"relearn {HYBRID} --pseudo_labels published -e 2 --steps 2",
    "relearn badge": f"relearn {HYBRID} --method badge --pseudo_labels published -e 2 --steps 2",
}


def told(path: Path) -> Any:
    """Return what a file holds in a form that later versions can be compared by; None where it need not stay."""
    from safetensors.torch import load_file

    from deeppatch.artifacts import state_digest

    if path.suffix == ".safetensors":
        return state_digest(load_file(path))
    if path.name == "ranking.json":
        return json.loads(path.read_bytes())["layers"]
    if path.suffix == ".json" and path.name not in ("run.json", "timing.json"):
        return json.loads(path.read_bytes())
    if path.suffix == ".csv" and path.name != "runs.csv":
        import pandas as pd

        return pd.read_csv(io.BytesIO(path.read_bytes()), dtype=str, keep_default_na=False).to_dict("list")
    return None


def records(output: Path) -> dict[Path, str]:
    """Return the hash of every run.json."""
    return {path: hashlib.sha256(path.read_bytes()).hexdigest() for path in output.rglob("run.json")}


def main(output: Path, result: Path) -> None:
    """Run all steps and write {step: [{file: content}, one for each folder that the step left]}, and the processor."""
    import torch

    from deeppatch.cli.main import guarded
    from deeppatch.runtime import describe

    found: dict[str, list[dict[str, Any]]] = {}
    for name, line in STEPS.items():
        before = records(output)
        script, *arguments = line.split()
        fixed = ["-m", "resnet8", "-d", "digits", "--limit", "150", "-b", "32", "--device", "cpu"]
        assert guarded(script, [*fixed, "--output_dir", str(output), *arguments], "python src/{script}.py") == 0, name
        left = sorted(path.parent for path, digest in records(output).items() if before.get(path) != digest)
        found[name] = [
            {path.name: content for path in sorted(folder.iterdir()) if (content := told(path)) is not None}
            for folder in left
        ]
    processor = describe(torch.device("cpu"))["hardware"]
    result.write_text(json.dumps({"processor": processor, "steps": found}) + "\n")


if __name__ == "__main__":
    if any(os.environ.get(name) != value for name, value in PINNED.items()):
        os.execve(sys.executable, [sys.executable, *sys.argv], {**os.environ, **PINNED})  # noqa: S606
    sys.path.append(str(Path(__file__).resolve().parents[2] / "src"))
    main(Path(sys.argv[1]), Path(sys.argv[2]))
