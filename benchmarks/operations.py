"""Operations of the networks by formula, with convolutions and heads as defined, however they are computed."""

import peer_inputs as given


def layers(case: str) -> tuple[list[float], list[float]]:
    """Operations of every layer for one image or point, and those of the layers that take it itself."""
    if case == "sinusoid":
        found = [2.0 * given.HIDDEN, 2.0 * given.HIDDEN**2, 2.0 * given.HIDDEN]
        return found, found[:1]
    if case == "resnet12":
        side, inputs, found = given.SIDE84, 3, []
        for width in given.RESNET:
            pixels = side**2
            found += [18 * inputs * width * pixels, 2 * inputs * width * pixels, *[18 * width**2 * pixels] * 2]
            side, inputs = side // 2, width
        return [*found, 2.0 * inputs * given.WAYS], found[:2]
    width, side, inputs = (given.WIDTH84, given.SIDE84, 3) if case == "conv4-84" else (given.WIDTH, given.SIDE, 1)
    found = []
    for _ in range(4):
        found.append(18 * inputs * width * side**2)
        side, inputs = side // 2, width
    return [*found, 2.0 * side**2 * inputs * given.WAYS], found[:1]


def gradient(case: str) -> float:
    """Operations of a gradient by the parameters for one image: three times the loss, less the gradient by the image."""
    every, first = layers(case)
    return 3 * sum(every) - sum(first)


def phases(case: str, tasks: int, steps: int = given.STEPS) -> dict[str, tuple[int, float]]:
    """For each part of a meta-gradient of a batch of tasks: how often it is formed, and the operations of once.

    A Hessian-vector product takes twice what the gradient takes, if nothing of that has to be formed again.
    """
    queries = given.QUERIES if case == "conv4" else given.QUERIES84
    support, target = (10, 10) if case == "sinusoid" else (given.WAYS * given.SHOTS, given.WAYS * queries)
    one = tasks * gradient(case)
    return {
        "inner gradient": (steps, one * support),
        "Hessian-vector product": (steps, 2 * one * support),
        "target gradient": (1, one * target),
    }


def meta_gradient(case: str, tasks: int, steps: int = given.STEPS) -> float:
    """Operations of one exact meta-gradient of a batch of tasks."""
    return sum(count * each for count, each in phases(case, tasks, steps).values())
