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
    """Their key and ours.

    Several of theirs are stacked along the first axis in this order; one of theirs is cut along
    the second axis into several of ours.
    """

    theirs: str | tuple[str, ...]
    ours: str | tuple[str, ...]

    @property
    def parts(self) -> tuple[str, ...]:
        return (self.theirs,) if isinstance(self.theirs, str) else self.theirs

    @property
    def pieces(self) -> tuple[str, ...]:
        return (self.ours,) if isinstance(self.ours, str) else self.ours


@dataclass(frozen=True)
class KeyMap:
    """How the keys of one kind of checkpoint, called `name`, translate.

    `rules` are tried in order. `aliases` first bring other spellings of a key to the one that the
    rules have. `dropped` are templates of keys that hold nothing a detector needs, with the
    reason.

    `copies` name keys, and the key of the same tensor that the rules have: a copy is dropped where
    that is there too, and read where it is not. `repeated` name keys of ours that a checkpoint may
    leave out, and the one whose tensor they have then.
    """

    name: str
    rules: tuple[Rule, ...]
    aliases: tuple[tuple[str, str], ...] = ()
    dropped: Mapping[str, str] = field(default_factory=dict)
    copies: tuple[tuple[str, str], ...] = ()
    repeated: tuple[tuple[str, str], ...] = ()

    def to_ours(self, tensors: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], tuple[str, ...]]:
        """Return the tensors under our names, and the dropped keys.

        Raises DetrKitError that lists the keys which no rule knows, copies that differ, and the
        parts of a stack that are missing or differ in shape.
        """
        faults: dict[str, list[str]] = {}
        originals, dropped = self._originals(tensors, faults)
        stacks: dict[str, dict[int, Tensor]] = {}
        for key, spelling in originals.items():
            target = self._target(spelling)
            if target is None:
                faults.setdefault("unknown", []).append(key)
                continue
            part, names = target
            pieces = _cut(tensors[key], len(names))
            if not pieces:
                told = f"{key} {tuple(tensors[key].shape)}"
                faults.setdefault("of shapes that cannot be cut", []).append(told)
            for name, piece in zip(names, pieces, strict=bool(pieces)):
                parts = stacks.setdefault(name, {})
                if part in parts:
                    faults.setdefault("twice", []).append(key)
                parts[part] = piece
        self._look_for_gaps(stacks, faults)
        _raise_faults(f"not {self._article} {self.name} checkpoint", faults)
        ours = {name: _stacked(parts) for name, parts in stacks.items()}
        return self._with_repeated(ours), tuple(dropped)

    def to_theirs(self, tensors: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return our tensors under their names, without those that such a checkpoint drops.

        Raises DetrKitError for keys without a rule.
        """
        found: dict[str, dict[int, Tensor]] = {}
        unknown = []
        for name, tensor in tensors.items():
            target = self._source(name)
            if target is None:
                unknown.append(name)
                continue
            keys, piece = target
            if not any(self._is_dropped(key) for key in keys):
                parts = tensor.chunk(len(keys)) if len(keys) > 1 else (tensor,)
                for key, part in zip(keys, parts, strict=True):
                    found.setdefault(key, {})[piece] = part
        _raise_faults(f"{self.name} has no place for these tensors", {"unknown": unknown})
        return {key: _stacked(pieces, dim=1) for key, pieces in found.items()}

    def to_theirs_keys(self, ours: str) -> tuple[str, ...]:
        """Return the key or keys that one of ours comes from; none if no rule knows it."""
        target = self._source(ours)
        return () if target is None else target[0]

    def dropped_because(self, key: str) -> str:
        """Return the reason for a dropped key."""
        reasons = zip(self._dropped_patterns, self.dropped.values(), strict=True)
        found = (reason for pattern, reason in reasons if pattern.fullmatch(key))
        return next(found, "the same tensor is there under another name")

    @property
    def _article(self) -> str:
        return "an" if self.name[0] in "aeio" else "a"

    @cached_property
    def _our_patterns(self) -> list[tuple[re.Pattern[str], Rule, int]]:
        return [
            (_pattern(template), rule, piece)
            for rule in self.rules
            for piece, template in enumerate(rule.pieces)
        ]

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
    def _copy_patterns(self) -> list[tuple[re.Pattern[str], str]]:
        return [(_pattern(copy), original) for copy, original in self.copies]

    @cached_property
    def _dropped_patterns(self) -> list[re.Pattern[str]]:
        return [_pattern(template) for template in self.dropped]

    def _spelled(self, key: str) -> str:
        """Return the key as the rules, or the copies, spell it."""
        for pattern, known in self._alias_patterns:
            match = pattern.fullmatch(key)
            if match:
                key = known.format(**match.groupdict())
        return key

    def _originals(
        self, tensors: Mapping[str, Tensor], faults: dict[str, list[str]]
    ) -> tuple[dict[str, str], list[str]]:
        """Return how the rules spell the keys that are needed, and the dropped keys."""
        known = {key: self._spelled(key) for key in tensors if not self._is_dropped(key)}
        there = {spelling: key for key, spelling in known.items()}
        originals: dict[str, str] = {}
        copies: set[str] = set()
        for key, spelling in known.items():
            original = self._original(spelling)
            if original == spelling or original not in there:
                originals[key] = original
            elif _same(tensors[key], tensors[there[original]]):
                copies.add(key)
            else:
                faults.setdefault("differing copies", []).append(key)
        return originals, [key for key in tensors if key not in known or key in copies]

    def _original(self, key: str) -> str:
        for pattern, original in self._copy_patterns:
            match = pattern.fullmatch(key)
            if match:
                return original.format(**match.groupdict())
        return key

    def _target(self, key: str) -> tuple[int, tuple[str, ...]] | None:
        """Return which part of ours the key is, and our key, or the keys that it is cut into."""
        for pattern, rule, part in self._their_patterns:
            match = pattern.fullmatch(key)
            if match:
                return part, tuple(piece.format(**match.groupdict()) for piece in rule.pieces)
        return None

    def _source(self, ours: str) -> tuple[tuple[str, ...], int] | None:
        """Return their key or keys that one of ours comes from, and which piece of it it is."""
        for pattern, rule, piece in self._our_patterns:
            match = pattern.fullmatch(ours)
            if match:
                return tuple(part.format(**match.groupdict()) for part in rule.parts), piece
        return None

    def _look_for_gaps(
        self, stacks: Mapping[str, Mapping[int, Tensor]], faults: dict[str, list[str]]
    ) -> None:
        """Add to the faults where a stack lacks parts, or has parts of other shapes."""
        for ours, parts in stacks.items():
            keys = self.to_theirs_keys(ours)
            missing = [key for part, key in enumerate(keys) if part not in parts]
            shapes = {part: tuple(parts[part].shape) for part in sorted(parts)}
            uneven: list[str] = []
            if len(keys) > 1 and (len(set(shapes.values())) > 1 or () in shapes.values()):
                uneven = [f"{keys[part]} {shape}" for part, shape in shapes.items()]
            for kind, names in (("missing", missing), ("of shapes that do not stack", uneven)):
                if names:
                    faults.setdefault(kind, []).extend(names)

    def _with_repeated(self, found: dict[str, Tensor]) -> dict[str, Tensor]:
        """Fill in what the checkpoint leaves out because it has the tensor of another key."""
        filled = dict(found)
        for template, original in self.repeated:
            pattern = _pattern(original)
            for ours, tensor in found.items():
                match = pattern.fullmatch(ours)
                if match:
                    filled.setdefault(template.format(**match.groupdict()), tensor)
        return filled

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


def _cut(tensor: Tensor, count: int) -> tuple[Tensor, ...]:
    """Cut along the second axis into equal pieces; none where it cannot be cut so."""
    if count == 1:
        return (tensor,)
    if tensor.ndim < 2 or tensor.shape[1] % count:
        return ()
    return tensor.chunk(count, dim=1)


def _same(one: Tensor, other: Tensor) -> bool:
    alike = one.shape == other.shape and one.dtype == other.dtype
    return alike and torch.equal(one, other)


def _stacked(parts: Mapping[int, Tensor], dim: int = 0) -> Tensor:
    ordered = [parts[part] for part in sorted(parts)]
    return ordered[0] if len(ordered) == 1 else torch.cat(ordered, dim=dim)


def _raise_faults(heading: str, faults: Mapping[str, Collection[str]]) -> None:
    told = [f"{kind}: {listed(list(names))}" for kind, names in faults.items() if names]
    if told:
        raise DetrKitError(f"{heading}; {'; '.join(told)}")
