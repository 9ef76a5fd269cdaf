"""Task batches from the host: drawn ahead of time, taken several at a time, and found again when a run goes on."""

import base64
import json
import zlib
from collections import deque
from collections.abc import Callable, Iterable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from adaptax import _devices as dev
from adaptax import _processes as processes
from adaptax.errors import InputError

# Batches that one compiled program takes: so many bytes of them, and at most so many.
_BYTES, _MOST = 2**24, 16
_OVER = object()


class Stream:
    """Batches of an iterable, in order.

    A thread draws the next ones while the device works. Where the iterator has `get_state` and `set_state`, as those of grain
    have, its state after each batch is kept, so that a run goes on without drawing earlier batches again.

    Arguments:
        tasks: the iterable.
        given: makes a batch of what the iterator gives, or refuses it.
        steps: how many batches may be drawn at most.
        mesh: the devices of the tasks, where each process draws those of its own devices alone; None where it draws all.
        count: how many tasks a meta-step takes.
    """

    def __init__(
        self, tasks: Iterable[PyTree], given: Callable[[PyTree], PyTree], steps: int, mesh: Any = None, count: int = 0
    ):
        self._source: Any = iter(tasks)
        self._given, self._left, self._taken, self._mesh, self._count = given, steps, 0, mesh, count
        self.stateful = all(callable(getattr(self._source, name, None)) for name in ("get_state", "set_state"))
        self._pool = ThreadPoolExecutor(1, "tasks")
        self._waiting: deque[Future] = deque()
        self._states: list[Any] = []
        # The first batch is looked at before training begins, and then taken.
        first = processes.together(lambda: self._result(self._pool.submit(self._draw)))[0]
        self._check_same(first)
        self.first = first if mesh is None else dev.whole(mesh, dev.joined(mesh, first, count))
        self._left -= 1
        self._kept: tuple[PyTree, Any] | None = (first, self._mark())
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(first))
        self.capacity = int(min(max(_BYTES // max(size, 1), 1), _MOST, steps))

    def _mark(self) -> Any:
        """The iterator's state now, in a form for JSON."""
        return _encoded(self._source.get_state()) if self.stateful else None

    def _draw(self) -> tuple[PyTree, Any]:
        batch = next(self._source, _OVER)
        return (batch, None) if batch is _OVER else (self._given(batch), self._mark())

    def _result(self, future: Future) -> tuple[PyTree, Any]:
        batch, state = future.result()
        if batch is _OVER:
            text = f"tasks= ended after {self._taken} batches: it must give one batch for every meta-step."
            raise InputError(text)
        self._taken += 1
        return batch, state

    def skip(self, count: int, state: Any) -> None:
        """Go on after `count` batches: from the iterator's state there, or by drawing and dropping them."""
        if state is None or not self.stateful:
            self._next(count)
            return
        several = isinstance(state, dict) and "processes" in state
        if several != (self._mesh is not None) or (several and len(state["processes"]) != jax.process_count()):
            begun = f"in {len(state['processes'])} processes with" if several else "without"
            text = f"The iterators of this run were saved {begun} local_tasks=True, and their states fit no others"
            raise InputError(f"{text}: go on in the same way, or begin anew in another folder.")
        state = state["processes"][jax.process_index()] if several else state
        self._source.set_state(_decoded(state))
        self._kept, self._taken = None, count
        self._left -= count - 1

    def take(self, count: int) -> PyTree:
        """The next batches, stacked along a second axis of length `capacity` (the last one repeated)."""
        drawn = processes.together(lambda: self._next(count))
        self._check_same([batch for batch, _ in drawn])
        self._states = [state for _, state in drawn]
        filled = [batch for batch, _ in drawn] + [drawn[-1][0]] * (self.capacity - count)
        stacked = jax.tree.map(lambda *leaves: jnp.stack(leaves, axis=1), *filled)
        return stacked if self._mesh is None else dev.joined(self._mesh, stacked, self._count)

    def _next(self, count: int) -> list[tuple[PyTree, Any]]:
        drawn = [] if self._kept is None else [self._kept]
        self._kept = None
        while len(drawn) < count:
            while len(self._waiting) < self.capacity and self._left > 0:
                self._waiting.append(self._pool.submit(self._draw))
                self._left -= 1
            drawn.append(self._result(self._waiting.popleft()))
        return drawn

    def state_after(self, count: int) -> Any:
        """The iterator's state after so many of the batches that were taken last, of all processes; None without one."""
        state = self._states[count - 1] if self._states else None
        return {"processes": processes.everybodys(state)} if self._mesh is not None and self.stateful else state

    def _check_same(self, batches: PyTree) -> None:
        """Refuse batches that are not those of every process, of which each takes its devices' share; or of other shapes."""
        if not processes.several():
            return
        if self._mesh is None:
            found, text = processes.checksum(batches), "another batch than process 0"
            remedy = "draw the same tasks in every process, which takes its own share of them"
        else:
            leaves, structure = jax.tree.flatten(batches)
            found = zlib.crc32(repr((structure, [(leaf.shape[1:], leaf.dtype.name) for leaf in leaves])).encode())
            text, remedy = (
                "a batch of another form than process 0",
                "let the tasks of all processes have the same shapes and dtypes",
            )
        sums = processes.gather(found, np.uint32)
        if (other := int(np.argmax(sums != sums[0]))) > 0:
            raise InputError(f"tasks= gave process {other} {text}: {remedy}.")

    def close(self) -> None:
        """Draw no more."""
        for future in self._waiting:
            future.cancel()
        self._pool.shutdown(wait=False)


def picked(mesh: Any, batches: PyTree, index: int) -> PyTree:
    """One of stacked batches, whole in each process."""
    return dev.whole(mesh, jax.tree.map(lambda leaf: leaf[:, index], batches))


def _encoded(state: Any) -> Any:
    if isinstance(state, bytes):
        return {"base64": base64.b64encode(state).decode()}
    try:
        return {"json": json.loads(json.dumps(state))}
    except (TypeError, ValueError) as error:
        text = f"tasks= is an iterator whose get_state() returned {type(state).__name__}, which cannot be saved ({error})"
        raise InputError(f"{text}: let it return bytes, or numbers and text in dicts and lists.") from error


def _decoded(state: dict[str, Any]) -> Any:
    return base64.b64decode(state["base64"]) if "base64" in state else state["json"]
