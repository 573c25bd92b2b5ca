"""Audit what Pipfile.lock installs: known vulnerabilities by pip-audit, then the licences by pip-licenses.

The exit status is 1 where a vulnerability is known; 0 where none is, or the service cannot be reached, which is said.
"""

from __future__ import annotations

import json
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]


def requirements(lock: dict[str, Any]) -> list[str]:
    """Return the packages of a lock with their versions, as lines of a requirements file.

    >>> lock = {"default": {"a": {"version": "==1.0"}}, "develop": {"b": {"version": "==2", "markers": "x > '3'"}}}
    >>> requirements(lock)
    ['a==1.0', "b==2 ; x > '3'"]
    """
    packages = {**lock["develop"], **lock["default"]}
    marked = {name: f" ; {each['markers']}" if "markers" in each else "" for name, each in packages.items()}
    return [f"{name}{each['version']}{marked[name]}" for name, each in sorted(packages.items()) if "version" in each]


def told(output: str, errors: str) -> tuple[int, list[str]]:
    """Return the exit status, and the lines to print, for what pip-audit has written.

    >>> told('{"dependencies": [{"name": "a", "version": "1", "vulns": []}]}', "")
    (0, ['1 packages, no known vulnerability'])
    >>> told('{"dependencies": [{"name": "a", "version": "1", "vulns": [{"id": "X", "fix_versions": ["2"]}]}]}', "")
    (1, ['a 1: X, mended in 2'])
    >>> some = '{"name": "a", "skip_reason": "not on the index"}, {"name": "b", "version": "1", "vulns": []}'
    >>> told(f'{{"dependencies": [{some}]}}', "")
    (0, ['1 packages, no known vulnerability', 'NOT AUDITED: a (not on the index)'])
    >>> told(f'{{"dependencies": [{some.partition("}, ")[0]}}}]}}', "")[1]
    ['NOT AUDITED: the service that answers here knows none of the 1 packages; repeat it elsewhere']
    >>> told("", "no route to host")[0]
    0
    """
    try:
        found = json.loads(output)["dependencies"]
    except (ValueError, KeyError, TypeError):
        why = errors.strip().splitlines()[-1:] or ["no answer"]
        return 0, [f"NOT AUDITED: the list of vulnerabilities cannot be reached ({why[0][:200]}); repeat it elsewhere"]
    skipped = [f"NOT AUDITED: {each['name']} ({each['skip_reason']})" for each in found if "skip_reason" in each]
    lines = [
        f"{each['name']} {each['version']}: {flaw['id']}, mended in {', '.join(flaw['fix_versions']) or 'no version'}"
        for each in found
        for flaw in each.get("vulns", [])
    ]
    if skipped and len(skipped) == len(found):
        reached = f"the service that answers here knows none of the {len(found)} packages"
        return 0, [f"NOT AUDITED: {reached}; repeat it elsewhere"]
    audited = f"{len(found) - len(skipped)} packages, no known vulnerability"
    return (1, lines + skipped) if lines else (0, [audited, *skipped])


def main() -> int:
    """Audit the lock, list the licences, and return the exit status."""
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder, "requirements.txt")
        path.write_text("\n".join(requirements(json.loads((ROOT / "Pipfile.lock").read_bytes()))) + "\n")
        audit = [sys.executable, "-m", "pip_audit", "--no-deps", "--disable-pip", "--progress-spinner", "off"]
        done = subprocess.run([*audit, "-f", "json", "-r", str(path)], capture_output=True, text=True, check=False)  # noqa: S603
    status, lines = told(done.stdout, done.stderr)
    print("\n".join(lines), flush=True)
    licences = [sys.executable, "-m", "piplicenses", "--from=mixed", "--order=license"]
    return max(status, subprocess.run(licences, check=False).returncode)  # noqa: S603


if __name__ == "__main__":
    sys.exit(main())
