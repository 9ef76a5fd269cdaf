"""Runs under injected faults: every run must end bit for bit as one that nothing has disturbed.

    python benchmarks/faults.py [--faults 1000] [--minutes 60] [--seed 0]

Short runs on sinusoids are killed, interrupted, given errors by the system or damaged, and resumed each time until they end. A
shared object that is compiled on the spot (faults.c, with cc) stands between all libraries and the C library, so that a fault
also meets the checkpoint writer's C++. One long-lived process forks the ones that train before JAX starts; faults that leave
a process alive are injected one after another into the same one. Prints a table and writes results/faults.json.
"""

import argparse
import collections
import contextlib
import ctypes
import errno
import json
import math
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
import traceback
import warnings
from pathlib import Path
from typing import Any

from tables import rows_of

STEPS, EVERY, EVALUATED = 60, 6, 20
# How many faults a process takes before it is killed by the last of them.
LIFE = 25
# Kinds of faults.c.
FAIL_WRITE, FAIL_WRITES, FAIL_READ, KILL, KILL_HALFWAY, FLIP, LOSE = range(1, 8)
BY_CALL = {
    "EIO at one write": (FAIL_WRITE, errno.EIO),
    "ENOSPC from a write on": (FAIL_WRITES, errno.ENOSPC),
    "EIO at one read": (FAIL_READ, errno.EIO),
    "bit flipped while a checkpoint is written": (FLIP, 0),
    "half of a write to a checkpoint lost": (LOSE, 0),
}
DAMAGES = (
    "bit flipped in a checkpoint",
    "file of a checkpoint truncated",
    "file of a checkpoint missing",
    "last line of the history torn",
)
SIGNALS = {"SIGINT": signal.SIGINT, "SIGTERM": signal.SIGTERM}
FATAL = {
    "SIGKILL at a random instant": None,
    "SIGKILL before a write": KILL,
    "SIGKILL halfway through a write": KILL_HALFWAY,
}
ALIVE = (*BY_CALL, *DAMAGES, *SIGNALS, "a callback raises")
# What may be raised; anything else is printed.
EXPECTED = {"CheckpointError", "InputError", "ArithmeticError", "KeyboardInterrupt", "Terminated"}
SHIM = "ADAPTAX_FAULTS"


