"""The options of `adaptax train table`. Imports no JAX."""

from dataclasses import dataclass
from typing import Literal

from adaptax.cli import options
from adaptax.errors import InputError


@dataclass(frozen=True, kw_only=True)
class Table:
    """Rows of a CSV or Parquet file that belong to groups: learn to predict for a new group from a few of its rows."""

    data: options.OptionalData = None
    """The table (required): a CSV or Parquet file with a header; features are numbers without gaps."""
    group: options.OptionalName = None
    """Column that says which rows belong together (required)."""
    target: options.OptionalName = None
    """Column to predict (required)."""
    order: options.OptionalName = None
    """Column such as a time: the first rows of a group are known, later ones are predicted (default: any rows are known)."""
    features: tuple[str, ...] = ()
    """Columns to predict from (default: all others)."""
    support: options.OptionalCount = None
    """Rows of a new group that will be known (default: from 1 to half the rows of a typical group, 20 at most)."""
    classes: bool = False
    """Whether the target is a class."""
    model: Literal["auto", "additive", "ridge", "head", "all"] = "auto"
    """What adapts: a last layer in closed form on features of single columns (additive) or of all (ridge), or by gradient steps
    the last layer (head) or everything (all); auto takes that with the least error on groups held out."""
    max_steps: options.Count = 600
    """Meta-steps of each training at most."""
    seed: options.Seed = 0
    """Decides the whole run."""
    out: options.UnsavedPath = None
    """Folder for the model and its report (default: nothing is kept)."""

    def check_together(self) -> None:
        for name, what in (("data", "PATH, a CSV or Parquet file"), ("group", "COLUMN"), ("target", "COLUMN")):
            if getattr(self, name) is None:
                raise InputError(f"adaptax train table needs --{name}: add --{name} {what}.")
        if self.group == self.target:
            raise InputError(f"--group and --target are both {self.group}: give two columns.")
        if self.group in self.features or self.target in self.features:
            raise InputError("--features has the group or the target: leave them out.")

    def execute(self) -> int:
        from adaptax.cli.table import train

        return train(self)
