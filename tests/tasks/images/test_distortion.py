"""Random affine distortions against SciPy and against their stated distribution."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import scipy.ndimage

from adaptax.errors import InputError
from adaptax.tasks import Affine
from adaptax.tasks.images.distortion import transform


def images(n, size=28):
    return jax.random.uniform(jax.random.key(7), (n, size, size))


@pytest.mark.parametrize("size", [7, 28])
def test_agrees_with_scipy(size):
    x = images(12, size)
    matrices, shifts = Affine(angle=0.8, scale=0.5, shift=4.0, shear=0.4).draw(jax.random.key(1), 12)
    ours, centre = jax.vmap(transform)(x, matrices, shifts), (size - 1) / 2
    for image, matrix, shift, result in zip(*map(np.asarray, (x, matrices, shifts, ours)), strict=True):
        offset = centre - matrix @ (shift + centre)
        expected = scipy.ndimage.affine_transform(image, matrix, offset, order=1, mode="grid-constant")
        np.testing.assert_allclose(result, expected, atol=2e-5)


def test_nothing_and_whole_shifts_are_exact():
    x, keep = images(3), jnp.tile(jnp.eye(2), (3, 1, 1))
    np.testing.assert_array_equal(Affine(angle=0.0, scale=0.0, shift=0.0)(x, jax.random.key(0)), x)
    moved = jax.vmap(transform)(x, keep, jnp.tile(jnp.array([2.0, -3.0]), (3, 1)))
    np.testing.assert_array_equal(moved[:, 2:, :-3], x[:, :-2, 3:])
    assert not np.any(moved[:, :2]) and not np.any(moved[:, :, -3:])


def test_a_quarter_turn_is_anticlockwise():
    # The result at offset o is read at R(theta) o, which turns the picture itself by -theta in (row, column).
    quarter = jnp.array([[0.0, -1.0], [1.0, 0.0]])
    x = images(1)[0]
    turned = transform(x, quarter, jnp.zeros(2))
    np.testing.assert_allclose(turned, np.rot90(x, -1), atol=1e-5)


def test_the_distribution_of_the_maps():
    affine, n = Affine(angle=0.25, scale=0.2, shift=2.0, shear=0.1), 20_000
    matrix, shift = map(np.asarray, affine.draw(jax.random.key(3), n))
    angle = np.arctan2(matrix[:, 1, 0], matrix[:, 0, 0])
    rows = 1 / np.hypot(matrix[:, 0, 0], matrix[:, 1, 0])
    columns = 1 / (np.linalg.det(matrix) * rows)
    shear = (matrix[:, 0, 0] * matrix[:, 0, 1] + matrix[:, 1, 0] * matrix[:, 1, 1]) * rows * columns
    drawn = {"angle": (angle, 0, 0.25), "rows": (rows, 1, 0.2), "columns": (columns, 1, 0.2), "shear": (shear, 0, 0.1)}
    drawn |= {f"shift{i}": (shift[:, i], 0, 2.0) for i in range(2)}
    for values, centre, half in drawn.values():
        u = (values - centre) / half
        assert np.all(np.abs(u) <= 1 + 1e-4) and np.abs(u).max() > 0.99
        assert abs(u.mean()) < 4 * np.sqrt(1 / 3 / n)
        assert abs((u**2).mean() - 1 / 3) < 4 * np.sqrt(4 / 45 / n)
    assert np.abs(np.corrcoef([values for values, _, _ in drawn.values()]) - np.eye(6)).max() < 4.5 / np.sqrt(n)


def test_each_image_has_a_map_of_its_own_and_keys_decide():
    same = jnp.tile(images(1), (5, 1, 1))
    first, again, other = (Affine()(same, jax.random.key(k)) for k in (0, 0, 1))
    np.testing.assert_array_equal(first, again)
    assert not np.allclose(first, other)
    assert min(np.abs(first[i] - first[j]).max() for i in range(5) for j in range(i)) > 0.05


def test_numpys_numbers_are_the_same_distortion():
    affine = Affine(np.float32(0.25), np.float64(0.2), np.int64(2), np.array(0.0))
    assert affine == Affine(0.25, 0.2, 2.0, 0.0) and all(type(a) is float for a in (affine.angle, affine.shift, affine.shear))
    assert hash(jax.tree.structure(affine)) == hash(jax.tree.structure(Affine(0.25, 0.2, 2.0, 0.0)))


@pytest.mark.parametrize(
    "options", [{"angle": -0.1}, {"scale": 1.0}, {"shift": np.nan}, {"shear": "1"}, {"angle": np.inf}, {"shear": True}]
)
def test_refusals(options):
    (name,) = options
    with pytest.raises(InputError, match=rf"Affine\({name}=.*must be a .*number of at least 0.*: change {name}="):
        Affine(**options)
