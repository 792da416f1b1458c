"""Zip archives are unpacked once, beside the archive or in the user's cache, and never outside the chosen folder."""

from __future__ import annotations

import glob
import hashlib
import os
import shutil
import tempfile
import zipfile
from pathlib import Path

from data.cache import cache_dir, open_cache
from data.errors import UserError
from data.locks import locked

MAX_UNPACKED_BYTES = 64 * 2**30  # larger archives are refused: a few-shot data set is a few GB at most


def unpack(archive: Path) -> Path:
    """Unpack a zip archive into the cache and return the folder.

    The folder's name depends on the archive's path, size and time, so a changed archive is unpacked anew. Members
    that would land outside the folder (absolute names, ``..``, links) and archives that are damaged are refused.

    Raises:
        UserError: the file is no zip archive, is damaged, or is unsafe; or the cache cannot be written to.
    """
    if not os.access(archive, os.R_OK):
        raise UserError(f"{archive} cannot be read: permission denied")
    stat = archive.stat()
    known = b"|".join((os.fsencode(archive.resolve()), f"{stat.st_size}|{stat.st_mtime_ns}".encode()))
    target = cache_dir() / f"{archive.stem[:64]}-{hashlib.sha256(known).hexdigest()[:16]}"
    if target.is_dir():
        return target
    open_cache()
    with locked(archive) as alone:
        if not target.is_dir():  # another process may have been faster
            unpack_into(target, archive, clear=alone)
    return target


def unpack_into(target: Path, archive: Path, *, clear: bool) -> None:
    """Unpack ``archive`` beside ``target`` and rename.

    Args:
        clear: what was left behind where this was killed, for nobody else is at it.

    Raises:
        UserError: the archive is damaged or unsafe.
    """
    prefix = f".{target.name}-"
    for left in target.parent.glob(f"{glob.escape(prefix)}*") if clear else ():
        shutil.rmtree(left, ignore_errors=True)
    partial = Path(tempfile.mkdtemp(prefix=prefix, dir=target.parent))
    try:
        with zipfile.ZipFile(archive) as contents:
            check_members(archive, contents, partial)
            contents.extractall(partial)
        if not target.is_dir():  # where there are no locks
            partial.rename(target)
    except UserError:
        raise
    except Exception as error:  # a damaged archive raises whatever its bytes lead to
        raise UserError(f"{archive} cannot be unpacked: {error or type(error).__name__}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)


def check_members(archive: Path, contents: zipfile.ZipFile, target: Path) -> None:
    """Refuse members that leave ``target``, links, and archives that unpack to more than ``MAX_UNPACKED_BYTES``.

    Raises:
        UserError: one of these.
    """
    root = target.resolve()
    for member in contents.infolist():
        is_link = (member.external_attr >> 16) & 0o170000 == 0o120000
        if is_link or not (root / member.filename).resolve().is_relative_to(root):
            raise UserError(f"{archive} holds an unsafe entry, {member.filename!r}: it is not unpacked")
    if sum(member.file_size for member in contents.infolist()) > MAX_UNPACKED_BYTES:
        raise UserError(f"{archive} unpacks to more than {MAX_UNPACKED_BYTES >> 30} GiB: unpack it by hand")
