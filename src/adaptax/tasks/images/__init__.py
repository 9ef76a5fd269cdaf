"""Few-shot image classification: image data by class, and the tasks made of it. `io` reads the images."""

from adaptax.tasks.images.characters import Characters
from adaptax.tasks.images.classes import ImageClasses
from adaptax.tasks.images.distortion import Affine
from adaptax.tasks.images.episodes import few_shot
from adaptax.tasks.images.io import DataWarning, open_prepared, prepare_images, read_characters, read_images
from adaptax.tasks.images.joint_classification import joint_classification
from adaptax.tasks.images.prefetch import episodes
from adaptax.tasks.images.prototypes import prototypical
from adaptax.tasks.images.scoring import both_accuracies
from adaptax.tasks.images.splits import held_out
from adaptax.tasks.images.statistics import with_statistics

__all__ = [
    "Affine",
    "Characters",
    "DataWarning",
    "ImageClasses",
    "both_accuracies",
    "episodes",
    "few_shot",
    "held_out",
    "joint_classification",
    "open_prepared",
    "prepare_images",
    "prototypical",
    "read_characters",
    "read_images",
    "with_statistics",
]
