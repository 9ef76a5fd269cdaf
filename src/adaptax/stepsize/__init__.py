"""Step sizes of the inner loop: numbers, schedules, rules from measured curvature, and learned ones."""

from typing import Any

import lazy_loader

# Lazy, since the inner loop needs the rules, and `resolve` needs the inner loop.
_lazy, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> Any:
    # Outer steps lie in adaptax.outer; programs that name them here still run.
    if name in ("AdaptiveOuter", "Proximal", "TrustRegion"):
        from adaptax import outer

        return getattr(outer, name)
    return _lazy(name)
