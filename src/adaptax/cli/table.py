"""`adaptax train table`, and the tables that `adaptax adapt` reads."""

from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from adaptax.errors import InputError
from adaptax.learner.load import TABLE
from adaptax.report.table_model import describe
from adaptax.tasks.table import numbers
from adaptax.training.files import write_json, write_text

if TYPE_CHECKING:
    from adaptax.cli.table_options import Table

INTERVAL = 0.9


def read_frame(path: Path) -> Any:
    """A DataFrame from a CSV or a Parquet file.

    Errors: `InputError` if there is none, or pandas is missing.
    """
    try:
        import pandas
    except ImportError:
        raise InputError("Tables are read by pandas: pip install 'adaptax[tables]'.") from None
    if not path.is_file():
        raise InputError(f"There is no file {path}: give a CSV or Parquet file.")
    try:
        return pandas.read_parquet(path) if path.suffix.lower() in (".parquet", ".pq") else pandas.read_csv(path)
    except ImportError:
        raise InputError(f"{path.name} is read by pyarrow: pip install pyarrow, or give a CSV file.") from None
    except (ValueError, OSError, UnicodeError) as error:
        said = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise InputError(f"{path.name} is no table ({said}): give a CSV or Parquet file with a header.") from error


def column(frame: Any, name: str, path: Path) -> np.ndarray:
    """A column.

    Errors: `InputError` if it is not there.
    """
    if name not in frame.columns:
        raise InputError(f"{path.name} has no column {name!r}: it has {', '.join(map(repr, map(str, frame.columns)))}.")
    return frame[name].to_numpy()


def features(frame: Any, names: list[str], path: Path) -> np.ndarray:
    """Columns of numbers, shape (rows, columns)."""
    for name in names:
        column(frame, name, path)
    return np.stack([numbers(frame, name) for name in names], axis=1)


def train(options: "Table") -> int:
    """Train on a table, print what adaptation gains on groups held out, and save the model. Returns the exit code."""
    from adaptax.tables.estimators import MetaClassifier, MetaRegressor

    assert options.data is not None and options.group is not None and options.target is not None  # checked by check_together
    if options.out is not None and (options.out / TABLE).exists():
        raise InputError(f"{options.out} has a model already: choose another --out, or delete that folder.")
    path, frame = options.data, read_frame(options.data)
    group = column(frame, options.group, path)
    target = column(frame, options.target, path)
    target = target if options.classes else numbers(frame, options.target)
    names = list(options.features) or [str(c) for c in frame.columns if c not in (options.group, options.target)]
    if options.order is not None and options.order not in names:
        column(frame, options.order, path)
        raise InputError(f"--order {options.order} must be one of the features: add it to --features.")
    x = features(frame, names, path)
    if _missing(group).any() or (options.classes and _missing(target).any()):
        raise InputError(f"{path.name} has rows without a group or a class: fill them in, or leave these rows out.")
    _, counts = np.unique(group, return_counts=True)
    if counts.max() < 2:
        raise InputError(f"Every group of {path.name} has a single row: is --group {options.group} the right column?")
    kind: Any = MetaClassifier if options.classes else MetaRegressor
    order = None if options.order is None else names.index(options.order)
    model = kind(
        support=options.support, order=order, model=options.model, max_steps=options.max_steps, random_state=options.seed
    ).fit(x, target, groups=group)
    said = {"group": options.group, "target": options.target, "order": options.order, "features": names}
    text = describe(model, options.target)
    if options.out is not None:
        options.out.mkdir(parents=True, exist_ok=True)
        report = {name: values.tolist() for name, values in model.report_.items()}
        write_json(options.out / "report.json", {"table": said, "model": model.model_, "groups": report})
        write_text(options.out / "report.txt", text + "\n")
        model.save(
            options.out / TABLE,
            {"table": said, "gain": list(model.gain_), "report": text, "rows": len(x), "groups": len(counts)},
        )
    print(text)
    return 0


def is_described(said: Any) -> bool:
    """Whether a file says which columns its table had."""
    if not isinstance(said, dict) or not all(isinstance(said.get(name), str) for name in ("target", "group")):
        return False
    return (
        isinstance(said.get("features"), list) and said["features"] != [] and all(isinstance(n, str) for n in said["features"])
    )


def adapt(model: Any, support: Path, predict: Path, out: Path) -> str:
    """Adapt to every group of the support table, predict the rows of the other, and write them. Returns what to say of it.

    Errors: `InputError` for tables that do not fit the model.
    """
    said = model.about_["table"]
    known, asked = read_frame(support), read_frame(predict)
    target = column(known, said["target"], support)
    classes = hasattr(model, "classes_")
    if not classes:
        target = numbers(known, said["target"])
    elif model.classes_.dtype.kind not in "OUS":
        target = target.astype(model.classes_.dtype, copy=False)
    x, rows = features(known, said["features"], support), features(asked, said["features"], predict)
    # One new group needs no column of groups.
    alone = said["group"] not in known.columns and said["group"] not in asked.columns
    groups = (None, None) if alone else (column(known, said["group"], support), column(asked, said["group"], predict))
    predictor = model.adapt(x, target, groups[0])
    if classes:
        probabilities = predictor.predict_proba(rows, groups[1])
        best = probabilities.argmax(1)
        found = {"class": model.classes_[best], "probability": probabilities[np.arange(len(best)), best]}
    else:
        found = {"prediction": predictor.predict(rows, groups[1])}
        if model.can_give_intervals(INTERVAL):
            low, high = predictor.predict_interval(rows, groups[1], INTERVAL)
            found |= {"low": low, "high": high}
    write_text(out, asked.assign(**found).to_csv(index=False))
    count = 1 if groups[0] is None else len(np.unique(groups[0]))
    return f"{len(rows):,} rows predicted after adaptation to {count:,} {'group' if count == 1 else 'groups'}: {out}"


def _missing(values: np.ndarray) -> np.ndarray:
    import pandas

    return np.asarray(pandas.isna(values))
