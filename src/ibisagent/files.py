"""Files that take their place as a whole: a reader, a kill or a second process never meets half of one."""

from __future__ import annotations

import contextlib
import json
import os
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from ibisagent.errors import InputError, writing_to


def out_folder(folder: Path) -> Path:
    """The folder of --out, made where it is not there. Raises InputError where it cannot be."""
    with writing_to("--out is a folder"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Nobody else writes into the folder; the lock falls with the process, however it ends.

    On file systems that have no locks (some of clusters) nothing is held back. Raises InputError.
    """
    import fcntl

    with contextlib.ExitStack() as stack:
        with writing_to("--out is a folder"):
            file = stack.enter_context((folder / ".lock").open("w"))
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise InputError(
                "one job at a time writes into a folder",
                f"a running one in {folder}",
                "wait for it, or name another --out",
            ) from None
        except OSError:  # a file system without locks
            pass
        yield


def read_json(file: Path, fix: str) -> dict[str, Any]:
    """The JSON object of a file. Raises InputError with this `fix` where there is none, whole."""
    try:
        record = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError, RecursionError):
        record = None
    if not isinstance(record, dict):
        raise InputError(f"{file.name} is a whole JSON object", f"{file}, which is damaged", fix)
    return record


def part_of(file: Path) -> Path:
    """Where this process and thread write what is going to be `file`."""
    return file.with_name(f"{file.name}.{os.getpid()}-{threading.get_ident()}.part")


def write_whole(file: Path, content: bytes | str) -> None:
    """Replace `file`, text in UTF-8; several processes may do so at once, and the last one wins."""
    file.parent.mkdir(parents=True, exist_ok=True)
    temporary = part_of(file)
    try:
        temporary.write_bytes(content.encode("utf-8") if isinstance(content, str) else content)
        temporary.replace(file)
    finally:
        temporary.unlink(missing_ok=True)


def write_json(file: Path, record: Mapping[str, Any]) -> None:
    """Replace `file` by an object as JSON that a person can read. Raises ValueError for NaN."""
    write_whole(file, json.dumps(record, ensure_ascii=False, indent=1, allow_nan=False) + "\n")
