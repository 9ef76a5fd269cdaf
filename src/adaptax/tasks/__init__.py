"""Tasks to meta-learn, as `FiniteSum` or `Resampling` problems."""

from adaptax.tasks import rl
from adaptax.tasks.cosine import Cosine, cosine
from adaptax.tasks.factorisation import factorisation, factorisation_init
from adaptax.tasks.images import (
    Affine,
    Characters,
    DataWarning,
    ImageClasses,
    both_accuracies,
    episodes,
    few_shot,
    held_out,
    joint_classification,
    open_prepared,
    prepare_images,
    prototypical,
    read_characters,
    read_images,
    with_statistics,
)
from adaptax.tasks.sinusoid import sinusoid, sinusoid_resampling
from adaptax.tasks.table import table

__all__ = [
    "Affine",
    "Characters",
    "Cosine",
    "DataWarning",
    "ImageClasses",
    "both_accuracies",
    "cosine",
    "episodes",
    "factorisation",
    "factorisation_init",
    "few_shot",
    "held_out",
    "joint_classification",
    "open_prepared",
    "prepare_images",
    "prototypical",
    "read_characters",
    "read_images",
    "rl",
    "sinusoid",
    "sinusoid_resampling",
    "table",
    "with_statistics",
]
