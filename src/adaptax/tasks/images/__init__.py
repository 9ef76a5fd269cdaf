"""Few-shot image classification: images read from folders and archives, and the tasks made of them."""

from adaptax.tasks.images.characters import Characters
from adaptax.tasks.images.classes import ImageClasses
from adaptax.tasks.images.distortion import Affine
from adaptax.tasks.images.episodes import few_shot
from adaptax.tasks.images.holding import held_out
from adaptax.tasks.images.joint import joint
from adaptax.tasks.images.omniglot import read_characters
from adaptax.tasks.images.prepared import open_prepared, prepare_images
from adaptax.tasks.images.prototypes import prototypical
from adaptax.tasks.images.reading import read_images
from adaptax.tasks.images.scoring import both_accuracies
from adaptax.tasks.images.statistics import with_statistics
from adaptax.tasks.images.stream import episodes

__all__ = [
    "Affine",
    "Characters",
    "ImageClasses",
    "both_accuracies",
    "episodes",
    "few_shot",
    "held_out",
    "joint",
    "open_prepared",
    "prepare_images",
    "prototypical",
    "read_characters",
    "read_images",
    "with_statistics",
]
