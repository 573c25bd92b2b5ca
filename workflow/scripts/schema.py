"""Reads a configuration, and says in one line where it is not as workflow/schemas/config.schema.yaml has it."""

from __future__ import annotations

import functools
import importlib.util
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import source  # noqa: F401

from deeppatch.errors import UserError, closest

if TYPE_CHECKING:
    import jsonschema

SCHEMA = Path(__file__).resolve().parents[1] / "schemas" / "config.schema.yaml"
TYPES = {
    "object": "a mapping", "array": "a list", "string": "text", "number": "a number", "integer": "a whole number",
    "boolean": "true or false",
}  # fmt: skip


def read(file: Path) -> dict[str, Any]:
    """Return what the file of a configuration holds; UserError where it cannot be read."""
    if importlib.util.find_spec("snakemake") is None:
        raise UserError("a study needs Snakemake; install it with: pip install 'deeppatch[study]'")
    import yaml

    try:
        found = yaml.safe_load(file.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"{file}: {error.strerror}; give a YAML file") from None
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise UserError(f"{file} is no YAML: {error}") from None
    if not isinstance(found, dict):
        raise UserError(f"{file} holds no configuration; it needs matrices, as workflow/config/demo.yaml has")
    return found


def check(configuration: Mapping[str, Any]) -> None:
    """Raise UserError where a configuration has an unknown key, lacks one, or where one holds what it cannot."""
    for place, key in keys(configuration):
        if not isinstance(key, str):
            raise UserError(f"{named(place)}: the name {key!r} is no text; write it in quotes")
    if errors := sorted(validator().iter_errors(configuration), key=lambda error: len(error.absolute_path)):
        raise UserError(told(errors[0]))


@functools.cache
def validator() -> jsonschema.protocols.Validator:
    """Return what finds the mistakes in a configuration."""
    import jsonschema
    import yaml

    return jsonschema.Draft202012Validator(yaml.safe_load(SCHEMA.read_text(encoding="utf-8")))


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
        return f"{where}: {given!r} is not {' or '.join(words)}"
    if error.validator in ("minItems", "minLength", "minProperties"):
        return f"{where} is empty"
    return f"{where}: {error.message}"


def named(place: Sequence[object]) -> str:
    """Return how a message names a place in a configuration.

    >>> named(["matrices", "sizes", "seeds", 0])
    'matrices.sizes.seeds.0'
    """
    return ".".join(map(str, place)) or "the configuration"
