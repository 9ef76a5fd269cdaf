"""Tasks to meta-learn, as `FiniteSum` or `Resampling` problems."""

from adaptax.tasks import rl
from adaptax.tasks.cosine import Cosine, cosine
from adaptax.tasks.factorisation import factorisation, factorisation_init
from adaptax.tasks.images import Affine, Characters, few_shot, held_out, read_characters
from adaptax.tasks.sinusoid import sinusoid, sinusoid_resampling

__all__ = [
    "Affine",
    "Characters",
    "Cosine",
    "cosine",
    "factorisation",
    "factorisation_init",
    "few_shot",
    "held_out",
    "read_characters",
    "rl",
    "sinusoid",
    "sinusoid_resampling",
]
