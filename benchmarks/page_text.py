"""Sections of docs/benchmarks.md on texts; each takes the results of its name."""

import test_time_training as reading
import writers as adapting

_ORDERS = {"first": "meta-gradients of first order", "exact": "exact meta-gradients"}
_INTERVALS = "Means over modules with 95 % intervals; those of differences are of differences within a module."


def _network(result: dict) -> str:
    before = result["pretraining"]
    return (
        f"one language model of bytes, trained for {before['steps']:,} steps of 8 × 128 bytes "
        f"({before['seconds'] / 60:.0f} minutes on one core) on modules of Python's standard library, by "
        "`python benchmarks/byte_transformer.py --save FILE` or by the command itself without `--base`"
    )


def test_time_training(result: dict) -> str:
    training, short, validation, held_out = result["texts"]
    meta, on, order = result["meta_training"], result["going_on"], _ORDERS[result["settings"]["curvature"]]
    ways = [f"{name}: {found['chosen']}, {found[found['chosen']]['stepsize']:.2g}" for name, found in result["ways"].items()]
    text = (
        f"A causal transformer of {result['parameters']:,} parameters reads each of {held_out} held-out modules from its "
        f"beginning: {reading.CHUNKS} chunks of {reading.STRETCHES} × {reading.LENGTH} bytes. Adapted, it takes a step on each "
        f"chunk after that chunk's loss is noted. The common start is {_network(result)}. From there one network was "
        f"meta-trained for {len(meta['losses']):,} meta-steps ({meta['seconds'] / 60:.1f} minutes) over {reading.FEW} chunks "
        f'each of {short} short modules that it had not seen, with `outer="path"`, {order}, and one learned factor for each '
        "array of step sizes that are preconditioned by the gradients' root mean squares; another went on as a language model "
        f"for the same time, {on['steps']:,} steps on these and the {training} modules of before. Ways to adapt without "
        "meta-training (gradient descent, Adam, preconditioned) and their step sizes have the lowest loss on "
        f"{validation} validation modules: {'; '.join(ways)}. "
    )
    return f"{text}{_INTERVALS}\n\n{reading.table(result)}"


def writers(result: dict) -> str:
    _, short, validation, held_out = result["writers"]
    text = (
        f"The start is {_network(result)}. It adapts to each of {held_out} held-out modules by {adapting.STEPS} steps of "
        f"Adam on {adapting.STRETCHES} × {adapting.LENGTH} bytes, and is judged on as many after them. Adapters have rank "
        f"{adapting.RANK}, and the network below them is constant. Step sizes without meta-training have the lowest loss on "
        f"{validation} validation modules. Meta-training begins with them: {result['settings']['meta_steps']} meta-steps with "
        f"first-order gradients on {short} short modules that the language model had not seen. "
    )
    return f"{text}{_INTERVALS}\n\n{adapting.table(result)}"
