"""Does this fit that? What must agree between data, checkpoints and results (METHOD section 4)."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import warnings
from collections.abc import Collection, Iterable, Mapping
from pathlib import Path
from typing import Any

from ibisagent import render
from ibisagent.actions import DECIMALS, GRAMMAR_VERSION
from ibisagent.errors import InputError
from ibisagent.prompts import prompt_id
from ibisagent.types import Policy, Tool, Verb


def fingerprint(
    policy: Policy, tool: Tool, system: str, verbs: Collection[Verb], history: str, style: render.Style
) -> dict[str, Any]:
    """Everything that changes what a policy sees or what its text does, as plain JSON values."""
    return {
        "grammar": {"version": GRAMMAR_VERSION, "verbs": sorted(str(verb) for verb in verbs)},
        "coordinates": {"rule": "pixel-centre", "decimals": DECIMALS},
        "prompt": prompt_id(system),
        "history": history,
        "renderer": render.fingerprint(style),
        "view": dataclasses.asdict(policy.view),
        "policy": dict(policy.fingerprint()),
        "tool": dict(tool.fingerprint()),
    }


def file_id(file: Path) -> str:
    """Names a safetensors file by what it holds: 16 hex digits.

    The same tensors and metadata have the same name however often they are saved; the bytes would
    not do, since safetensors writes metadata in any order. Raises ValueError for another file.
    """
    content = file.read_bytes()
    length = int.from_bytes(content[:8], "little")
    header = json.loads(content[8 : 8 + length])
    digest = hashlib.sha256(json.dumps(header, sort_keys=True).encode())
    digest.update(memoryview(content)[8 + length :])
    return digest.hexdigest()[:16]


def list_id(names: Iterable[str]) -> str:
    """Names a list of names, in its order: 16 hex digits."""
    return hashlib.sha256("\n".join(names).encode()).hexdigest()[:16]


def differences(ours: Mapping[str, Any], theirs: Mapping[str, Any], prefix: str = "") -> list[str]:
    """One line per value that differs, such as `history: none here, all there`."""
    lines = []
    for key in sorted(set(ours) | set(theirs)):
        mine, other = ours.get(key), theirs.get(key)
        if isinstance(mine, Mapping) and isinstance(other, Mapping):
            lines += differences(mine, other, f"{prefix}{key}.")
        elif mine != other:
            lines.append(f"{prefix}{key}: {mine} here, {other} there")
    return lines


def refuse_if_different(ours: Mapping[str, Any], theirs: Mapping[str, Any], rule: str) -> None:
    """Raises InputError that names the first differences: a folder holds one run only."""
    lines = differences(ours, theirs)
    if lines:
        more = f" and {len(lines) - 4} more" if len(lines) > 4 else ""
        raise InputError(
            rule, "; ".join(lines[:4]) + more, "name another --out, or repeat the command that began it"
        )


def warn_if_different(ours: Mapping[str, Any], theirs: Mapping[str, Any], what: str) -> list[str]:
    """Warn loudly, naming each difference, where `what` was made under another fingerprint."""
    lines = differences(ours, theirs)
    if lines:
        warnings.warn(f"{what} was made under another fingerprint:\n  " + "\n  ".join(lines), stacklevel=2)
    return lines


SEEN = ("grammar", "coordinates", "prompt", "history", "renderer")  # what a policy sees and writes


def seen(mark: Mapping[str, Any], *more: str) -> dict[str, Any]:
    """The part of a fingerprint that training data and policy must share, and `more` of its keys."""
    return {key: mark[key] for key in (*SEEN, *more) if key in mark}
