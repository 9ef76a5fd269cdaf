"""Which points of a path to keep, and which steps to take again, so that few points serve to go back over many steps.

A path of N steps is gone backward with k points in memory. Where l steps lie ahead of a kept point and s places are free, the
point m steps on is kept, the l - m steps behind it are gone backward with s - 1 places, and then the m steps before it with s.
No step is taken more than r times, the way forward included, with r the least number for which C(s + 1 + r, r) >= l, and with
the m chosen here the steps taken are the fewest possible (Griewank, Walther, 2000; docs/theory.md, section 1).
"""

import functools
import math
from typing import Any, NamedTuple

import numpy as np


class Schedule(NamedTuple):
    """The plan for N steps and k places; place k is for a point that serves at once.

    Arguments:
        keep: the place of w_j on the way forward, for each j (k: none).
        source, target, start, count: for each advance, the places it is from and to, the step that it begins at, and its steps.
        ends: the number of advances made when step j is gone backward, for each j.
        place: the place of w_j at that moment.
        again: how many steps all advances take.
    """

    keep: np.ndarray
    source: np.ndarray
    target: np.ndarray
    start: np.ndarray
    count: np.ndarray
    ends: np.ndarray
    place: np.ndarray
    again: int


@functools.lru_cache(256)
def schedule(steps: int, places: int) -> Schedule:
    """The plan that takes the fewest steps again.

    Example:
        >>> from adaptax._schedule import schedule
        >>> [schedule(1024, k).again for k in (2, 8, 45, 1024)]
        [28853, 3382, 978, 0]
    """
    keep, ends, place = (np.full(steps, value) for value in (places, 0, places))
    advances: list[tuple[int, int, int, int]] = []
    reversed_any = False

    def advance(source: int, target: int, start: int, count: int) -> None:
        if reversed_any:
            advances.append((source, target, start, count))
        else:
            keep[start + count] = target  # the way forward passes here

    def go_back(j: int, at: int) -> None:
        nonlocal reversed_any
        reversed_any = True
        place[j], ends[j] = at, len(advances)

    if steps:
        keep[0] = 0
        segments = [(0, steps, 0, tuple(range(places - 1, 0, -1)))]
        while segments:
            a, b, at, free = segments.pop()
            if b - a > 1 and free:
                m = split(b - a, len(free))
                advance(at, free[-1], a, m)
                # The steps behind the new point come first.
                segments += [(a, a + m, at, free), (a + m, b, free[-1], free[:-1])]
                continue
            for j in range(b - 1, a, -1):
                advance(at, places, a, j - a)
                go_back(j, places)
            go_back(a, at)
    source, target, start, count = np.array(advances, np.int32).reshape(-1, 4).T
    keep, ends, place = (part.astype(np.int32) for part in (keep, ends, place))
    return Schedule(keep, source, target, start, count, ends, place, int(count.sum()))


def split(length: int, free: int) -> int:
    """The number of steps to the next point to keep, for so many steps and free places."""
    r = 1
    while math.comb(free + 1 + r, r) < length:
        r += 1
    # With so many steps behind the new point, and so many before it, no step is taken more often than r times.
    behind = math.comb(free + r, r)
    least = max(length - behind, 1)
    return min(max(least, math.comb(free + r - 1, r - 2) if r > 1 else 1), length - 1)


def places_for(steps: int) -> int:
    """The fewest places with which no step is taken more than twice: about the root of 2N."""
    places = 1
    while math.comb(places + 2, 2) < steps:
        places += 1
    return places


def is_number_of_places(store: Any) -> bool:
    """Whether a value is a number of places."""
    return isinstance(store, int | np.integer) and not isinstance(store, bool) and int(store) >= 1
