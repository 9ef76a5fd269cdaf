"""A model whose last layer adapts in closed form: ridge regression about a learned prior, on learned features."""

from typing import NamedTuple

import equinox as eqx
import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Key

# In units of the standardised target: below this, single precision tells nothing.
_LEAST_NOISE = 1e-5
# The least ridge beside the mean of the Gram matrix's diagonal.
_RELATIVE = 3e-6
# Logarithms are kept divided by this, so that an outer step of 0.01 changes a variance by a tenth.
_UNIT = 10.0


class Posterior(NamedTuple):
    """The adapted last layer: the weights' mean, shape (D, C), and what their variance is less than the prior's, (S, D)."""

    mean: Float[Array, "D C"]
    factor: Float[Array, "S D"]


class RidgeModel(eqx.Module):
    r"""Features $\phi(x) = (1, x, h(x))$, a prior $v \sim N(v_0, \operatorname{diag} s)$ of the last layer, a noise $\sigma^2$.

    The adapted layer is the minimiser of $\sum_i (y_i - v\cdot\phi(x_i))^2/\sigma^2 + \|(v - v_0)/\sqrt s\|^2$,

    $$v = v_0 + S\Phi^\top(\Phi S\Phi^\top + \sigma^2 I)^{-1}(y - \Phi v_0), \qquad S = \operatorname{diag} s,$$

    which the meta-gradient goes through exactly. $v_0$, s, $\sigma$ and h are learned. Without support rows it is $v_0$.

    Arguments:
        weights, biases: the layers of h, with a leading axis over the columns where each has a network of its own.
        mean: $v_0$, shape (D, C).
        log_variance: $\log s/10$, for the constant, each column, and each hidden unit or each column's hidden units.
        log_noise: $\log\sigma^2/10$.
        log_scale: a tenth of the logarithm of what multiplies outputs for classes (unused in a regression).
        additive: whether h has a network for each column (static).

    Source: Bertinetto et al. (2019), Meta-learning with differentiable closed-form solvers, arXiv 1805.08136; Harrison,
        Sharma, Pavone (2018), ALPaCA, arXiv 1807.08912.
    """

    weights: list[Array]
    biases: list[Array]
    mean: Float[Array, "D C"]
    log_variance: Float[Array, " P"]
    log_noise: Float[Array, ""]
    log_scale: Float[Array, ""]
    additive: bool = eqx.field(static=True)

    @classmethod
    def start(cls, columns: int, outputs: int, hidden: tuple[int, ...], additive: bool, key: Key[Array, ""]) -> "RidgeModel":
        """Random features under a prior that trusts the constant most."""
        sizes = (1 if additive else columns, *hidden)
        lead = (columns,) if additive else ()
        keys = jax.random.split(key, len(hidden))
        weights = [
            jax.random.normal(k, (*lead, a, b)) / jnp.sqrt(a) for k, a, b in zip(keys, sizes[:-1], sizes[1:], strict=True)
        ]
        biases = [jnp.zeros((*lead, b)) for b in hidden]
        units = hidden[-1] * (columns if additive else 1)
        variance = [jnp.zeros(1), jnp.full(columns, -5.0), jnp.full(columns if additive else units, -3.0)]
        mean = jnp.zeros((1 + columns + units, outputs))
        noise, scale = jnp.asarray(-3 / _UNIT), jnp.asarray(1.5 / _UNIT)
        return cls(weights, biases, mean, jnp.concatenate(variance) / _UNIT, noise, scale, additive)

    def features(self, x: Float[Array, "n F"]) -> Float[Array, "n D"]:
        """The features of rows."""
        h = x.T[:, :, None] if self.additive else x
        for weight, bias in zip(self.weights, self.biases, strict=True):
            h = jnp.tanh(h @ weight + bias[..., None, :])
        h = h / jnp.sqrt(h.shape[-1])
        h = jnp.moveaxis(h, 0, 1).reshape(len(x), -1) if self.additive else h
        return jnp.concatenate([jnp.ones((len(x), 1), x.dtype), x, h], axis=1)

    @property
    def variance(self) -> Float[Array, " D"]:
        """s, for each feature."""
        s = jnp.exp(_UNIT * self.log_variance)
        if not self.additive:
            return s
        columns = self.weights[0].shape[0]
        return jnp.concatenate([s[: 1 + columns], jnp.repeat(s[1 + columns :], self.weights[-1].shape[-1])])

    @property
    def noise(self) -> Float[Array, ""]:
        r"""$\sigma^2$."""
        return jnp.exp(_UNIT * self.log_noise) + _LEAST_NOISE

    @property
    def scale(self) -> Float[Array, ""]:
        """What multiplies outputs for classes."""
        return jnp.exp(_UNIT * self.log_scale)

    def adapt(self, x: Float[Array, "S F"], y: Float[Array, "S C"], mask: Float[Array, " S"]) -> Posterior:
        """The last layer adapted to the rows that the mask keeps."""
        phi, s = self.features(x) * mask[:, None], self.variance
        # Rows without a mask are rows of zeros, which change nothing.
        gram = (phi * s) @ phi.T
        # Rows that are nearly equal would else make it singular in single precision.
        ridge = self.noise + _RELATIVE * jnp.trace(gram) / jnp.maximum(jnp.sum(mask), 1)
        lower = jnp.linalg.cholesky(gram + ridge * jnp.eye(len(x)))
        rest = (y - phi @ self.mean) * mask[:, None]
        weights = self.mean + s[:, None] * (phi.T @ jax.scipy.linalg.cho_solve((lower, True), rest))
        return Posterior(weights, jax.scipy.linalg.solve_triangular(lower, phi * s, lower=True))

    def predict(self, posterior: Posterior, x: Float[Array, "n F"]) -> tuple[Float[Array, "n C"], Float[Array, " n"]]:
        """The mean and the variance of the targets of rows."""
        phi = self.features(x)
        spread = jnp.sum(phi**2 * self.variance, 1) - jnp.sum((phi @ posterior.factor.T) ** 2, 1)
        return phi @ posterior.mean, jnp.maximum(spread, 0) + self.noise
