"""Files that take their place as a whole: a reader, a kill or a second process never meets half of one."""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from ibisagent.errors import writing_to


def out_folder(folder: Path) -> Path:
    """The folder of --out, made where it is not there. Raises InputError where it cannot be."""
    with writing_to("--out is a folder"):
        folder.mkdir(parents=True, exist_ok=True)
    return folder


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
