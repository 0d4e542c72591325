"""
Opens a directory that only its owner can reach, or refuses it.

Another user who can write to it could make us join a server of theirs, link one of
our files to another file, or replace the directory. So the directory and everything
in it must belong to this user and be closed to others, nothing in it may be a link,
and no directory above it may be writable by others.
"""

from __future__ import annotations

import os
import re
import stat
from pathlib import Path
from typing import IO

from cache.errors import EmbeddedServerError

# The file that the owner of the server locks; it names the server's socket.
OWNER = "owner.lock"
_MOST_ENTRIES = 10_000
# Names of the files that the server and we keep in it.
_OURS = re.compile(r"owner\.lock|valkey\.log|appendonlydir|dump\.rdb|temp-.*")


def open_private(directory: Path) -> Path:
    """
    The directory's absolute path. Missing directories are created with mode 0700.

    Raises:
        EmbeddedServerError: others may read or change it; the message names the path and why.
    """
    whole = Path(os.path.abspath(directory))  # noqa: PTH100  (resolve would follow the links)
    try:
        for place in (*reversed(whole.parents), whole):
            place.mkdir(exist_ok=True, mode=0o700)
        for above in whole.parents:
            _check_above(above)
        real = whole.parent.resolve(strict=True) / whole.name
        for above in real.parents:
            _check_above(above)
        found = real.lstat()
        if stat.S_ISLNK(found.st_mode) or not stat.S_ISDIR(found.st_mode):
            raise _refused(whole, "it is a link, or no directory")
        _check_inside(real)
        _close_to_others(real, found.st_mode)
    except OSError as exc:
        raise EmbeddedServerError(f"embedded://{directory} cannot be used: {exc}") from None
    return real


def open_own_file(path: Path) -> IO[str]:
    """
    Open a file of the private directory for reading and appending, with mode 0600.

    Raises:
        OSError: the file is a link, or cannot be opened.
    """
    flags = os.O_RDWR | os.O_CREAT | os.O_APPEND | os.O_NOFOLLOW | os.O_CLOEXEC
    return os.fdopen(os.open(path, flags, 0o600), "a+", encoding="utf-8")


def is_own_socket(path: Path) -> bool:
    """Whether a socket belongs to this user and lies in a directory that only they can enter."""
    try:
        found, home = path.lstat(), path.parent.lstat()
    except OSError:
        return False
    return (
        stat.S_ISSOCK(found.st_mode)
        and stat.S_ISDIR(home.st_mode)
        and {found.st_uid, home.st_uid} == {os.geteuid()}
        and not stat.S_IMODE(home.st_mode) & 0o077
    )


def running_socket(directory: str) -> str | None:
    """
    Return the socket of the server that a process runs in a directory; None if none does.

    Raises:
        EmbeddedServerError: others may read or change the directory.
    """
    if not (Path(directory) / OWNER).is_file():
        return None
    home = open_private(Path(directory))
    with open_own_file(home / OWNER) as lock:
        lock.seek(0)
        path = lock.read().strip()
    return path if path and is_own_socket(Path(path)) else None


def _check_above(above: Path) -> None:
    found = above.lstat()
    if found.st_uid not in {0, os.geteuid()}:
        raise _refused(above, "it belongs to another user")
    mode = found.st_mode
    if stat.S_ISLNK(mode) or mode & stat.S_ISVTX:
        return  # a link has no mode of its own; a sticky directory protects our files
    # The user's primary group usually has one member. Another group could rename what is below.
    others = stat.S_IWOTH if found.st_gid in {0, os.getegid()} else stat.S_IWOTH | stat.S_IWGRP
    if mode & others:
        raise _refused(above, f"others may write to it; chmod go-w {above}")


def _check_inside(directory: Path) -> None:
    """Refuse contents of another user, links, and anything but files and directories."""
    waiting, seen, user = [directory], 0, os.geteuid()
    while waiting:
        place = waiting.pop()
        if place.lstat().st_uid != user:
            raise _refused(place, "it belongs to another user")
        for name in os.listdir(place):  # noqa: PTH208  (no iterator to close when this raises)
            path, seen = place / name, seen + 1
            found = path.lstat()
            if stat.S_ISDIR(found.st_mode):
                waiting.append(path)
            elif not stat.S_ISREG(found.st_mode) or found.st_nlink > 1:
                raise _refused(path, "it is a link, or no plain file")
            if found.st_uid != user:
                raise _refused(path, "it belongs to another user")
            if seen > _MOST_ENTRIES:
                raise _refused(directory, f"it holds over {_MOST_ENTRIES} files; name an empty one")


def _close_to_others(directory: Path, mode: int) -> None:
    """Set mode 0700 if others may read it and it holds only an embedded server's files."""
    if not stat.S_IMODE(mode) & 0o077:
        return
    foreign = [name for name in os.listdir(directory) if not _OURS.fullmatch(name)]  # noqa: PTH208
    if stat.S_IMODE(mode) & 0o022 or foreign:
        raise _refused(directory, f"others may use it; chmod 700 {directory}")
    directory.chmod(0o700)


def _refused(path: Path, reason: str) -> EmbeddedServerError:
    return EmbeddedServerError(f"embedded:// does not trust {path}: {reason}")
