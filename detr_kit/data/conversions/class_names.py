"""The names of classes, as other label formats keep them: one a line, or in a data.yaml."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import yaml

from detr_kit.errors import DetrKitError

YAML_SUFFIXES = (".yaml", ".yml")
NAME_FILES = ("classes.txt", "obj.names", "classes.names")

# Given by a user: the names in order, by class index, or in a file.
Names = Sequence[str] | Mapping[int, str] | Path


def names_by_index(names: Names | str, where: Path) -> dict[int, str]:
    """Return class index to name; `where` stands in errors for names that are not in a file."""
    if isinstance(names, (str, Path)):
        return names_of_file(Path(names))
    return checked_names({**names} if isinstance(names, Mapping) else dict(enumerate(names)), where)


def names_of_file(path: Path) -> dict[int, str]:
    """Return class index to name of a data.yaml, or of a text file with a name a line."""
    if path.suffix.lower() in YAML_SUFFIXES:
        return names_of_yaml(path, read_yaml(path))
    lines = [line.strip() for line in read_lines(path)]
    while lines and not lines[-1]:
        lines.pop()
    return checked_names(dict(enumerate(lines)), path)


def names_of_yaml(path: Path, values: Mapping[str, Any]) -> dict[int, str]:
    """Return the names in the values of the data.yaml at `path`."""
    names = values.get("names")
    if not isinstance(names, (list, dict)):
        raise DetrKitError(f"{path}: names must list the classes, got {names!r}")
    try:
        pairs = enumerate(names) if isinstance(names, list) else names.items()
        table = {int(index): name for index, name in pairs}
    except (TypeError, ValueError) as error:
        raise DetrKitError(f"{path}: names must be a list or have class indices as keys") from error
    count = values.get("nc")
    if count is not None and count != len(table):
        raise DetrKitError(f"{path}: nc is {count}, but there are {len(table)} names")
    return checked_names(table, path)


def checked_names(names: dict[int, Any], where: Path) -> dict[int, str]:
    """Return the names as text; raises where one is empty, twice there, or no name in YAML."""
    if not names:
        raise DetrKitError(f"{where}: no class has a name")
    table: dict[int, str] = {}
    for index, name in sorted(names.items()):
        if isinstance(name, bool) or not isinstance(name, (str, int, float)) or not str(name):
            raise DetrKitError(f"{where}: class {index} must have a name in quotes, got {name!r}")
        if index < 0 or str(name) in table.values():
            raise DetrKitError(f"{where}: class {index}, {str(name)!r}, is negative or named twice")
        table[index] = str(name)
    return table


def read_yaml(path: Path) -> dict[str, Any]:
    """Return the keys of a YAML file; raises DetrKitError naming it."""
    try:
        values = yaml.safe_load(path.read_text(encoding="utf-8-sig"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        raise DetrKitError(f"{path}: cannot read it: {' '.join(str(error).split())}") from error
    if not isinstance(values, dict):
        raise DetrKitError(f"{path}: expected keys such as train, val and names")
    return values


def read_lines(path: Path) -> list[str]:
    """Return the lines of a text file; raises DetrKitError naming it."""
    try:
        return path.read_text(encoding="utf-8-sig").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DetrKitError(f"{path}: cannot read the file: {reason}") from error
