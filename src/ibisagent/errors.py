"""The tree of named errors: each says the rule, then the value, then the fix."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class IbisError(Exception):
    """A fault that a person can mend: `rule` that was broken, the `value` met, the `fix`."""

    def __init__(self, rule: str, value: object = None, fix: str | None = None) -> None:
        self.rule = rule
        self.value = value
        self.fix = fix
        parts = [rule]
        if value is not None:
            parts.append(f"got {value}")
        if fix:
            parts.append(fix)
        super().__init__("; ".join(parts))


class InputError(IbisError, ValueError):
    """A file, array, option or name from the user that cannot be used (exit code 2)."""


@contextlib.contextmanager
def writing_to(what: str) -> Iterator[None]:
    """Says plainly that a place, such as "--out is a folder", cannot be written to."""
    try:
        yield
    except OSError as error:
        raise InputError(f"{what} that can be written to", error.strerror, "name another one") from None


class EpisodeFormatError(InputError):
    """An episode log whose schema, version or content does not hold."""


class ToolError(IbisError):
    """A segmentation tool could not answer; the episode ends with status `tool_error`."""


class PolicyError(IbisError):
    """A policy could not answer; the episode ends with status `policy_error`."""


class MissingExtraError(IbisError, ImportError):
    """An optional dependency is absent; the fix names the extra to install."""


def install(extra: str) -> str:
    """The fix for a missing extra. The package is on no index, so it is installed from its checkout."""
    return f"in a checkout of ibisagent: pip install '.[{extra}]'"
