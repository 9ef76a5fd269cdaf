"""Sections of docs/benchmarks.md on many devices, on checkpoints and on faults."""

import checkpoint_cost as cost
import equal
import faults as disturbed
import scaling as scale


def scaling(result: dict) -> str:
    text = (
        "Training at N = 5 with a core for each device: seconds of a meta-step, and the tasks a second beside those of "
        "one device. Strong scaling keeps the tasks of a meta-step, weak scaling those of a device; `ms a sum` is one sum"
        " of as many numbers as there are parameters over two processes of this machine. Below it a model, not a "
        "measurement: a meta-step takes its tasks' FLOPs over what a device sustains, then a sum over a ring "
        f"(`benchmarks/scaling.py` has the formulas). Assumed: {result['settings']['gpu']:g} TFLOP/s on each GPU, "
        f"{result['settings']['nvlink']:g} GB/s and {result['settings']['nvlink_latency']:g} µs between GPUs of a machine,"
        f" {result['settings']['network']:g} Gbit/s and {result['settings']['network_latency']:g} µs between hosts of one "
        "GPU each."
    )
    return f"{text}\n\n{scale.tables(result)}"


def everywhere(result: dict) -> str:
    text = (
        f"Parameters after {result['settings']['steps']} meta-steps on sinusoids (24 tasks, N = 10, default step sizes), on "
        "devices and processes that share this machine: their distance from those of one device, relative to how far they "
        "have moved. What remains is rounding, which training amplifies: it falls with the precision."
    )
    return f"{text}\n\n{equal.table(result)}"


def checkpoint_cost(result: dict) -> str:
    text = (
        "Training Conv4-64 on 5-way 1-shot tasks at N = 5, and the time of writing a checkpoint and reading it back; and "
        f"commands on a run of {result['sinusoid']['steps']:,} meta-steps on sinusoids that has ended."
    )
    return f"{text}\n\n{cost.table(result)}"


def faults(result: dict) -> str:
    good = result["goodput"]
    again = good["meta_steps_counted"] / max(good["meta_steps_needed"], 1)
    text = (
        f"Runs of {good['meta_steps_needed'] // max(result['runs'], 1)} meta-steps on sinusoids, with a checkpoint every "
        "6, under faults at random instants ([what happens at each](faults.md)), resumed after each until they end. "
        f"{result['faults']:,} faults struck in {result['runs']:,} runs, and {result['identical']:,} of these ended bit "
        f"for bit as one that nothing disturbed. {again:.2f} meta-steps were taken for each one needed, and "
        f"{100 * good['share_of_time']:.0f} % of the time was what undisturbed runs take."
    )
    return f"{text}\n\n{disturbed.table(result)}"
