"""The one interface of all curvature strategies."""

from collections.abc import Callable

import equinox as eqx
from jaxtyping import Array, Key, PyTree


class AbstractCurvature(eqx.Module):
    r"""A way to form $\hat H_j v$ in $v \leftarrow v - \hat H_j (A_j v)$.

    Source: docs/theory.md, sections 1 and 7.
    """

    stochastic: eqx.AbstractClassVar[bool]

    def product(
        self, gradient: Callable[[PyTree], PyTree], w: PyTree, v: PyTree, key: Key[Array, ""] | None
    ) -> tuple[PyTree, PyTree]:
        r"""The gradient at w and $\hat H v$.

        Arguments:
            gradient: $w \mapsto \nabla l(w)$ on fixed samples; it may have more components than w (derivatives by what
                does not adapt), and then the product has them too.
            w: the adapting parameters.
            v: a direction, like w.
            key: for strategies that draw directions; None for the others.
        """
        raise NotImplementedError("abstract")
