"""Finding the classes in a folder or an archive: which files are the images of which class."""

import contextlib
import os
from collections import defaultdict
from collections.abc import Callable, Iterable
from pathlib import PurePosixPath

from adaptax.errors import InputError
from adaptax.tasks.images.io.class_names import Say, check_not_nested, check_told_apart, folded, is_split, listed
from adaptax.tasks.images.io.decoding import OTHER_PICTURES, SUFFIXES
from adaptax.tasks.images.io.lists import NEEDED, FileList, Finder, Lists, find_lists, says_list
from adaptax.tasks.images.io.safe_paths import hidden
from adaptax.tasks.images.io.sources import PICKLED, is_pickle

Classes = dict[str, list[str]]


def find_classes(sizes: dict[str, int], read: Callable[[str], bytes], split: str | None, path: str, say: Say) -> Classes:
    """Find the files of each class; classes and files are sorted by name.

    Two layouts are known:
    - Lists of files and labels (mini-ImageNet): `train.csv`, `val.csv`, `test.csv` or others, as `lists` describes.
    - Class folders (CIFAR-FS, FC100, CUB-200-2011, tiered-ImageNet): every folder that holds images is a class. The
      class's name is its path below the deepest folder that contains all classes. Lists without labels, of files or of
      classes, only say what belongs to a split.

    Arguments:
        sizes: bytes of each file, by its name relative to the root.
        read: a function from a name to the file's bytes.
        split: take only the classes in the list `<split>.csv`, or in folders below one named `split`; None takes all.
        path: path of the folder or archive, for messages.
        say: called with a sentence for what was read and may be other than it seems.

    Returns: the names of files by class.

    Errors: `InputError` if there is no image in a class folder, no such split, or another file among the images; if a list
        cannot be used and the folders alone do not tell classes; if one class would be read as several.

    Example:
        >>> from adaptax.tasks.images.io.find_classes import find_classes
        >>> sizes = {"birds/train/wren/1.jpg": 9, "birds/train/crow/1.jpg": 9, "birds/test/owl/1.jpg": 9}
        >>> find_classes(sizes, dict().get, "train", "birds.zip", print)
        {'crow': ['birds/train/crow/1.jpg'], 'wren': ['birds/train/wren/1.jpg']}

    Source: the lists: Ravi, Larochelle (2017), ICLR.
    """
    files = {name: PurePosixPath(name) for name in sizes if not hidden(PurePosixPath(name))}
    finder = Finder(files, path)
    lists = find_lists({name: sizes[name] for name in files}, read, finder, path)
    labelled = [found for found in lists.pictures if found.labelled and (split is None or found.of(split))]
    if labelled:
        classes = _by_lists(labelled, finder, split, path, say)
        if split is None and lists.not_used:
            raise InputError(f"{lists.not_used[0]}: {NEEDED}.")
        # Where lists and folders agree, the folders give the names.
        with contextlib.suppress(InputError):
            by_folders = _by_folders(files, lists, finder, split, path)
            if not any(found.usual for found in labelled) and _parts(by_folders) == _parts(classes):
                classes = by_folders
    else:
        if len({file.parent for file in files.values() if file.suffix.lower() in SUFFIXES}) == 1:
            _check_lists(lists, path)
        classes = _by_folders(files, lists, finder, split, path)
    for sentence in lists.not_used:
        say(f"{sentence}: {NEEDED}.")
    if split is None and (others := sorted(name for name in files if name.lower().endswith(OTHER_PICTURES))):
        say(f"'{path}' holds {listed(others)}, of a kind that is not read: convert them to PNG or JPEG.")
    check_told_apart(classes, path, say)
    return {name: sorted(files) for name, files in sorted(classes.items())}


def _parts(classes: Classes) -> set[frozenset[str]]:
    """The sets of files that are told apart."""
    return set(map(frozenset, classes.values()))


def _by_lists(lists: list[FileList], finder: Finder, split: str | None, path: str, say: Say) -> Classes:
    """The classes of the lists, each file by its label."""
    classes, listed_in = defaultdict(list), dict[str, str]()
    splits: dict[str, set[str]] = defaultdict(set)
    for found in sorted(lists, key=lambda found: found.name):
        for row in found.of(split):
            if not row.file or not row.label or not row.label.isprintable():
                raise InputError(f"'{found.name}' in '{path}' has a line without a file and a label: correct it.")
            file = _file(row.file, row.split, found.name, finder, path)
            if file in listed_in:
                where = " and ".join(f"'{name}'" for name in dict.fromkeys([listed_in[file], found.name]))
                raise InputError(f"'{path}' lists '{file}' twice, in {where}: keep one of the lines, or give split=.")
            listed_in[file] = found.name
            classes[row.label].append(file)
            splits[row.label].add(row.split or PurePosixPath(found.name).stem)
    for label, where in sorted(splits.items()):
        if len(where := sorted(filter(is_split, where))) > 1:
            message = f"The class '{label}' in '{path}' is in the lists of {listed(where)}, and is read as one class"
            say(f"{message}: give split= to keep them apart.")
            break
    left = sorted(name for name in finder.files if name.lower().endswith(SUFFIXES) and name not in listed_in)
    if split is None and left:
        say(f"The lists in '{path}' leave out {listed(left)}: list or remove them.")
    return classes


def _file(entry: str, split: str | None, name: str, finder: Finder, path: str) -> str:
    """The file that an entry of the list `name` means."""
    files = finder.find(entry, name)
    if len(files) > 1 and split is not None:
        files = [file for file in files if split in file.split("/")] or files
    if not files:
        raise InputError(f"'{name}' in '{path}' lists {entry!r}, which is not there: add it or remove the line.")
    if len(files) > 1:
        raise InputError(f"'{name}' in '{path}' lists {entry!r}, which may be {listed(files)}: write the whole path.")
    return files[0]


