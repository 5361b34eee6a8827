"""Key maps: the names of a published checkpoint's tensors and ours, as data, in both directions.

A template is a key with placeholders: `{i}` and `{j}` stand for numbers, `{p}` for `weight` or
`bias`, `{rest}` for anything. Both sides of a rule hold the same placeholders.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cached_property

import torch
from torch import Tensor

from detr_kit.checkpoints.listing import listed
from detr_kit.errors import DetrKitError

_PLACEHOLDERS = {"i": r"\d+", "j": r"\d+", "p": "weight|bias", "rest": ".+"}


@dataclass(frozen=True)
class Rule:
    """Their key, or several that are stacked along the first axis in this order, and ours."""

    theirs: str | tuple[str, ...]
    ours: str

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs


@dataclass(frozen=True)
class KeyMap:
    """How the keys of one kind of checkpoint, called `name`, translate.

    `rules` are tried in order. `aliases` first bring other spellings of a key to the one that the
    rules have. `dropped` are templates of keys that hold nothing a detector needs, with the
    reason.
    """

    name: str
    rules: tuple[Rule, ...]
    aliases: tuple[tuple[str, str], ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)

    def to_ours(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Return the tensors under our names, and the dropped keys.

        Raises DetrKitError that lists the keys which no rule knows, and the parts of a stack that
        are missing or differ in shape.
        """
        stacks: dict[str, dict[int, Tensor]] = {}
        dropped: list[str] = []
        unknown: list[str] = []
        repeated: list[str] = []
        for key, tensor in tensors.items():
            target = self._target(key)
            if target is None:
                (dropped if self._is_dropped(key) else unknown).append(key)
                continue
            ours, part = target
            parts = stacks.setdefault(ours, {})
            if part in parts:
                repeated.append(key)
            parts[part] = tensor
        missing: list[str] = []
        uneven: list[str] = []
        for ours, parts in stacks.items():
            keys = self.to_theirs_keys(ours)
            missing += [key for part, key in enumerate(keys) if part not in parts]
            shapes = {part: tuple(parts[part].shape) for part in sorted(parts)}
            if len(keys) > 1 and (len(set(shapes.values())) > 1 or () in shapes.values()):
                uneven += [f"{keys[part]} {shape}" for part, shape in shapes.items()]
        _raise_faults(
            f"not {self._article} {self.name} checkpoint",
            {
                "unknown": unknown,
                "twice": repeated,
                "missing": missing,
                "of shapes that do not stack": uneven,
            },
        )
        return {ours: _stacked(parts) for ours, parts in stacks.items()}, tuple(dropped)

    def to_theirs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our tensors under their names, without those that such a checkpoint drops.

        Raises DetrKitError for keys without a rule.
        """
        found: dict[str, Tensor] = {}
        unknown = []
        for key, tensor in tensors.items():
            keys = self.to_theirs_keys(key)
            if not keys:
                unknown.append(key)
                continue
            if not any(self._is_dropped(their_key) for their_key in keys):
                found.update(zip(keys, tensor.chunk(len(keys)), strict=True))
        _raise_faults(f"{self.name} has no place for these tensors", {"unknown": unknown})
        return found

    def to_theirs_keys(self, ours: str) -> tuple[str, ...]:
        """Return the key or keys that one of ours comes from; none if no rule knows it."""
        for pattern, rule in self._our_patterns:
            match = pattern.fullmatch(ours)
            if match:
                return tuple(part.format(**match.groupdict()) for part in rule.parts)
        return ()

    def dropped_because(self, key: str) -> str:
        """Return the reason for a dropped key."""
        reasons = zip(self._dropped_patterns, self.dropped.values(), strict=True)
        return next(reason for pattern, reason in reasons if pattern.fullmatch(key))

    @property
    def _article(self) -> str:
        return "an" if self.name[0] in "aeio" else "a"

    @cached_property
    def _our_patterns(self) -> list[tuple[re.Pattern[str], Rule]]:
        return [(_pattern(rule.ours), rule) for rule in self.rules]

    @cached_property
    def _their_patterns(self) -> list[tuple[re.Pattern[str], Rule, int]]:
        return [
            (_pattern(template), rule, part)
            for rule in self.rules
            for part, template in enumerate(rule.parts)
        ]

    @cached_property
    def _alias_patterns(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(newer), known) for newer, known in self.aliases]

    @cached_property
    def _dropped_patterns(self) -> list[re.Pattern[str]]:
        return [_pattern(template) for template in self.dropped]

    def _target(self, key: str) -> tuple[str, int] | None:
        """Return our key, and which part of it the given one is."""
        if self._is_dropped(key):
            return None
        for pattern, known in self._alias_patterns:
            match = pattern.fullmatch(key)
            if match:
                key = known.format(**match.groupdict())
        for pattern, rule, part in self._their_patterns:
            match = pattern.fullmatch(key)
            if match:
                return rule.ours.format(**match.groupdict()), part
        return None

    def _is_dropped(self, key: str) -> bool:
        return any(pattern.fullmatch(key) for pattern in self._dropped_patterns)


def require_fit(
    source: str,
    expected: Mapping[str, Tensor],
    found: Mapping[str, Tensor],
    key_map: KeyMap | None = None,
) -> None:
    """Raise DetrKitError that lists missing, unexpected and misshapen tensors.

    With `key_map`, the keys are named as the checkpoint at `source` names them.
    """

    def named(key: str) -> str:
        return ", ".join(key_map.to_theirs_keys(key)) if key_map is not None else key

    _raise_faults(
        f"{source}: its tensors do not fit the detector",
        {
            "missing": [named(key) for key in sorted(expected.keys() - found.keys())],
            "unexpected": [named(key) for key in sorted(found.keys() - expected.keys())],
            "of another shape": [
                f"{named(key)} {tuple(found[key].shape)} instead of {tuple(expected[key].shape)}"
                for key in sorted(expected.keys() & found.keys())
                if found[key].shape != expected[key].shape
            ],
        },
    )


def _pattern(template: str) -> re.Pattern[str]:
    text = re.escape(template)
    for name, expression in _PLACEHOLDERS.items():
        text = text.replace(rf"\{{{name}\}}", f"(?P<{name}>{expression})")
    return re.compile(text)


def _stacked(parts: Mapping[int, Tensor]) -> Tensor:
    ordered = [parts[part] for part in sorted(parts)]
    return ordered[0] if len(ordered) == 1 else torch.cat(ordered)


def _raise_faults(heading: str, faults: Mapping[str, Collection[str]]) -> None:
    told = [f"{kind}: {listed(list(names))}" for kind, names in faults.items() if names]
    if told:
        raise DetrKitError(f"{heading}; {'; '.join(told)}")