def compiled(folder: Path) -> Path:
    """The shared object, compiled by cc; a sentence and the end where that cannot be."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None or not sys.platform.startswith("linux"):
        sys.exit("Faults are injected by a shared object on Linux: install a C compiler (cc) and give the same command again.")
    shim = folder / "faults.so"
    source = Path(__file__).with_suffix(".c")
    subprocess.run([compiler, "-O2", "-shared", "-fPIC", "-o", str(shim), str(source), "-ldl"], check=True)
    return shim


class Session:
    """What one process does: it trains run after run, each attempt under one fault of a plan, and says what happened.

    Arguments:
        folder: where the runs are.
        seed: decides instants and places.
        say: takes what is to be told the parent.
    """

    def __init__(self, folder: Path, seed: int, say: Any):
        import jax
        import jax.numpy as jnp

        import adaptax as ax
        from adaptax._signals import terminable

        self.terminable = terminable
        # A shell that starts this in the background has it ignored.
        signal.signal(signal.SIGINT, signal.default_int_handler)
        self.ax, self.jax, self.folder, self.say = ax, jax, folder, say
        self.random = random.Random(seed)
        self.problem = ax.tasks.sinusoid()
        self.params = ax.models.mlp((1, 8, 1), key=jax.random.key(0), activation=jnp.tanh)
        self.method = ax.MetaGradient(ax.Inner(2, ax.stepsize.Edge(tasks=2, every=10)))
        self.shim = ctypes.CDLL(os.environ[SHIM])
        self.shim.fault_arm.argtypes = [ctypes.c_char_p, ctypes.c_int, ctypes.c_long, ctypes.c_int]
        self.taken = 0

    def train(self, run: Path, callback: Any = None) -> Any:
        """One attempt, from wherever the run is."""

        def count(state, record):
            self.taken += len(record["loss"])
            if callback is not None:
                callback(int(state.step))

        return self.ax.train(
            self.problem, self.params, self.method, steps=STEPS, tasks_per_step=4, evaluate_every=EVALUATED, out=run,
            checkpoint_every=EVERY, resume=True, validation=self.problem, callback=count,
        )  # fmt: skip

    def digest(self, found: Any) -> str:
        """All bits of a state and of a history."""
        import equinox as eqx
        import numpy as np

        from adaptax._tree import arrays_of
        from adaptax.training.checkpoints import _digest

        state, history = found
        assert eqx.is_array(state.step)
        return _digest({**arrays_of(state), **{name: np.asarray(values) for name, values in history.items()}})

    def reference(self) -> dict[str, Any]:
        """A run that nothing disturbs: its bits, its time once compiled, and its calls of the system."""
        self.shim.fault_arm(bytes(self.folder / "compiled" / "checkpoints"), FLIP, 2**40, 0)
        first = self.digest(self.train(self.folder / "compiled"))
        data = self.shim.fault_seen()
        start = time.perf_counter()
        self.shim.fault_arm(bytes(self.folder / "reference"), KILL, 2**40, 0)
        whole = self.digest(self.train(self.folder / "reference"))
        writes = self.shim.fault_seen()
        seconds = time.perf_counter() - start
        self.shim.fault_arm(bytes(self.folder / "reference"), FAIL_READ, 2**40, 0)
        again = self.digest(self.train(self.folder / "reference"))
        reads = self.shim.fault_seen()
        self.shim.fault_arm(b"", 0, 0, 0)
        assert first == whole == again, "an undisturbed run is not repeatable here"
        return {"digest": whole, "seconds": seconds, "writes": writes, "reads": reads, "data": data}

    def live(self, number: int, plan: list[str], whole: dict[str, Any], until: float = math.inf) -> None:
        """Take the faults of a plan, in runs from this number on, as long as the time goes."""
        for kind in plan:
            if time.perf_counter() > until:
                break
            run = self.folder / f"run{number}"
            begun, start, before = newest(run), time.perf_counter(), self.taken
            if kind in FATAL:
                self.say({"fault": kind, "run": number, "from": begun})
            said = self.attempt(run, kind, whole)
            entry = {"kind": kind, "run": number, "from": begun, **said}
            entry |= {"to": newest(run), "taken": self.taken - before, "seconds": time.perf_counter() - start}
            if said["ended"]:
                # A checkpoint that was damaged last is found only when it is read.
                entry["same"] = self.digest(self.again(run)) == whole["digest"]
                shutil.rmtree(run)
                number += 1
            self.say(entry)
        # What is left is ended without another fault.
        run = self.folder / f"run{number}"
        before, start = self.taken, time.perf_counter()
        same = self.digest(self.again(run)) == whole["digest"]
        shutil.rmtree(run)
        taken = self.taken - before
        self.say({"kind": None, "run": number, "same": same, "taken": taken, "seconds": time.perf_counter() - start})

    def again(self, run: Path) -> Any:
        """The end of a run, without a fault."""
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self.train(run)
            return self.train(run)

    def attempt(self, run: Path, kind: str, whole: dict[str, Any]) -> dict[str, Any]:
        """Train under one fault: whether it struck, what was raised or warned of, and whether the run has ended."""
        callback, timer, struck = None, None, None
        if (kind in DAMAGES or kind == "EIO at one read") and not newest(run):
            # There must be something to damage or to read.
            with contextlib.suppress(ArithmeticError):
                self.train(run, raising(self.random.randrange(2 * EVERY, STEPS)))
        if kind in BY_CALL:
            fault, code = BY_CALL[kind]
            calls = whole[{FAIL_READ: "reads", FLIP: "data", LOSE: "data"}.get(fault, "writes")]
            target = run / "checkpoints" if fault in (FLIP, LOSE) else run
            self.shim.fault_arm(bytes(target), fault, self.random.randrange(calls), code)
        elif kind in DAMAGES:
            struck = damage(run, kind, self.random)
        elif FATAL.get(kind) is not None:
            self.shim.fault_arm(bytes(run), FATAL[kind], self.random.randrange(whole["writes"]), 0)
        elif kind in SIGNALS or kind in FATAL:
            number = SIGNALS.get(kind, signal.SIGKILL)
            timer = threading.Timer(self.random.uniform(0, whole["seconds"]), os.kill, (os.getpid(), number))
        else:
            callback, struck = raising(self.random.randrange(1, STEPS + 1)), True
        raised, told = None, set()
        try:
            # Also a signal that comes before the first meta-step, or after the last, ends the attempt in good order.
            with self.terminable(), warnings.catch_warnings(record=True) as warned:
                warnings.simplefilter("always")
                try:
                    if timer is not None:
                        timer.start()
                    self.train(run, callback)
                    told = {warning.category.__name__ for warning in warned}
                finally:
                    if timer is not None:
                        timer.cancel()
                        timer.join()
        except BaseException as error:
            raised = type(error).__name__
            if kind in SIGNALS:
                struck = True
            if raised not in EXPECTED:
                traceback.print_exc()
        finally:
            if kind in BY_CALL or kind in FATAL:
                struck = self.shim.fault_fired() > 0
                self.shim.fault_arm(b"", 0, 0, 0)
        struck = struck and (kind != "a callback raises" or raised is not None)
        return {"struck": bool(struck), "raised": raised, "warned": sorted(told), "ended": raised is None}


def raising(at: int) -> Any:
    """A callback that fails at a meta-step."""

    def callback(step):
        if step >= at:
            raise ArithmeticError("a callback of the user's own fails")

    return callback


def newest(run: Path) -> int:
    """The newest checkpoint that counts."""
    try:
        return max(map(int, json.loads((run / "manifest.json").read_text())), default=0)
    except OSError:
        return 0


def damage(run: Path, kind: str, random: random.Random) -> bool:
    """Damage a file of a run, if it has one of the kind; whether it had."""
    if kind.startswith("last line"):
        history = run / "history.jsonl"
        if history.is_file():
            with open(history, "a") as file:
                file.write('{"step": 59, "loss": 0.1')
        return history.is_file()
    files = [path for path in (run / "checkpoints" / str(newest(run))).rglob("*") if path.is_file() and path.stat().st_size]
    if not files:
        return False
    path = random.choice(sorted(files))
    data = bytearray(path.read_bytes())
    if kind.startswith("bit"):
        data[random.randrange(len(data))] ^= 1 << random.randrange(8)
    if kind.endswith("missing"):
        path.unlink()
    else:
        path.write_bytes(data if kind.startswith("bit") else data[: random.randrange(len(data))])
    return True


def forked(work: Any) -> tuple[list[dict[str, Any]], int]:
    """What a process says that does this work, and how it ended; it begins as a copy of this one."""
    reader, writer = os.pipe()
    child = os.fork()
    if child == 0:
        os.close(reader)
        code = 1
        with open(writer, "w", buffering=1) as pipe:
            try:
                work(lambda entry: pipe.write(json.dumps(entry) + "\n"))
                code = 0
            except BaseException:
                traceback.print_exc()
            pipe.flush()
            os._exit(code)
    os.close(writer)
    with open(reader) as pipe:
        said = [json.loads(line) for line in pipe if line.endswith("\n")]
    return said, os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def campaign(folder: Path, faults: int, minutes: float, seed: int) -> dict[str, Any]:
    """Faults of all kinds in turn, until there were so many or the time is over."""
    # Imported before the fork, so that no process has to; JAX starts in each of them.
    import adaptax as ax
    from adaptax.training import run

    assert callable(ax.train)
    began, chance = time.perf_counter(), random.Random(seed)
    said, code = forked(lambda say: say(Session(folder, seed, say).reference()))
    assert code == 0, "the undisturbed run failed"
    whole, events, number, lives = said[0], [], 0, 0
    until = began + 60 * minutes
    while (struck := sum(entry.get("struck", False) for entry in events)) < faults and time.perf_counter() < until:
        lives += 1
        count = min(LIFE, faults - struck) - 1
        plan = [*chance.choices(ALIVE, k=count), chance.choice([*FATAL])]
        said, code = forked(lambda say, n=number, p=plan, s=seed + lives: Session(folder, s, say).live(n, p, whole, until))
        fatal = said[-1] if said and "fault" in said[-1] else None
        for entry in said:
            if "kind" in entry:
                events.append(entry)
        if fatal is not None and code == -signal.SIGKILL:
            run = folder / f"run{fatal['run']}"
            events.append(
                {"kind": fatal["fault"], "struck": True, "run": fatal["run"], "from": fatal["from"], "to": newest(run)}
            )
            number = fatal["run"]
        elif code != 0:
            raise RuntimeError(f"a process that trains ended with {code} in the plan {plan}")
        else:
            number = said[-1]["run"] + 1
    # A run that the last fault has stopped is ended, too.
    said, _ = forked(lambda say: Session(folder, seed, say).live(number, [], whole))
    events += [entry for entry in said if "kind" in entry]
    return summary(events, whole, lives, time.perf_counter() - began)


def summary(events: list[dict[str, Any]], whole: dict[str, Any], lives: int, seconds: float) -> dict[str, Any]:
    """Counts by kind, what was lost, and how much of the time and of the meta-steps went into what remained."""
    rows = []
    for kind in (*FATAL, *SIGNALS, *BY_CALL, *DAMAGES, "a callback raises"):
        mine = [entry for entry in events if entry["kind"] == kind and entry["struck"]]
        happened = collections.Counter(
            entry.get("raised") or ", ".join(entry.get("warned") or ()) or ("killed" if kind in FATAL else "went on")
            for entry in mine
        )
        # A checkpoint counts for good, unless its own bytes are damaged.
        back = sum(entry["to"] < entry["from"] for entry in mine)
        rows.append({"kind": kind, "faults": len(mine), "happened": dict(happened), "went_back": back})
    ended = [entry["same"] for entry in events if "same" in entry]
    taken = sum(entry.get("taken", 0) for entry in events)
    return {
        "faults": sum(row["faults"] for row in rows),
        "runs": len(ended),
        "identical": sum(ended),
        "processes": lives,
        "seconds": seconds,
        "goodput": {
            "seconds_undisturbed": whole["seconds"],
            "share_of_time": len(ended) * whole["seconds"] / seconds,
            "meta_steps_needed": STEPS * len(ended),
            "meta_steps_counted": taken,
        },
        "rows": rows,
    }


def table(result: dict) -> str:
    """One row for each kind of fault, as markdown."""
    words = [", ".join(f"{what} {count}" for what, count in row["happened"].items()) for row in result["rows"]]
    body = [[r["kind"], str(r["faults"]), w] for r, w in zip(result["rows"], words, strict=True)]
    return rows_of(["fault", "number", "what happened"], body)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=1000)
    parser.add_argument("--minutes", type=float, default=60, help="begin no further fault after so many")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, metavar="FILE", help=argparse.SUPPRESS)
    options = parser.parse_args()
    with contextlib.ExitStack() as stack:
        if SHIM not in os.environ:
            folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="adaptax-faults-")))
            shim = compiled(folder)
            programs = str(folder / "programs")
            environment = {**os.environ, SHIM: str(shim), "LD_PRELOAD": str(shim), "JAX_COMPILATION_CACHE_DIR": programs}
            environment |= {"JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0"}
            return subprocess.run([sys.executable, *sys.argv], env=environment).returncode
        from machine import measurement
        from tables import RESULTS

        folder = Path(os.environ[SHIM]).parent / "runs"
        folder.mkdir()
        result = campaign(folder, options.faults, options.minutes, options.seed)
        (options.out or RESULTS / "faults.json").write_text(json.dumps(measurement(parser, options) | result, indent=1) + "\n")
    print(table(result))
    print(
        f"{result['faults']} faults in {result['runs']} runs, of which {result['identical']} ended bit for bit as undisturbed."
    )
    if not result["faults"]:
        print("No fault struck, so nothing was shown: give more --faults or --minutes.")
    return 0 if result["faults"] and result["identical"] == result["runs"] else 1


if __name__ == "__main__":
    sys.exit(main())
