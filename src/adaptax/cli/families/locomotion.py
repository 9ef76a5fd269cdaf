"""The task families of MuJoCo's half cheetah and ant, which must find out where, or how fast, to run."""

import math
from dataclasses import dataclass
from typing import Any, ClassVar, Literal

from adaptax.cli.families.reinforcement import Reinforcement
from adaptax.cli.options import Count, Fraction
from adaptax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Locomotion(Reinforcement):
    """A body of MuJoCo with goals of one kind."""

    body: ClassVar[Literal["cheetah", "ant"]]
    goals: ClassVar[Literal["direction", "velocity", "position"]]

    gae_lambda: Fraction = 0.9
    """Lambda of generalised advantage estimation."""

    def problem(self, loss: Any) -> Any:
        from adaptax.tasks import rl

        make: Any = {"cheetah": rl.cheetah, "ant": rl.ant}[self.body]
        return make(self.goals, horizon=self.horizon, loss=loss)

    def check_goal(self, numbers: tuple[float, ...]) -> None:
        """Refuse the numbers of `adaptax video --goal` if they are no goal of this family; there may be none.

        Errors: `InputError`.
        """
        given, count = " ".join(f"{x:g}" for x in numbers), 2 if self.goals == "position" else 1
        if numbers and (len(numbers) != count or not all(map(math.isfinite, numbers))):
            wanted = "two finite numbers" if count == 2 else "one finite number"
            raise InputError(f"--goal {given} must be {wanted} for {self.task}.")
        if numbers and self.goals == "direction" and numbers[0] not in (-1, 1):
            raise InputError(f"--goal {given} must be a direction: -1 or 1.")


@dataclass(frozen=True, kw_only=True)
class CheetahDir(Locomotion):
    """MuJoCo's half cheetah that must find out whether to run forwards or backwards (needs the extra rl)."""

    task: ClassVar[str] = "cheetah-dir"
    body, goals = "cheetah", "direction"

    tasks_per_step: Count = 12


@dataclass(frozen=True, kw_only=True)
class CheetahVel(Locomotion):
    """MuJoCo's half cheetah that must find out how fast to run (needs the extra rl)."""

    task: ClassVar[str] = "cheetah-vel"
    body, goals = "cheetah", "velocity"


@dataclass(frozen=True, kw_only=True)
class AntDir(Locomotion):
    """MuJoCo's ant that must find out whether to run forwards or backwards (needs the extra rl)."""

    task: ClassVar[str] = "ant-dir"
    body, goals = "ant", "direction"


@dataclass(frozen=True, kw_only=True)
class AntVel(Locomotion):
    """MuJoCo's ant that must find out how fast to run (needs the extra rl)."""

    task: ClassVar[str] = "ant-vel"
    body, goals = "ant", "velocity"


@dataclass(frozen=True, kw_only=True)
class AntGoal(Locomotion):
    """MuJoCo's ant that must find out where to run to (needs the extra rl)."""

    task: ClassVar[str] = "ant-goal"
    body, goals = "ant", "position"
