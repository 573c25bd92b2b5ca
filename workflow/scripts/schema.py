"""Reads a configuration, and says in one line where it is not as workflow/schemas/config.schema.yaml has it."""

from __future__ import annotations

import functools
import importlib.util
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import source  # noqa: F401

from deeppatch.errors import UserError, closest

if TYPE_CHECKING:
    import jsonschema

SCHEMA = Path(__file__).resolve().parents[1] / "schemas" / "config.schema.yaml"
FILE = "file"  # the key that has the file of a configuration, which study.py adds
TYPES = {
    "object": "a mapping", "array": "a list", "string": "text", "number": "a number", "integer": "a whole number",
    "boolean": "true or false",
}  # fmt: skip


def read(file: Path) -> dict[str, Any]:
    """Return what the file of a configuration holds, without empty keys; UserError where it cannot be read."""
    if importlib.util.find_spec("snakemake") is None:
        raise UserError("a study needs Snakemake; install it with: pip install 'deeppatch[study]'")
    found = loaded(file)
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no configuration; it needs matrices, as workflow/config/demo.yaml has")
    drop_empty(found)
    if FILE in found:
        raise UserError(f"{file}: no {FILE}; the configuration is this file")
    return found


def loaded(file: Path) -> Any:
    """Return what a YAML file holds; UserError where it cannot be read, or has a name twice in one mapping."""
    import yaml

    class Unique(yaml.SafeLoader):
        def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
            own = [key.value for key, _value in node.value if key.tag != "tag:yaml.org,2002:merge"]
            if twice := [name for name in own if isinstance(name, str) and own.count(name) > 1]:
                raise UserError(f"{file}: {twice[0]} stands twice in one mapping, {node.start_mark}")
            return super().construct_mapping(node, deep)

    try:
        return yaml.load(file.read_text(encoding="utf-8"), Unique)  # noqa: S506
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; give a YAML file") from None
    except (yaml.YAMLError, ValueError, RecursionError) as error:  # ValueError for bad UTF-8, and for 2026-99-99
        raise UserError(f"{file} is no YAML: {error}") from None


def drop_empty(configuration: dict[str, Any]) -> None:
    """Remove keys without a value from a configuration, and from its rules, matrices and chains."""
    parts = [configuration.get(name) for name in ("rules", "matrices", "chains")]
    inner = [each for part in parts if isinstance(part, dict) for each in part.values()]
    for mapping in (*inner, *parts, configuration):
        if isinstance(mapping, dict):
            for key in [key for key, value in mapping.items() if value is None]:
                del mapping[key]


def check(configuration: Mapping[str, Any]) -> None:
    """Raise UserError where a configuration has an unknown key, lacks one, or where one holds what it cannot."""
    given = {key: value for key, value in configuration.items() if key != FILE}
    try:
        for place, key in keys(given):
            if not isinstance(key, str):
                raise UserError(f"{named(place)}: the name {key!r} is no text; write it in quotes")
    except RecursionError:
        raise UserError(
            "the configuration holds an anchor that contains itself; write out what it stands for"
        ) from None
    if errors := sorted(validator().iter_errors(given), key=lambda error: len(error.absolute_path)):
        raise UserError(told(errors[0]))


@functools.cache
def validator() -> jsonschema.protocols.Validator:
    """Return what finds the mistakes in a configuration."""
    import jsonschema
    import yaml

    usual = jsonschema.Draft202012Validator
    whole = usual.TYPE_CHECKER.redefine("integer", lambda _checker, value: type(value) is int)  # 1.0 is none
    found = jsonschema.validators.extend(usual, type_checker=whole)
    return found(yaml.safe_load(SCHEMA.read_text(encoding="utf-8")))


def keys(value: object, place: Sequence[object] = ()) -> Iterator[tuple[Sequence[object], object]]:
    """Yield all keys of nested mappings, each behind the keys and numbers that lead to its mapping."""
    if isinstance(value, Mapping):
        yield from ((place, key) for key in value)
    inner = value.items() if isinstance(value, Mapping) else enumerate(value) if isinstance(value, list) else ()
    for key, each in inner:
        yield from keys(each, (*place, key))


def told(error: jsonschema.ValidationError) -> str:
    """Return in our words what is wrong, and what to write."""
    where, given, wanted = named(error.absolute_path), error.instance, error.validator_value
    if error.validator == "additionalProperties":
        known = error.schema["properties"]
        patterns = error.schema.get("patternProperties", {})
        name = next(key for key in given if key not in known and not any(re.search(each, key) for each in patterns))
        return f"{where}: no {name}{closest(name, known)}; there are {', '.join(sorted(known))}"
    if error.validator == "required":
        return f"{where} has no {', '.join(key for key in wanted if key not in given)}"
    if error.validator == "enum":
        return f"{where}: no {given}; there are {', '.join(wanted)}"
    if error.validator == "type":
        words = [TYPES[kind] for kind in ([wanted] if isinstance(wanted, str) else wanted) if kind in TYPES]
        written = f"; write it as {float(given)}" if "number" in wanted and number(given) else ""
        return f"{where}: {given!r} is not {' or '.join(words)}{written}"
    if error.validator == "pattern":
        return f"{where}: the name {given} is empty or has one of {{ }} [ ] * ? / , in it; choose another"
    if error.validator == "not":
        return f"{where}: {given} is no option here; models, data, seeds and the first keys of a configuration say it"
    if error.validator in ("minItems", "minLength", "minProperties"):
        return f"{where} is empty"
    return f"{where}: {error.message}"


def number(value: object) -> bool:
    """Tell whether text is a number that YAML does not take for one, as 1e-3 without a point."""
    try:
        return isinstance(value, str) and math.isfinite(float(value))
    except ValueError:
        return False


def named(place: Sequence[object]) -> str:
    """Return how a message names a place in a configuration.

    >>> named(["matrices", "sizes", "seeds", 0])
    'matrices.sizes.seeds.0'
    """
    return ".".join(map(str, place)) or "the configuration"
