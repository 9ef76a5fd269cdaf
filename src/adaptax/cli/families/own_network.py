"""Networks of the user's own, by the name of a function: `--model MODULE:FUNCTION`."""

import importlib
import os
import sys
from typing import Any

import equinox as eqx

from adaptax._tree import first_line
from adaptax.errors import InputError


def own_network(name: str, outputs: int, key: Any, images: Any) -> Any:
    """The network that MODULE:FUNCTION makes, looked at on the shape of a batch of images.

    Modules are found as Python finds them, and in the working folder.

    Errors: `InputError` if there is no such module or function, if it fails, or if the network does not take these images to
    one row of outputs for each.
    """
    module, _, function = name.partition(":")
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())
    try:
        make = getattr(importlib.import_module(module), function)
    except ImportError as error:
        text = f"--model {name}: the module {module} cannot be imported ({first_line(error)})"
        raise InputError(f"{text}: run the command where it lies, or install it.") from error
    except AttributeError as error:
        raise InputError(f"--model {name}: the module {module} has no {function}.") from error
    image = images.shape[1:]
    try:
        network = make(outputs, key=key, image=image)
    except Exception as error:
        text = f"--model {name}: {function}({outputs}, key=..., image={image}) fails ({first_line(error)})"
        raise InputError(f"{text}: let it take the number of outputs, a key and the size of the images.") from error
    try:
        out = eqx.filter_eval_shape(lambda network, images: network(images), network, images)
    except Exception as error:
        text = f"--model {name}: the network fails on a batch of images of shape {images.shape} ({first_line(error)})"
        raise InputError(f"{text}: let it be a function of such a batch.") from error
    if getattr(out, "shape", None) != (images.shape[0], outputs):
        text = (
            f"--model {name}: the network takes images of shape {images.shape} to {getattr(out, 'shape', type(out).__name__)}"
        )
        raise InputError(f"{text}: let it return ({images.shape[0]}, {outputs}), one row for each image.")
    return network
