"""The task families of the command line, each declared in a file of its own. Imports no JAX.

A new family is a file beside these, with a subclass of `Training`, and a name in the tuple below.
"""

from adaptax.cli.families.images import Images
from adaptax.cli.families.locomotion import AntDir, AntGoal, AntVel, CheetahDir, CheetahVel
from adaptax.cli.families.matrix import Matrix
from adaptax.cli.families.navigation import Navigation
from adaptax.cli.families.sinusoid import Sinusoid
from adaptax.cli.training import Training

FAMILIES: dict[str, type[Training]] = {
    family.task: family for family in (Sinusoid, Matrix, Images, Navigation, CheetahDir, CheetahVel, AntDir, AntVel, AntGoal)
}
