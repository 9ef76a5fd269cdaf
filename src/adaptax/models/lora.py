"""Low-rank adapters for any pytree of matrices, and ready selections of biases and of normalisation parameters."""

import re
from collections.abc import Callable
from typing import Any

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Key, PyTree

from adaptax import _tree
from adaptax._checks import check_real, check_true_or_false, check_whole
from adaptax.errors import InputError

_BIASES = ("bias", "b", "beta", "offset", "shift")
# Names of a normalisation layer's parameters alone, and names that other layers have too.
_OF_NORMS, _SHARED = ("scale", "shift", "gamma", "beta"), ("bias", "b", "offset", "weight")
_NORMS = re.compile(r"norm|(^|_)(bn|gn|ln)(_|\d|$)")


class LoRA(eqx.Module):
    r"""Parameters with low-rank adapters: each chosen matrix is $W + \tfrac{\text{scale}}{r}AB$.

    Arguments:
        base: the parameters as they were.
        adapters: a tree like `base`, with a pair (A, B) at each chosen matrix and None elsewhere.
        scale: the factor of AB, over the rank.
        freeze: whether `base` is constant.
    """

    base: PyTree
    adapters: PyTree
    scale: float = eqx.field(static=True)
    freeze: bool = eqx.field(static=True)

    def merged(self) -> PyTree:
        """The parameters of the network itself."""

        def merge(pair, leaf):
            if pair is None:
                return leaf
            a, b = pair
            return leaf + (self.scale / a.shape[-1] * (a @ b)).astype(leaf.dtype)

        base = (
            jax.tree.map(lambda x: jax.lax.stop_gradient(x) if eqx.is_array(x) else x, self.base) if self.freeze else self.base
        )
        return jax.tree.map(merge, self.adapters, base, is_leaf=_is_place)

    @property
    def size(self) -> int:
        """How many numbers the adapters have."""
        return sum(leaf.size for leaf in jax.tree.leaves(self.adapters))


def lora(
    params: PyTree, rank: int = 4, where: Callable[[str], bool] | None = None, *, key: Key[Array, ""],
    scale: float | None = None, freeze: bool = True,
) -> LoRA:  # fmt: skip
    r"""Low-rank adapters on chosen matrices of any parameters: $W + \tfrac{\text{scale}}{r}AB$, with A zero at first.

    The base is constant where `freeze` is true: no optimiser, inner or outer, moves it, and no derivative is formed by it. The
    inner steps then adapt A and B alone, and the outer ones learn where they begin. With freeze=False the base is trained by
    the outer optimiser; pass `ax.Inner(adapt=ax.models.adapters)`, so that the inner steps still move A and B alone.

    Arguments:
        params: the parameters of a network: any pytree.
        rank: r, at least 1 and less than the sides of the matrices (default 4).
        where: which leaves get adapters: a function of the path, whose keys are joined with dots (default: all floating-point
            leaves of at least two axes whose last two are larger than r). The last two axes are those of the matrix; axes
            before them, such as that of stacked layers, have an adapter for each entry.
        key: for B, whose entries are normal with variance 1/n, n the number of its columns.
        scale: the factor of AB, over the rank (default: the rank, so that the factor is 1).
        freeze: whether the base is constant (default True).

    Returns: `LoRA`, to be meta-trained in the place of `params`; its `merged()` are parameters for the network.

    Errors: `InputError` if `where` selects nothing, or a leaf that is no matrix of a rank above r.

    Example:
        >>> import adaptax as ax, jax, jax.numpy as jnp
        >>> network = ax.models.mlp((8, 32, 32, 1), key=jax.random.key(0))
        >>> adapted = ax.models.lora(network, rank=2, where=lambda path: path == "layers.1.weight", key=jax.random.key(1))
        >>> adapted.size, bool(jnp.all(adapted.merged()(jnp.ones((1, 8))) == network(jnp.ones((1, 8)))))
        (128, True)
        >>> loss = lambda w, batch: jnp.mean((w.merged()(batch[0]) - batch[1]) ** 2)
        >>> task = ax.Task(support=(jnp.ones((4, 8)), jnp.ones((4, 1))))
        >>> new = ax.adapt(ax.FiniteSum(loss, lambda key: task), adapted, task, ax.Inner(steps=5)).params
        >>> bool(jnp.all(new.base.layers[1].weight == network.layers[1].weight))
        True

    Source: Hu et al. (2022), LoRA: low-rank adaptation of large language models, arXiv 2106.09685.
    """
    rank = check_whole("lora", "rank", rank)
    alpha: float = rank if scale is None else check_real("lora", "scale", scale, above=0)
    if where is not None and not callable(where):
        raise InputError("lora(where=...) must be a function of a leaf's path, such as lambda path: 'attention' in path.")
    leaves, structure = jax.tree_util.tree_flatten_with_path(params)
    places, adapters = [], []
    for number, (path, leaf) in enumerate(leaves):
        fits = _tree.is_floating(leaf) and leaf.ndim >= 2 and min(leaf.shape[-2:]) > rank
        name = _tree.path_name(path)
        if where is not None and where(name) and not fits:
            text = f"lora(where=...) selects {name} ({_tree.describe(leaf)}), which is no matrix with sides above rank={rank}"
            raise InputError(f"{text}: select matrices, or take a smaller rank.")
        chosen = fits if where is None else bool(where(name))
        places.append(chosen)
        adapters.append(_pair(leaf, rank, jax.random.fold_in(key, number)) if chosen else None)
    if not any(places):
        raise InputError(f"lora finds no matrix with sides above rank={rank}: let where= select at least one.")
    return LoRA(params, jax.tree.unflatten(structure, adapters), alpha, check_true_or_false("lora", "freeze", freeze))


