"""The meta-gradient of `gpu_images.py` in PyTorch on a GPU; `gpu_images.py` calls it."""

import argparse
import json
import time
from pathlib import Path

import numpy as np
import peer_networks
import peer_torch
import torch

SIDES = {
    "learn2learn-style, eager": peer_torch.Learn2LearnStyle,
    "torch.func, eager": peer_torch.Functional,
    "torch.func, torch.compile": peer_torch.PEERS["torch-compile"],
}


def measure(name: str, tf32: bool, inputs: Path, rounds: int) -> tuple[dict, dict]:
    """Times and memory of one side, and its meta-gradient."""
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = tf32
    torch.backends.cudnn.benchmark = True
    problem, batch = peer_networks.load("conv4", inputs, torch.float32)
    problem.net.cuda()
    parts = batch.support_x, batch.support_y, batch.target_x, batch.target_y
    batch = peer_networks.Batch(*(part.cuda() for part in parts))
    meta_gradient, seconds = SIDES[name](problem), []
    torch.cuda.reset_peak_memory_stats()
    began = time.perf_counter()
    for number in range(2 + rounds):
        problem.net.zero_grad()
        torch.cuda.synchronize()
        start = time.perf_counter()
        loss = meta_gradient(batch)
        torch.cuda.synchronize()
        seconds.append(time.perf_counter() - start)
        if number == 0:
            first = time.perf_counter() - began
    record = {
        "name": name, "precision": "tensorfloat32" if tf32 else "float32", "seconds": seconds[2:], "first_s": first,
        "loss": float(loss), "peak_mib": torch.cuda.max_memory_allocated() / 2**20,
    }  # fmt: skip
    return record, {n: peer_networks.from_torch(p.grad.cpu().numpy()) for n, p in problem.names.items()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--inputs", type=Path, required=True)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--out", type=Path, required=True)
    arguments = parser.parse_args()
    records, reference = [], None
    for name in SIDES:
        for tf32 in (False, True):
            try:
                record, gradients = measure(name, tf32, arguments.inputs, arguments.rounds)
            except Exception as error:
                text = str(error).strip().splitlines()
                records.append({"name": name, "precision": "tensorfloat32" if tf32 else "float32", "failed": text[0][:200]})
                continue
            flat = np.concatenate([np.ravel(gradients[key]).astype(float) for key in sorted(gradients)])
            if reference is None:
                reference = flat
                np.savez(arguments.out.with_suffix(".npz"), **gradients)
            record["difference"] = float(np.linalg.norm(flat - reference) / np.linalg.norm(reference))
            records.append(record)
            arguments.out.write_text(json.dumps({"torch": torch.__version__, "sides": records}))
            print(f"PyTorch {name} {record['precision']}: {1e3 * min(record['seconds']):.3f} ms", flush=True)


if __name__ == "__main__":
    main()
