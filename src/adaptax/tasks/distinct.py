"""Drawing different numbers, in an order that is random too."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Int, Key


def distinct(key: Key[Array, ""], count: int | Int[Array, ""], size: int) -> Int[Array, " size"]:
    """`size` different numbers below `count` in a random order, by a shuffle that keeps the moved entries alone.

    Where `size` is larger than `count`, the entries after the first `count` mean nothing.
    """
    place = jnp.arange(size)
    picks = jax.random.randint(key, (size,), place, jnp.maximum(count, place + 1))

    def entry(moved, i, position):
        # What stands at a position after i swaps: the newest that was put there.
        there = (picks == position) & (place < i)
        return jnp.where(jnp.any(there), moved[size - 1 - jnp.argmax(there[::-1])], position)

    def swap(i, carry):
        drawn, moved = carry
        drawn = drawn.at[i].set(entry(moved, i, picks[i]))
        return drawn, moved.at[i].set(entry(moved, i, i))

    return jax.lax.fori_loop(0, size, swap, (place, place))[0]
