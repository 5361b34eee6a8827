"""Outlines of the shapes on the generated sample pictures.

Each function returns closed contours, float64 (N, 2) xy around the origin with y pointing down.
A contour inside another is a hole.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np


def _arc(radius: float, start: float, end: float, points: int) -> np.ndarray:
    angles = np.linspace(start, end, points)
    return radius * np.stack([np.cos(angles), np.sin(angles)], axis=1)


def circle() -> list[np.ndarray]:
    return [_arc(1.0, 0, 2 * np.pi, 64)]


def square() -> list[np.ndarray]:
    return [np.array([[-1.0, -1.0], [1.0, -1.0], [1.0, 1.0], [-1.0, 1.0]])]


def triangle() -> list[np.ndarray]:
    return [np.array([[0.0, -1.0], [1.1, 0.9], [-1.1, 0.9]])]


def star() -> list[np.ndarray]:
    """Five points; the first points up."""
    outline = _arc(1.0, -np.pi / 2, 3 * np.pi / 2, 11)[:-1]
    outline[1::2] *= 0.42
    return [outline]


def cross() -> list[np.ndarray]:
    arm = np.array([[0.3, -1.0], [0.3, -0.3], [1.0, -0.3]])
    quarter_turn = np.array([[0.0, 1.0], [-1.0, 0.0]])
    turns = [arm @ np.linalg.matrix_power(quarter_turn, k) for k in range(4)]
    return [np.concatenate(turns)]


def ring() -> list[np.ndarray]:
    return [_arc(1.0, 0, 2 * np.pi, 64), _arc(0.55, 0, 2 * np.pi, 64)]


def crescent() -> list[np.ndarray]:
    """A moon: the outer arc, and back along an arc of the same radius moved to the right."""
    tip = np.arccos(0.3)
    outer = _arc(1.0, tip, 2 * np.pi - tip, 48)
    inner = _arc(1.0, np.pi + tip, np.pi - tip, 48) + np.array([0.6, 0.0])
    return [np.concatenate([outer, inner])]


def arrow() -> list[np.ndarray]:
    """Points to the right."""
    half = np.array([[-1.0, -0.28], [0.1, -0.28], [0.1, -0.75], [1.0, 0.0]])
    return [np.concatenate([half, half[2::-1] * [1.0, -1.0]])]


SHAPES: dict[str, Callable[[], list[np.ndarray]]] = {
    "circle": circle,
    "square": square,
    "triangle": triangle,
    "star": star,
    "cross": cross,
    "ring": ring,
    "crescent": crescent,
    "arrow": arrow,
}
