"""Reading and decoding images from folders and archives. Nothing is extracted to disk and nothing is unpickled."""

from adaptax.tasks.images.io.class_names import DataWarning
from adaptax.tasks.images.io.omniglot import read_characters
from adaptax.tasks.images.io.prepared import open_prepared, prepare_images
from adaptax.tasks.images.io.reading import read_images

__all__ = ["DataWarning", "open_prepared", "prepare_images", "read_characters", "read_images"]
