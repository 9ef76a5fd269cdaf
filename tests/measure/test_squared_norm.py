"""The estimate of a squared norm is unbiased, its variance is that of the theory, and its bounds cover."""

import numpy as np
import pytest

from adaptax.errors import InputError
from adaptax.measure import bound_from_gram, squared_norm

# Eigenvalues of the covariance; the mean lies along the first, which is the worst direction.
SPECTRA = {
    "equal": np.ones(50),
    "decaying": np.arange(1, 31.0) ** -1.5,
    "one large": np.r_[10, np.ones(100)],
    "one dimension": np.ones(1),
}
DRAWS = {
    "Gaussian": lambda rng, shape: rng.standard_normal(shape),
    # Standardised gamma variables of shape 4 have skewness 1; the sign is that which makes upper bounds fail.
    "skewed": lambda rng, shape: (rng.gamma(4.0, size=shape) - 4) / 2,
}


def vectors(rng, repeats, count, spectrum, draw, size):
    """Samples with mean of squared norm `size` times the standard deviation of U at zero mean, and that squared norm."""
    truth = size * np.sqrt(2 * np.sum(spectrum**2) / (count * (count - 1)))
    mean = np.zeros(len(spectrum))
    mean[0] = np.sqrt(truth)
    return mean + DRAWS[draw](rng, (repeats, count, len(spectrum))) * np.sqrt(spectrum), truth


def gram_of(g):
    return g @ np.swapaxes(g, -1, -2)


def coverage(repeats, count, spectrum, draw, size, seed=0):
    rng = np.random.default_rng(seed)
    covered = []
    for _ in range(max(repeats // 100, 1)):
        g, truth = vectors(rng, min(repeats, 100), count, SPECTRA[spectrum], draw, size)
        covered.append(bound_from_gram(gram_of(g)) >= truth)
    return np.mean(covered)


@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("draw", DRAWS)
def test_the_bound_covers(spectrum, draw):
    for size in (0.0, 1.0, 30.0, 1000.0):
        # 0.95 less three standard errors of 200 repetitions.
        assert coverage(200, 20, spectrum, draw, size) >= 0.904, size


@pytest.mark.slow
@pytest.mark.parametrize("spectrum", SPECTRA)
@pytest.mark.parametrize("draw", DRAWS)
@pytest.mark.parametrize("count", [20, 100])
def test_the_bound_covers_in_a_thousand_repetitions(spectrum, draw, count):
    for size in (0.0, 0.1, 1.0, 10.0, 100.0, 1000.0):
        # 0.95 less two standard errors.
        assert coverage(1000, count, spectrum, draw, size, seed=1) >= 0.936, size


def test_what_the_plain_interval_does_not():
    rng = np.random.default_rng(0)
    g, truth = vectors(rng, 1000, 20, SPECTRA["decaying"], "Gaussian", 1.0)
    found = squared_norm(gram_of(g))
    assert np.mean(found.value + 1.645 * found.standard_error >= truth) < 0.88


def test_the_estimate_and_its_variance():
    rng, spectrum = np.random.default_rng(0), SPECTRA["decaying"]
    for size in (0.0, 30.0):
        g, truth = vectors(rng, 4000, 12, spectrum, "skewed", size)
        found = squared_norm(gram_of(g))
        variance = 4 * truth * spectrum[0] / 12 + 2 * np.sum(spectrum**2) / (12 * 11)
        assert abs(found.value.mean() - truth) < 4 * np.sqrt(variance / 4000)
        assert found.value.var() == pytest.approx(variance, rel=0.15)
        # Unbiased, but for the cut at zero, which makes it larger there.
        assert np.mean(found.standard_error**2) > 0.9 * variance
        assert size == 0 or np.mean(found.standard_error**2) < 1.1 * variance
        assert found.degenerate.mean() == pytest.approx(np.sum(spectrum**2), rel=0.1)


def test_the_bound_narrows_and_the_interval_holds_it():
    rng, spectrum = np.random.default_rng(0), SPECTRA["equal"]
    widths = []
    for count in (10, 40, 160):
        found = squared_norm(gram_of(vectors(rng, 50, count, spectrum, "Gaussian", 0.0)[0] + 0.3))
        assert np.all((found.low >= 0) & (found.low <= found.upper) & (found.upper <= found.high))
        assert np.mean((found.low <= 50 * 0.09) & (found.high >= 50 * 0.09)) >= 0.86
        widths.append(np.median(found.upper) - 50 * 0.09)
    assert widths[0] > 1.5 * widths[1] > 2.25 * widths[2] > 0


def test_scales_and_degenerate_cases():
    rng = np.random.default_rng(0)
    gram = gram_of(rng.standard_normal((20, 4)) + 1)
    np.testing.assert_allclose(squared_norm(1e-200 * gram)[:5], 1e-200 * np.array(squared_norm(gram)[:5]), rtol=1e-9)
    same = squared_norm(np.ones((20, 20)))
    assert same.value == pytest.approx(1) and same.standard_error < 1e-6 and same.upper == pytest.approx(1, abs=1e-6)
    assert squared_norm(np.zeros((20, 20))).upper == 0


def test_refusals():
    with pytest.raises(InputError, match="at least 8 vectors"):
        bound_from_gram(np.eye(7))
    with pytest.raises(InputError, match=r"above 0.5 and below 1"):
        bound_from_gram(np.eye(8), 1.0)
