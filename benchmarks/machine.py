"""The description of a measurement (machine, versions, commit, command; no names of hosts or paths), and a time limit."""

import argparse
import contextlib
import os
import platform
import signal
import subprocess
import sys
from importlib.metadata import version
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parent.parent


def description() -> dict:
    """Processor, cores, Python and package versions."""
    cpu = platform.processor() or platform.machine()
    if os.path.exists("/proc/cpuinfo"):
        with open("/proc/cpuinfo") as file:
            names = [line.split(":", 1)[1].strip() for line in file if line.startswith("model name")]
        cpu = names[0] if names else cpu
    packages = ("jax", "jaxlib", "equinox", "optax", "numpy")
    return {
        "cpu": cpu,
        "cores": len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count(),
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def measurement(parser: argparse.ArgumentParser, options: argparse.Namespace) -> dict[str, Any]:
    """What every saved result says of itself: `machine`, `commit`, `command` (what differs from the defaults), `settings`."""
    shown, words = {}, ["python", f"benchmarks/{Path(sys.argv[0]).name}"]
    for action in parser._actions:
        if action.dest == "help" or action.help == argparse.SUPPRESS:
            continue
        value, name = getattr(options, action.dest), action.option_strings[0]
        if isinstance(value, Path):
            words += [name, action.metavar or action.dest.upper()]
            continue
        shown[action.dest] = list(value) if isinstance(value, tuple | list) else value
        default = list(action.default) if isinstance(action.default, tuple | list) else action.default
        if shown[action.dest] != default:
            words.append(name)
            if value is not True:
                words += [_quoted(str(word)) for word in (value if isinstance(value, tuple | list) else [value])]
    return {"machine": description(), "commit": commit(), "command": " ".join(words), "settings": shown}


def commit() -> str | None:
    """The commit of this checkout, with "+" if its sources or scripts were changed since; None without git."""
    git = ["git", "-C", str(ROOT)]
    try:
        found = subprocess.run([*git, "rev-parse", "--short=10", "HEAD"], check=True, capture_output=True, text=True)
        paths = ["src", "benchmarks", ":!benchmarks/results"]
        changed = subprocess.run([*git, "diff", "--quiet", "HEAD", "--", *paths], check=False).returncode
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip() + ("+" if changed else "")


def run_within(seconds: float, words: list[str], **options: Any) -> int | None:
    """The exit status of a command, or None if it took longer; then it and all processes that it started are stopped."""
    # A signal to terminate is handled as an interrupt, so that nothing is left running.
    signal.signal(signal.SIGTERM, signal.default_int_handler)
    process = subprocess.Popen(words, start_new_session=True, **options)
    try:
        return process.wait(seconds)
    except BaseException as error:
        # First in a way that lets it stop what it started in sessions of their own.
        os.killpg(process.pid, signal.SIGINT)
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(20)
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        if not isinstance(error, subprocess.TimeoutExpired):
            raise
        return None


def _quoted(word: str) -> str:
    return f'"{word}"' if " " in word else word
