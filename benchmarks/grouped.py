"""Few-shot prediction on tables whose rows belong to groups: MetaRegressor and MetaClassifier beside eight peers.

    python benchmarks/grouped.py [--only TABLE ...] [--methods NAME ...] [--splits 3] [--cores 2]

The tables and the protocol are in `table_data.py`, the peers in `table_peers.py`. Every method sees the training groups alone,
and is tuned by inner validation over them. Runs are kept one by one in results/grouped.json, so that the table can be
filled bit by bit; `python benchmarks/page.py` writes it into docs/benchmarks.md.
"""

import argparse
import json
import multiprocessing
import os
import time
from itertools import product

import numpy as np
import table_data as data
from machine import measurement
from tables import RESULTS

OURS = "adaptax"
# By table: the groups held out in each split, and the numbers of support rows.
PROTOCOL = {
    "parkinsons": (10, (5, 10, 20)), "gapminder": (40, (3,)), "pigs": (20, (3,)), "states": (12, (5,)), "wages": (100, (3,)),
    "union": (100, (3,)),
}  # fmt: skip
MODES = ("random", "first")


class Meta:
    """`ax.MetaRegressor` or `ax.MetaClassifier` with its defaults, told K and the mode."""

    def fit(self, table: data.Table, groups: np.ndarray, k: int, mode: str, seed: int) -> None:
        """Meta-train on the training groups."""
        import adaptax as ax

        kind = ax.MetaRegressor if table.classes is None else ax.MetaClassifier
        order = table.features.index(self._order(table)) if mode == "first" else None
        rows = table.rows(groups)
        self.model = kind(support=k, order=order, random_state=seed).fit(table.x[rows], table.y[rows], groups=table.group[rows])

    def predict(self, xs, ys, os, xt, ot) -> np.ndarray:
        """The targets, or the probabilities of class 1."""
        adapted = self.model.adapt(xs, ys)
        self.inside = None
        if hasattr(self.model, "classes_"):
            return adapted.predict_proba(xt)[:, 1]
        if self.model.can_give_intervals(0.9):
            self.inside = adapted.predict_interval(xt)
        return adapted.predict(xt)

    @staticmethod
    def _order(table: data.Table) -> str:
        return next(name for i, name in enumerate(table.features) if np.array_equal(table.x[:, i], table.order))


def run(job: tuple[str, str, int, str, int]) -> dict:
    """One method on one split of a table, in one mode, with so many support rows."""
    name, method, seed, mode, k = job
    import table_peers as peers

    table, held = data.TABLES[name](), PROTOCOL[name][0]
    _, training, judged = next(split for split in data.splits(table, seed + 1, held) if split[0] == seed)
    known = peers.PEERS if table.classes is None else peers.CLASSIFIERS
    model = Meta() if method == OURS else known[method]()
    start = time.perf_counter()
    model.fit(table, training, k, mode, seed)
    seconds = time.perf_counter() - start
    errors, covered, right = [], [], []
    for case in data.cases(table, judged, k, mode, np.random.default_rng(100 + seed)):
        s, o = case.support, case.other
        predicted = model.predict(table.x[s], table.y[s], table.order[s], table.x[o], table.order[o])
        errors.append(data.error(table, table.y[o], predicted))
        right.append(float(np.mean((predicted > 0.5) == table.y[o])))
        if getattr(model, "inside", None) is not None:
            low, high = model.inside
            covered.append(float(np.mean((low <= table.y[o]) & (table.y[o] <= high))))
    record = {"table": name, "method": method, "split": seed, "mode": mode, "k": k, "error": float(np.mean(errors)),
              "seconds": seconds}  # fmt: skip
    if table.classes is not None:
        record["accuracy"] = float(np.mean(right))
    if covered:
        record["coverage"] = float(np.mean(covered))
    if method == OURS:
        record["model"] = model.model.model_
    return record


def methods_of(name: str) -> list[str]:
    """All methods for a table."""
    import table_peers as peers

    return [OURS, *(peers.CLASSIFIERS if name == "union" else peers.PEERS)]


def begin(cores: list[int], turn) -> None:
    """Give a process a core of its own."""
    with turn.get_lock():
        core, turn.value = cores[turn.value % len(cores)], turn.value + 1
    os.sched_setaffinity(0, {core})


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", nargs="+", default=list(PROTOCOL), choices=list(PROTOCOL), metavar="TABLE")
    parser.add_argument("--methods", nargs="+", default=None, metavar="NAME", help="methods whose name has one of these words")
    parser.add_argument("--splits", type=int, default=3)
    parser.add_argument("--cores", type=int, default=2)
    arguments = parser.parse_args()
    path = RESULTS / "grouped.json"
    result = json.loads(path.read_text()) if path.exists() else {"runs": []}
    keys = ("table", "method", "split", "mode", "k")
    done = {tuple(r[key] for key in keys): r for r in result["runs"]}
    jobs = [
        (name, method, seed, mode, k)
        for name in arguments.only
        for seed, mode, k in product(range(arguments.splits), MODES, PROTOCOL[name][1])
        for method in methods_of(name)
        if arguments.methods is None or any(word in method for word in arguments.methods)
    ]
    about = measurement(parser, arguments)
    context = multiprocessing.get_context("spawn")
    cores, turn = sorted(os.sched_getaffinity(0))[: arguments.cores], context.Value("i", 0)
    with context.Pool(len(cores), begin, (cores, turn)) as pool:
        for record in pool.imap_unordered(run, jobs):
            done[tuple(record[key] for key in keys)] = record | {"commit": about["commit"]}
            result = about | {"runs": sorted(done.values(), key=lambda r: [str(r[key]) for key in keys])}
            path.write_text(json.dumps(result, indent=1) + "\n")
            print(*(record[key] for key in keys), f"{record['error']:.4g} {record['seconds']:.1f} s", flush=True)


if __name__ == "__main__":
    main()
