"""Few-shot image classification: characters read from a zip, and the tasks made of them."""

from adaptax.tasks.images.characters import Characters, held_out
from adaptax.tasks.images.distortion import Affine
from adaptax.tasks.images.episodes import few_shot
from adaptax.tasks.images.omniglot import read_characters

__all__ = ["Affine", "Characters", "few_shot", "held_out", "read_characters"]
