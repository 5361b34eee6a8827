"""What is said of a key or a value that a schema refuses: one line, with the key that was meant."""

from __future__ import annotations

import difflib
import inspect
import re
from collections.abc import Mapping, Sequence
from typing import Any, get_origin

from pydantic import BaseModel

# From this similarity on (of 1), a name passes for a slip of another one.
_NEAR = 0.71


def explain(fault: Mapping[str, Any], schema: type[BaseModel]) -> str:
    """Return one line for one of pydantic's errors: the dotted key, and what is wrong with it."""
    # Where a value may be of several kinds, the last part names the kind that it is not.
    key = ".".join(str(part) for part in fault["loc"] if re.fullmatch(r"\w+", str(part)))
    if fault["type"] == "extra_forbidden":
        near = nearest_keys(key, known_keys(schema))
        hint = f"; did you mean {' or '.join(map(repr, near))}?" if near else ""
        return f"unknown key {key!r}{hint}"
    if fault["type"] == "missing":
        return f"key {key!r} is missing"
    reason = fault["msg"].removeprefix("Value error, ")
    return f"key {key!r}: {reason}, got {fault['input']!r}"


def known_keys(schema: type[BaseModel], prefix: str = "") -> list[str]:
    """Return the dotted keys of a schema, those of the sections in it after each section's own."""
    keys: list[str] = []
    for name, field in schema.model_fields.items():
        keys.append(prefix + name)
        for inner in (field.annotation, *getattr(field.annotation, "__args__", ())):
            # On Python 3.10, tuple[int, int] passes for a type and is none.
            is_class = get_origin(inner) is None and inspect.isclass(inner)
            if is_class and issubclass(inner, BaseModel):
                keys += known_keys(inner, f"{prefix}{name}.")
    return keys


def nearest_keys(key: str, known: Sequence[str]) -> list[str]:
    """Return the known dotted keys that an unknown one may stand for; none if none is near.

    Those of the same last name, in whatever section, come before those that are like it; of the
    latter, those of the same section come first. More than three are no help.
    """
    section, _, name = key.rpartition(".")
    beside = [other for other in known if other.rpartition(".")[0] == section]
    found = [other for other in known if _is_short_for(name, _last(other))]
    for keys in (beside, known):
        found = found or [other for other in keys if _words(name) <= _words(_last(other))]
        near = difflib.get_close_matches(name, map(_last, keys), n=1, cutoff=_NEAR)
        found = found or [other for other in keys if [_last(other)] == near]
    return found if len(found) <= 3 else []


def _last(key: str) -> str:
    return key.rpartition(".")[2]


def _words(name: str) -> set[str]:
    return set(name.split("_"))


def _is_short_for(name: str, other: str) -> bool:
    """Whether names are the same, or one is the other's initials, as "lr" of "learning_rate"."""
    return name in (other, _initials(other)) or other == _initials(name)


def _initials(name: str) -> str | None:
    return "".join(word[:1] for word in name.split("_")) if "_" in name else None
