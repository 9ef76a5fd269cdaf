"""Finding the classes in a folder or an archive: which files are the images of which class."""

import csv
import io
import os
from collections import defaultdict
from collections.abc import Callable
from pathlib import PurePosixPath

from adaptax.errors import InputError
from adaptax.tasks.images.io.decoding import SUFFIXES
from adaptax.tasks.images.io.safe_paths import hidden
from adaptax.tasks.images.io.sources import PICKLED, is_pickle

Classes = dict[str, list[str]]
# Larger files are not lists of files and labels, which are a few megabytes of text.
MAX_LIST = 64 << 20


def find_classes(sizes: dict[str, int], read: Callable[[str], bytes], split: str | None, path: str) -> Classes:
    """Find the files of each class; classes and files are sorted by name.

    Two layouts are known:
    - Lists (mini-ImageNet): `train.csv`, `val.csv`, `test.csv` or others with the header `filename,label`. The files lie
      beside the list, in a folder `images` beside it, or in `../images`.
    - Class folders (CIFAR-FS, FC100, CUB-200-2011, tiered-ImageNet): every folder that holds images is a class. The
      class's name is its path below the deepest folder that contains all classes.

    Arguments:
        sizes: bytes of each file, by its name relative to the root.
        read: a function from a name to the file's bytes.
        split: take only the classes in the list `<split>.csv`, or in folders below one named `split`; None takes all.
        path: path of the folder or archive, for messages.

    Returns: the names of files by class.

    Errors: `InputError` if there is no image in a class folder, no such split, or another file among the images.

    Example:
        >>> from adaptax.tasks.images.io.find_classes import find_classes
        >>> sizes = {"birds/train/wren/1.jpg": 9, "birds/train/crow/1.jpg": 9, "birds/test/owl/1.jpg": 9}
        >>> find_classes(sizes, dict().get, "train", "birds.zip")
        {'crow': ['birds/train/crow/1.jpg'], 'wren': ['birds/train/wren/1.jpg']}

    Source: the lists: Ravi, Larochelle (2017), ICLR.
    """
    seen = {name: PurePosixPath(name) for name in sizes if not hidden(PurePosixPath(name))}
    lists = {
        name: file.stem
        for name, file in seen.items()
        if file.suffix.lower() == ".csv" and sizes[name] <= MAX_LIST and _is_list(read(name))
    }
    classes = _by_lists(lists, set(seen), read, split, path) if lists else _by_folders(seen, split, path)
    return {name: sorted(files) for name, files in sorted(classes.items())}


def _is_list(data: bytes) -> bool:
    return data[:64].lstrip(b"\xef\xbb\xbf").split(b"\n")[0].replace(b" ", b"").strip() == b"filename,label"


def _by_lists(lists: dict[str, str], files: set[str], read: Callable[[str], bytes], split: str | None, path: str) -> Classes:
    """The classes of the lists, each file by its label."""
    chosen = [name for name, stem in lists.items() if split in (None, stem)]
    if not chosen:
        known = ", ".join(sorted(set(lists.values())))
        raise InputError(f"'{path}' has no list '{split}.csv': choose a split from {known}.")
    classes, listed = defaultdict(list), set[str]()
    for name in sorted(chosen):
        folder = os.path.dirname(name)
        near = [os.path.normpath(os.path.join(folder, part)) for part in ("images", ".", "../images")]
        text = read(name).decode("utf-8-sig", "replace")
        try:
            rows = [row for row in csv.reader(io.StringIO(text)) if row][1:]
        except csv.Error as error:
            raise InputError(f"'{name}' in '{path}' cannot be read as a CSV list of files ({error}): correct it.") from error
        for row in rows:
            if len(row) < 2 or not (label := row[1].strip()).isprintable() or not label:
                raise InputError(f"'{name}' in '{path}' has a line without a file and a label: correct it.")
            candidates = (os.path.normpath(os.path.join(base, row[0].strip())) for base in near)
            file = next((file for file in candidates if file in files), None)
            if file is None:
                raise InputError(f"'{name}' in '{path}' lists {row[0]!r}, which is not there: add it or remove the line.")
            if file in listed:
                raise InputError(f"'{path}' lists '{file}' twice: keep one of the lines.")
            listed.add(file)
            classes[label].append(file)
    if not any(classes.values()):
        raise InputError(f"The lists in '{path}' name no file: give the data as it was published.")
    return classes


def _by_folders(files: dict[str, PurePosixPath], split: str | None, path: str) -> Classes:
    """The classes of the folders that hold images."""
    folders: dict[PurePosixPath, list[str]] = defaultdict(list)
    for name, file in files.items():
        if file.suffix.lower() in SUFFIXES:
            folders[file.parent].append(name)
    if not folders and (pickles := sorted(filter(is_pickle, files))):
        raise InputError(PICKLED.format(path=f"{path}/{pickles[0]}"))
    if split is not None:
        known = sorted({part for folder in folders for part in folder.parent.parts})
        below = {folder: folder.parent.parts.index(split) + 1 for folder in folders if split in folder.parent.parts}
        if not below:
            choice = f"choose from {', '.join(known[:8])}" if known else "leave out split="
            raise InputError(f"'{path}' has no folder '{split}' with class folders in it: {choice}.")
        labels = {folder: "/".join(folder.parts[depth:]) for folder, depth in below.items()}
    else:
        common = os.path.commonpath([folder.parent for folder in folders]) if folders else ""
        labels = {folder: "/".join(folder.parts[len(PurePosixPath(common).parts) :]) for folder in folders}
    if not folders:
        raise InputError(f"'{path}' holds no images in class folders: give class/image.png, with PNG or JPEG files.")
    if PurePosixPath(".") in labels:
        loose = folders[PurePosixPath(".")][0]
        raise InputError(f"The image '{loose}' in '{path}' is in no class folder: move it into one.")
    for name, file in files.items():
        if file.parent in labels and file.suffix.lower() not in SUFFIXES:
            raise InputError(f"'{name}' in '{path}' lies among the images but is not a PNG, JPEG, BMP, PPM or WebP: remove it.")
    classes: Classes = {}
    for folder, label in labels.items():
        if label in classes:
            raise InputError(f"'{path}' holds the class '{label}' in two folders: keep one of them.")
        classes[label] = folders[folder]
    return classes
