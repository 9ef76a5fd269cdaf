"""Images by class: what is taken, split off and refused."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from adaptax.errors import InputError
from adaptax.tasks import Characters, ImageClasses


def make(*counts):
    """Classes 'a', 'b', ...; every image is full of its row's number."""
    rows = np.arange(sum(counts), dtype=np.uint8)[:, None, None, None]
    return ImageClasses(np.broadcast_to(rows, (sum(counts), 4, 4, 3)).copy(), tuple("abcdefgh"[: len(counts)]), counts)


def rows(data):
    return {name: data.of(name)[:, 0, 0, 0].tolist() for name in data.names}


def test_classes_are_rows_of_one_array():
    data = make(2, 3, 1)
    assert (len(data), data.size, data.channels) == (3, 4, 3)
    assert rows(data) == {"a": [0, 1], "b": [2, 3, 4], "c": [5]}
    part = data.take(["c", "b"])
    assert rows(part) == {"b": [2, 3, 4], "c": [5]} and np.shares_memory(part.images, data.images)
    assert rows(data.at_least(2)) == {"a": [0, 1], "b": [2, 3, 4]}
    assert rows(part.compact()) == rows(part) and len(part.compact().images) == 4
    assert data.compact() is data


def test_a_split_has_no_common_class_whatever_the_key():
    data = make(*[1] * 8)
    seen = set()
    for seed in range(20):
        parts = data.split(4, ["b"], 2, key=jax.random.key(seed))
        assert [len(part) for part in parts] == [4, 1, 2] and parts[1].names == ("b",)
        assert len({name for part in parts for name in part.names}) == 7
        again = data.split(4, ["b"], 2, key=jax.random.key(seed))
        assert [part.names for part in parts] == [part.names for part in again]
        seen.add(parts[0].names)
        assert all(rows(part)[name] == rows(data)[name] for part in parts for name in part.names)
    assert len(seen) > 5


def test_a_split_draws_uniformly():
    data, n = make(*[1] * 6), 400
    counts = np.zeros(6)
    for seed in range(n):
        for name in data.split(2, key=jax.random.key(seed))[0].names:
            counts["abcdef".index(name)] += 1
    assert np.all(np.abs(counts - n / 3) < 4.5 * np.sqrt(n * 2 / 9))


def test_omniglot_joined_and_split():
    one, two = (
        Characters(np.full((n, 2, 4, 4), n % 256, np.uint8), tuple(f"{alphabet}/{i:04}" for i in range(n)))
        for alphabet, n in (("A", 964), ("B", 659))
    )
    train, test = one.join(two).split(1200, 423, key=jax.random.key(0))
    assert len(train.names) == 1200 and len(test.names) == 423 and not set(train.names) & set(test.names)
    for part in (train, test):
        shades = [(964 if name[0] == "A" else 659) % 256 for name in part.names]
        assert part.images[:, 0, 0, 0].tolist() == shades
    with pytest.raises(InputError, match="'A/0000' is in both: leave it out of one"):
        one.join(one)
    with pytest.raises(InputError, match="different numbers of drawings or sizes"):
        one.join(Characters(np.zeros((1, 3, 4, 4), np.uint8), ("C/1",)))


@pytest.mark.parametrize("number", [np.int64, np.array, jnp.asarray])
def test_numpys_numbers_are_numbers(number):
    data = make(2, 3, 1)
    again = ImageClasses(data.images, data.names, tuple(map(number, data.counts)), tuple(map(number, data.starts)))
    assert again.counts == (2, 3, 1) and {type(n) for n in again.counts + again.starts} == {int}
    assert data.at_least(number(2)).names == ("a", "b")
    key = jax.random.key(0)
    assert [part.names for part in data.split(number(2), key=key)] == [part.names for part in data.split(2, key=key)]


@pytest.mark.parametrize(
    ("parts", "key", "match"),
    [
        ((["a"], ["b", "a"]), 0, "class 'a' is in two parts"),
        ((["z"],), 0, "no class 'z': choose from a, b, c"),
        ((2, 2), 0, "asks for 4 classes, but only 3 are free"),
        ((["a"], 3), 0, "asks for 3 classes, but only 2 are free"),
        ((1, 0), 0, "at least one class"),
        (([], 1), 0, "at least one class"),
        ((), 0, "at least one class"),
        ((1,), None, r"needs a key .* key=jax.random.key\(0\)"),
        ((1,), "seed", "key= is not a key"),
        ((1.5,), 0, "a number of classes or a list of names, not 1.5"),
        ((True,), 0, "a number of classes or a list of names, not True"),
    ],
)
def test_splits_that_cannot_be(parts, key, match):
    key = jax.random.key(key) if isinstance(key, int) else key
    with pytest.raises(InputError, match=match):
        make(2, 2, 2).split(*parts, key=key)


def test_refusals():
    images = np.zeros((3, 4, 4, 1), np.uint8)
    for wrong in (images[..., 0], images.astype(float), images[:, :3], np.zeros((3, 4, 4, 2), np.uint8), images[:0], [[0]]):
        with pytest.raises(InputError, match=r"uint8 NumPy array of shape \(n, size, size, 1 or 3\)"):
            ImageClasses(wrong, ("a",), (3,))
    for options, match in [
        ((("a", "a"), (1, 2)), "all of them different"),
        (((), ()), "at least one name"),
        ((("a", ""), (1, 2)), "all of them different"),
        ((("a", "b"), (3,)), "for each of the 2 names"),
        ((("a", "b"), (2, 2)), "within the 3 images: change counts= or starts="),
        ((("a", "b"), (3, 0)), "at least 1"),
        ((("a",), (1,), (-1,)), "starts=-1.*of at least 0"),
        ((("a",), 3), "counts= as a tuple, one whole number for each class"),
        ((("a",), (1.0,)), "counts=1.0.*whole number of at least 1: change counts="),
    ]:
        with pytest.raises(InputError, match=match):
            ImageClasses(images, *options)
    with pytest.raises(InputError, match="No class has 4 images; the largest has 3"):
        make(2, 3).at_least(4)
    with pytest.raises(InputError, match=r"at_least\(count=2.5\).*whole number"):
        make(2, 3).at_least(2.5)
    with pytest.raises(InputError, match="no class 'z'"):
        make(2, 3).of("z")
    with pytest.raises(InputError, match="name at least one"):
        make(2, 3).take([])
