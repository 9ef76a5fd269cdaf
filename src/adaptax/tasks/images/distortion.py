"""Random affine distortions of images, as data augmentation."""

import equinox as eqx
import jax
import jax.numpy as jnp
from jax.scipy.ndimage import map_coordinates
from jaxtyping import Array, Float, Key

from adaptax._checks import check_real


class Affine(eqx.Module):
    r"""A random affine distortion with bilinear interpolation; each image has a map of its own.

    The pixel at offset $o$ (row, column) from the centre of the result is read at the offset
    $R(\theta)\begin{pmatrix}1&s\\0&1\end{pmatrix}\mathrm{diag}(1/c_1, 1/c_2)\,(o - t)$ from the centre of the image.
    The angle $\theta$, the scales $c$ (one for each axis), the shift $t$ and the shear $s$ are uniform and independent.
    Pixels outside the image are background (0).

    Arguments:
        angle: $a$ in $\theta \sim U[-a, a]$, in radians (default 0.25).
        scale: $b$ in $c_1, c_2 \sim U[1 - b, 1 + b]$, with $0 \le b < 1$ (default 0.2).
        shift: $d$ in $t_1, t_2 \sim U[-d, d]$, in pixels (default 2).
        shear: $h$ in $s \sim U[-h, h]$ (default 0).

    Errors: `InputError` if an argument is negative or not finite, or if the scale is not below 1.

    Example:
        >>> import jax, jax.numpy as jnp
        >>> from adaptax.tasks import Affine
        >>> images = jnp.ones((4, 28, 28))
        >>> Affine(angle=0.3)(images, jax.random.key(0)).shape
        (4, 28, 28)
        >>> nothing = Affine(angle=0.0, scale=0.0, shift=0.0)
        >>> bool(jnp.all(nothing(images, jax.random.key(0)) == images))
        True

    Source: affine augmentation of handwriting; Simard, Steinkraus, Platt (2003), ICDAR.
    """

    angle: float = eqx.field(static=True, default=0.25)
    scale: float = eqx.field(static=True, default=0.2)
    shift: float = eqx.field(static=True, default=2.0)
    shear: float = eqx.field(static=True, default=0.0)

    def __post_init__(self):
        self.angle = check_real("Affine", "angle", self.angle, least=0)
        self.scale = check_real("Affine", "scale", self.scale, least=0, below=1)
        self.shift = check_real("Affine", "shift", self.shift, least=0)
        self.shear = check_real("Affine", "shear", self.shear, least=0)

    def __call__(self, images: Float[Array, "n size size ..."], key: Key[Array, ""]) -> Float[Array, "n size size ..."]:
        """Distort every image by a map of its own; the channels of an image, on a last axis if there is one, share it."""
        matrices, shifts = self.draw(key, images.shape[0])
        move = jax.vmap(transform)
        if images.ndim == 3:
            return move(images, matrices, shifts)
        return jnp.stack([move(images[..., c], matrices, shifts) for c in range(images.shape[3])], axis=-1)

    def draw(self, key: Key[Array, ""], n: int) -> tuple[Float[Array, "n 2 2"], Float[Array, "n 2"]]:
        """Draw `n` random maps: their matrices and their shifts."""
        u = jax.random.uniform(key, (6, n), jnp.float32, -1.0, 1.0)
        angle, shear = self.angle * u[0], self.shear * u[1]
        cos, sin = jnp.cos(angle), jnp.sin(angle)
        rows, columns = 1 / (1 + self.scale * u[2]), 1 / (1 + self.scale * u[3])
        matrix = jnp.stack([cos * rows, (cos * shear - sin) * columns, sin * rows, (sin * shear + cos) * columns])
        return matrix.T.reshape(n, 2, 2), self.shift * u[4:].T


def transform(image: Float[Array, "size size"], matrix: Float[Array, "2 2"], shift: Float[Array, "2"]) -> Array:
    """Distort one image: the pixel at offset o from the centre is read at `matrix @ (o - shift)`, bilinearly, 0 outside."""
    centre = (image.shape[0] - 1) / 2
    offset = jnp.arange(image.shape[0], dtype=matrix.dtype) - centre
    rows, columns = offset[:, None] - shift[0], offset[None, :] - shift[1]
    coordinates = [m[0] * rows + m[1] * columns + centre for m in matrix]
    return map_coordinates(image, coordinates, order=1, mode="constant")