def _pair(leaf: Any, rank: int, key: Any) -> tuple[Array, Array]:
    *stacked, rows, columns = leaf.shape
    b = jax.random.normal(key, (*stacked, rank, columns), leaf.dtype) / columns**0.5
    return jnp.zeros((*stacked, rows, rank), leaf.dtype), b


def _is_place(x: Any) -> bool:
    return x is None or (isinstance(x, tuple) and len(x) == 2 and all(map(eqx.is_array, x)))


def adapters(path: str) -> bool:
    """Whether a path is that of an adapter, for `ax.Inner(adapt=ax.models.adapters)` with `lora(..., freeze=False)`.

    Example:
        >>> import adaptax as ax
        >>> ax.models.adapters("adapters.layers.0.weight.0"), ax.models.adapters("base.layers.0.weight")
        (True, False)
    """
    return path.split(".")[0] == "adapters"


def biases(path: str) -> bool:
    """Whether a path is that of a bias by its last name, for `ax.Inner(adapt=ax.models.biases)`.

    Example:
        >>> import adaptax as ax
        >>> ax.models.biases("layers.0.bias"), ax.models.biases("Dense_0.kernel")
        (True, False)

    Source: Ben Zaken, Goldberg, Ravfogel (2022), BitFit, arXiv 2106.10199.
    """
    return _names(path)[-1] in _BIASES


def norms(path: str) -> bool:
    """Whether a path is that of a normalisation layer's scale or bias, for `ax.Inner(adapt=ax.models.norms)`.

    Example:
        >>> import adaptax as ax
        >>> ax.models.norms("BatchNorm_0.scale"), ax.models.norms("ln_1.bias"), ax.models.norms("layers.0.bias")
        (True, True, False)

    Source: Frankle, Schwab, Morcos (2021), Training BatchNorm and only BatchNorm, arXiv 2003.00152.
    """
    *layers, last = _names(path)
    return last in _OF_NORMS or (last in _SHARED and any(_NORMS.search(name) for name in layers))


def _names(path: str) -> list[str]:
    # A variable of Flax NNX ends in the attribute that holds its value.
    names = [name for part in path.lower().split(".") for name in part.split("/")]
    return names[:-1] if len(names) > 1 and names[-1] == "value" else names
