"""A TOML file and `--set section.key=value` into frozen dataclasses, strictly."""

import dataclasses
import difflib
import hashlib
import json
import math
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any, TypeVar, get_type_hints

import tomli_w

Sections = dict[str, dict[str, Any]]
ConfigT = TypeVar("ConfigT")
TABLES = tuple[dict[str, Any], ...]
WANTED: dict[Any, str] = {tuple[str, ...]: "a list of strings", TABLES: "a list of tables"}


def read_sections(path: Path | None, overrides: Iterable[str] = ()) -> Sections:
    """Return the sections of a TOML file with `section.key=value` overrides applied.

    A value is read as TOML, and as a plain string where it is none, so that both
    `fit.epochs=3` and `head.name=linear` work without quotes.

    Raises:
        ValueError: a file that is not TOML, or an override of another form.
    """
    sections: Sections = {}
    if path is not None:
        try:
            sections = tomllib.loads(path.read_text(encoding="utf-8"))
        except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
            raise ValueError(f"{path} is not valid TOML: {error}.") from error
    for override in overrides:
        name, equals, text = override.partition("=")
        section, dot, key = name.strip().partition(".")
        if not (equals and dot and section and key):
            raise ValueError(f"--set takes section.key=value, as in fit.epochs=3; got {override!r}.")
        sections.setdefault(section, {})[key] = _toml_value(text.strip())
    return sections


def _toml_value(text: str) -> Any:
    try:
        return tomllib.loads(f"value = {text}")["value"]
    except tomllib.TOMLDecodeError:
        return text


def parse_config(kind: type[ConfigT], sections: Sections, *, foreign: Iterable[str] = ()) -> ConfigT:
    """Make the config dataclass `kind`, whose fields are sections, from parsed TOML.

    `foreign` names sections that belong to the other program and are passed over.

    Raises:
        ValueError: all errors of the file at once, one per line: unknown sections and
            keys with the nearest known name, wrong types, values out of range.
    """
    errors: list[str] = []
    section_kinds = get_type_hints(kind)
    for name in sections:
        if name not in section_kinds and name not in foreign:
            errors.append(f"unknown section [{name}]{_nearest(name, [*section_kinds, *foreign])}")
    made: dict[str, Any] = {}
    for name, section_kind in section_kinds.items():
        values: Any = sections.get(name, {})
        if not isinstance(values, dict):
            errors.append(f"[{name}] must be a table, got {values!r}")
            continue
        section_errors = _check_keys(name, section_kind, values)
        errors += section_errors
        if section_errors:
            continue
        try:
            made[name] = section_kind(**values)
        except ValueError as error:
            errors.append(f"[{name}] {error}")
    if errors:
        raise ValueError("the config has errors:\n  " + "\n  ".join(errors))
    return kind(**made)


def _check_keys(section: str, kind: type, values: dict[str, Any]) -> list[str]:
    """Return what is wrong with the names and types of a section; ints become floats, lists
    tuples, in place."""
    hints = get_type_hints(kind)
    errors = []
    for key, value in values.items():
        if key not in hints:
            errors.append(f"unknown key {section}.{key}{_nearest(key, hints)}")
        elif hints[key] is float and type(value) is int:
            values[key] = float(value)
        elif hints[key] is float and type(value) is float and not math.isfinite(value):
            errors.append(f"{section}.{key} must be a finite number, got {value}")
        elif hints[key] == tuple[str, ...] and type(value) in (str, list, tuple):
            values[key] = (value,) if type(value) is str else tuple(map(str, value))
        elif hints[key] == TABLES and type(value) in (list, tuple) and all(type(v) is dict for v in value):
            values[key] = tuple(value)
        elif type(value) is not hints[key]:
            wanted = WANTED.get(hints[key]) or hints[key].__name__
            errors.append(f"{section}.{key} must be {wanted}, got {value!r}")
    return errors


def _nearest(name: str, known: Iterable[str]) -> str:
    known = list(known)
    match = difflib.get_close_matches(name, known, n=1)
    if match:
        return f"; did you mean {match[0]!r}?"
    return f"; known: {', '.join(sorted(known))}"


def as_sections(config: Any) -> Sections:
    """Return a config as plain nested dicts, ready for TOML or JSON: tuples become lists."""
    sections: Sections = dataclasses.asdict(config)
    for values in sections.values():
        values |= {key: list(value) for key, value in values.items() if isinstance(value, tuple)}
    return sections


def write_toml(sections: Mapping[str, Any], path: Path) -> None:
    """Write the resolved config beside an output."""
    path.write_bytes(tomli_w.dumps(sections).encode())


def digest(value: Any) -> str:
    """Return the sha256 (hex) of a JSON-able value; key order does not matter."""
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def differences(found: Mapping[str, Any], wanted: Mapping[str, Any]) -> list[str]:
    """Return one `section.key: found -> wanted` line per value in which two configs differ.

    A list and a tuple of the same values are the same.
    """
    left, right = _flat(found), _flat(wanted)
    return [
        f"{key}: {left.get(key, 'absent')!r} -> {right.get(key, 'absent')!r}"
        for key in sorted(left | right)
        if left.get(key) != right.get(key)
    ]


def _flat(tree: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in tree.items():
        if isinstance(value, Mapping):
            flat |= _flat(value, f"{prefix}{key}.")
        else:
            flat[prefix + key] = list(value) if isinstance(value, tuple) else value
    return flat