def _check_lists(lists: Lists, path: str) -> None:
    """Refuse lists that are not used beside pictures in one folder: they may say the classes."""
    found = list(lists.not_used)
    found += [f"'{one.name}' in '{path}' names pictures and no classes" for one in lists.pictures if not one.labelled]
    found += [f"'{name}' in '{path}' does not say which picture is of which class" for name in filter(says_list, lists.names)]
    if found:
        raise InputError(f"{found[0]}, and no class folders say it: {NEEDED}.")


def _by_folders(files: dict[str, PurePosixPath], lists: Lists, finder: Finder, split: str | None, path: str) -> Classes:
    """The classes of the folders that hold images."""
    folders: dict[PurePosixPath, list[str]] = defaultdict(list)
    for name, file in files.items():
        if file.suffix.lower() in SUFFIXES:
            folders[file.parent].append(name)
    if not folders and (pickles := sorted(filter(is_pickle, files))):
        raise InputError(PICKLED.format(path=f"{path}/{pickles[0]}"))
    below = {f: "/".join(f.parts[f.parent.parts.index(split) + 1 :]) for f in folders if split in f.parent.parts}
    # Folders of this split in class folders, `cat/train`.
    within = [folder for folder in folders if folder.name == split and folder.parent.parts]
    labels = below or _below(folders)
    if within and all(is_split(f.name) for f in folders) and len({f.parent for f in folders}) > 1:
        below, labels = {}, dict(zip(within, _below([folder.parent for folder in within]).values(), strict=True))
    elif below and (also := [f for f in within if f not in below and not any(map(is_split, f.parent.parts))]):
        message = (
            f"'{path}' has folders '{split}' above class folders and in them, such as '{next(iter(below))}' and '{also[0]}'"
        )
        raise InputError(f"{message}: put each split into one folder.")
    elif split is not None and not below:
        if classes := _of_lists(_named(folders, labels, path), lists, finder, split, path):
            return classes
        raise InputError(_no_split(folders, lists, split, path))
    if not folders:
        raise InputError(f"'{path}' holds no images in class folders: give class/image.png, with PNG or JPEG files.")
    roots = {PurePosixPath(".")} if split is None else {parent for f in below for parent in f.parents if parent.name == split}
    if loose := next((names[0] for folder, names in folders.items() if folder in roots and folder not in below), None):
        raise InputError(f"The image '{loose}' in '{path}' is in no class folder: move it into one.")
    for name, file in files.items():
        if file.parent in labels and file.suffix.lower() not in SUFFIXES:
            raise InputError(f"'{name}' in '{path}' lies among the images but is not a PNG, JPEG, BMP, PPM or WebP: remove it.")
    if len(labels) > 1 and all(map(is_split, labels.values())):
        _check_lists(lists, path)
        message = f"The folders {listed(sorted(labels.values()))} in '{path}' hold pictures and no class folders"
        raise InputError(f"{message}: sort the pictures into a folder for each class, or add a CSV of filename,label.")
    return _named(folders, labels, path)


def _below(folders: Iterable[PurePosixPath]) -> dict[PurePosixPath, str]:
    """The path of each folder below the deepest folder that contains all of them."""
    depth = len(PurePosixPath(os.path.commonpath([folder.parent for folder in folders])).parts) if folders else 0
    return {folder: "/".join(folder.parts[depth:]) for folder in folders}


def _named(folders: dict[PurePosixPath, list[str]], labels: dict[PurePosixPath, str], path: str) -> Classes:
    """The files of each class by its label."""
    check_not_nested([folder.parts for folder in labels], path)
    classes: Classes = {}
    for folder, label in labels.items():
        if label in classes:
            raise InputError(f"'{path}' holds the class '{label}' in two folders: keep one of them.")
        classes[label] = folders[folder]
    return classes


def _of_lists(classes: Classes, lists: Lists, finder: Finder, split: str, path: str) -> Classes | None:
    """What the lists of a split leave of the classes: lists of pictures, or of names of classes; None without a list."""
    found: dict[str, Classes] = {}
    for one in lists.pictures:
        if not one.labelled and (rows := one.of(split)):
            files = {_file(row.file, row.split, one.name, finder, path) for row in rows}
            kept = {label: [name for name in names if name in files] for label, names in classes.items()}
            found[one.name] = {label: names for label, names in kept.items() if names}
    known = {folded(name): label for label in classes for name in (label, label.split("/")[-1])}
    for name, lines in lists.names.items():
        if PurePosixPath(name).stem == split and any(folded(line) in known for line in lines):
            if unknown := [line for line in lines if folded(line) not in known]:
                raise InputError(f"'{name}' in '{path}' lists the class '{unknown[0]}', which has no folder: correct it.")
            found[name] = {known[folded(line)]: classes[known[folded(line)]] for line in lines}
    if len({str(sorted(kept.items())) for kept in found.values()}) > 1:
        raise InputError(f"The lists {listed(found)} in '{path}' are of one name and differ: keep one of them.")
    return next(iter(found.values()), None)


def _no_split(folders: Iterable[PurePosixPath], lists: Lists, split: str, path: str) -> str:
    """The sentence for a split that neither a folder nor a list has."""
    if known := sorted(set().union(*(found.splits for found in lists.pictures))):
        return f"'{path}' has no list '{split}.csv': choose a split from {', '.join(known[:8])}."
    known = sorted({part for folder in folders for part in folder.parent.parts})
    choice = f"choose from {', '.join(known[:8])}" if known else "leave out split="
    return f"'{path}' has no folder '{split}' with class folders in it: {choice}."
