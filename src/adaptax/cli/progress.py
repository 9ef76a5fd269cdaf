"""Progress of training and of reading images, on stderr: a bar on a terminal, a line now and then elsewhere."""

import sys
import time
from typing import Any

import numpy as np

from adaptax.cli.processes import is_silent


class Progress:
    """Shows the loss, tasks a second, the step size in use and the time left: on a terminal a bar, else a line each tenth.

    `ax.train` calls it after every compiled run.

    Arguments:
        title: the name of the training, which begins each line.
        steps: meta-steps from the beginning of the run.
        tasks_per_step: tasks of a meta-step.
        environment_steps: environment steps of a meta-step, in reinforcement learning.
    """

    def __init__(self, title: str, steps: int, tasks_per_step: int, environment_steps: int | None = None):
        self.title, self.steps, self.tasks_per_step = title, steps, tasks_per_step
        self.environment_steps = environment_steps
        self.bar: Any = None
        self.began: tuple[float, int] | None = None

    def __enter__(self) -> "Progress":
        if sys.stderr.isatty() and not is_silent():
            from rich.console import Console
            from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
            from rich.progress import Progress as Bar

            columns = (TextColumn(self.title), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[text]}"))
            self.bar = Bar(*columns, console=Console(stderr=True))
            self.bar.start()
            self.item = self.bar.add_task("", total=self.steps, text="compiling")
        return self

    def __exit__(self, *_: Any) -> None:
        if self.bar is not None:
            self.bar.stop()

    def __call__(self, state: Any, record: dict[str, np.ndarray]) -> None:
        if is_silent():
            return
        step, taken = int(state.step), len(record["loss"])
        now = time.perf_counter()
        # The time before the first call is mostly that of compiling.
        rate = 0.0 if self.began is None else (step - self.began[1]) / max(now - self.began[0], 1e-9)
        self.began = self.began or (now, step)
        text = ""
        if taken:
            losses, skipped = record["loss"][np.isfinite(record["loss"])], int(record["skipped"].sum())
            loss = f"{losses.mean():.4g}" if len(losses) else "not finite"
            used = f", step size {record['stepsize'][-1]:.3g}" if state.inner.steps else ""
            text = f"loss {loss}{used}" + (f", {skipped} skipped" if skipped else "")
        if rate > 0:
            speed = f"{rate * self.tasks_per_step:,.0f} tasks/s"
            if self.environment_steps is not None:
                speed = f"{rate * self.environment_steps:,.0f} environment steps/s"
            text += f", {speed}, {_clock((self.steps - step) / rate)} left"
        if self.bar is not None:
            self.bar.update(self.item, completed=step, text=text)
        elif step * 10 // self.steps > (step - taken) * 10 // self.steps:
            print(f"{self.title}: {step} of {self.steps} meta-steps, {text}", file=sys.stderr, flush=True)


class Reading:
    """Shows how many images are read, if there are many: on a terminal a line that counts, else a line each quarter."""

    def __init__(self, title: str):
        self.title, self.began = title, time.perf_counter()

    def __call__(self, done: int, total: int) -> None:
        parts = 100 if sys.stderr.isatty() else 4
        if is_silent() or total < 1000 or done * parts // total == (done - 1) * parts // total:
            return
        left = (time.perf_counter() - self.began) / done * (total - done)
        text = f"{self.title}: {done:,} of {total:,} images read, {_clock(left)} left"
        end = "\r" if sys.stderr.isatty() and done < total else "\n"
        print(text, end=end, file=sys.stderr, flush=True)


def _clock(seconds: float) -> str:
    minutes, seconds = divmod(round(seconds), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{seconds:02}" if hours else f"{minutes}:{seconds:02}"
