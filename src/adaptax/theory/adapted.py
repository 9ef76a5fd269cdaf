r"""Bounds by the adapted gradient, which need no step size of order 1/N where losses are convex."""

from typing import Any

from adaptax.theory.constants import Expansion
from adaptax.theory.powers import geometric, power
from adaptax.theory.smoothness import jacobian_lipschitz


def adapted_smoothness(path: Expansion, rho: Any, L_T: Any, adapted_gradient: Any, *, mixed: Any = None) -> Any:
    r"""$r^{2N}L_T + \alpha\rho r^{N-1}S_N\|\nabla l_T(\tilde w_N(u))\|$ [loss / w²], $S_N = \sum_{j<N}r^j$.

    It bounds $\|\nabla\mathcal L_i(w) - \nabla\mathcal L_i(u)\|/\|w - u\|$ for every w, and with the mean over tasks of the
    norms that of $\nabla\mathcal L$. The adapted gradient is what the reverse recursion starts from, so that every
    meta-gradient has computed it. (Resampling: it is at most $p\|\nabla l_i(u)\|$.)

    With outer parameters $\theta$ that do not adapt (ANIL: the body under an adapting head), give `mixed`. With $\zeta_j$ the
    spectral norm of $\begin{pmatrix}r^j & \alpha\eta S_j\\0 & 1\end{pmatrix}$ the bound, in $(w, \theta)$ together, is
    $\zeta_N^2L_T + \alpha\rho\sum_{j<N}r^{N-1-j}\zeta_j^2\,\|\nabla_w l_T(\tilde w_N)\|$.

    Arguments:
        path: the expansion, with `lam` and `mu` of the losses that the steps descend on. All numbers may be arrays, traced too.
        rho: Lipschitz constant of their Hessians [loss / w³]; with `mixed`, of all second derivatives of which one is by w.
        L_T: Lipschitz constant of the target gradient (resampling: L) [loss / w²]; with `mixed`, of that by $(w, \theta)$.
        adapted_gradient: $\|\nabla l_T(\tilde w_N(u))\|$ of one task, or the mean of these norms over tasks [loss / w].
        mixed: $\eta \ge \|\partial_\theta\nabla_w l\|$ (default None: all parameters adapt).

    Returns: the bound, without a condition on $\alpha$ and N.

    Example:
        >>> from adaptax import theory
        >>> convex = theory.Expansion(alpha=0.5, L=1.0, steps=100, mu=0.0)
        >>> theory.adapted_smoothness(convex, rho=0.1, L_T=1.0, adapted_gradient=2.0)
        11.0

    Source: docs/theory.md, section 6.1.
    """
    if mixed is None:
        return path.q * L_T + jacobian_lipschitz(path, rho) * adapted_gradient
    squares = [_frozen_square(path, mixed, j) for j in range(path.steps + 1)]
    later = [power(path.growth, path.steps - 1 - j) for j in range(path.steps)]
    changed = sum(factor * square for factor, square in zip(later, squares, strict=False))
    return squares[-1] * L_T + path.alpha * rho * changed * adapted_gradient


def _frozen_square(path: Expansion, mixed: Any, j: int) -> Any:
    r"""$\zeta_j^2$: the largest squared singular value of $(a, b; 0, 1)$, $a = r^j$, $b = \alpha\eta S_j$."""
    a, b = power(path.growth, j), path.alpha * mixed * geometric(path.growth, j)
    apart = (1 - a) ** 2 + b**2
    # The trace of the Gram matrix is apart + 2 a, and its determinant a².
    return (apart + 2 * a + (apart * (apart + 4 * a)) ** 0.5) / 2
