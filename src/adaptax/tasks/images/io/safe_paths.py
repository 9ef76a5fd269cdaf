"""Checks on the names of files in archives and folders: which are unsafe, and which are passed over."""

from pathlib import PurePosixPath

# Files and folders of thumbnails, settings and deleted files, by Windows, Linux and file servers.
SYSTEM = {
    "Thumbs.db", "ehthumbs.db", "desktop.ini", "@eaDir", "#recycle", "$RECYCLE.BIN", "System Volume Information", "lost+found",
}  # fmt: skip


def unsafe(name: str) -> bool:
    """Whether a name leads out of its folder, or cannot be printed."""
    parts = name.split("/")
    return ".." in parts or not parts[0] or "\\" in name or ":" in parts[0] or not name.isprintable()


def hidden(file: PurePosixPath) -> bool:
    """Whether a file is hidden, or one that an operating system leaves behind."""
    return any(part.startswith((".", "__MACOSX")) or part in SYSTEM for part in file.parts)
