"""Every formula of the theory matters: change a factor, a sign, a power or a count, and a check fails."""

import ast

import pytest
from theory.definitions import CHECKS
from theory.mutants import MODULES, killer, mutations, source, trees

# Changes without an effect, by module, line and change, and why they have none.
EQUIVALENT = {
    ("powers", "block, steps = where(over > -0.5, 1 + over, block * block), steps >> 1", "0.5 -> 0.25"): "either form will do",
    ("sampling", "rate = max(path.growth * (2 + path.growth), 2**-53 - 1)", "2 ** (-53): power +1"): "any tiny number",
    ("sampling", "rate = max(path.growth * (2 + path.growth), 2**-53 - 1)", "53 -> 26.5"): "any tiny number",
    ("sampling", "rate = max(path.growth * (2 + path.growth), 2**-53 - 1)", "53 -> 52"): "any tiny number",
    ("sampling", "m = path_deviation(path, np.arange(path.steps + 1))", "1 -> 0.5"): "arange(N + 1/2) counts 0..N too",
    ("sampling", "early = np.sum(path.r ** np.arange(path.steps - 1, -1, -1.0) * m[:-1] ** 2)", "1 -> 0.5"): "it ends at 0 too",
    ("convergence", "ratio = spread / largest_R(a, c_phi, epsilon or 0.0)", "0.0 -> 1.0"): "epsilon is given there, and not 0",
    ("convergence", "ratio = spread / largest_R(a, c_phi, epsilon or 0.0)", "0.0 -> -1.0"): "likewise",
    ("convergence", "return 1.0", "1.0 -> 0.5"): "no theta helps, so any positive one leads to the same refusal",
    ("convergence", "return 1.0", "1.0 -> 2.0"): "likewise",
}


def survivors(chosen):
    """The changes that no check notices, and the number of changes that were tried."""
    parts, found, count = trees(), set(), 0
    for k, mutation in enumerate(mutations(parts)):
        if chosen(k, mutation):
            count += 1
            if killer(parts, mutation, CHECKS) is None:
                line = source(mutation.module).splitlines()[mutation.line - 1].strip()
                found.add((mutation.module, line, mutation.what))
    return found, count


@pytest.mark.slow
@pytest.mark.parametrize("module", MODULES)
def test_every_change_is_noticed(module):
    found, count = survivors(lambda _, mutation: mutation.module == module)
    assert found == {key for key in EQUIVALENT if key[0] == module} and count > 80


@pytest.mark.long
def test_some_changes_are_noticed():
    found, count = survivors(lambda k, _: k % 83 == 0)
    assert not found - set(EQUIVALENT) and count >= 15


def test_mutations_are_taken_back():
    parts = trees()
    for mutation in mutations(parts):
        mutation.apply()
        mutation.undo()
    assert {name: ast.dump(tree) for name, tree in parts.items()} == {name: ast.dump(tree) for name, tree in trees().items()}
