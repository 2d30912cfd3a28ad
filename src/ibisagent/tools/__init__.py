"""Segmentation tools by name: `classical`, `embedded`, `sam2:`, `medsam2:`, `sam:`, `medsam:`."""

from __future__ import annotations

from ibisagent.errors import InputError
from ibisagent.types import Tool

SPECS = (
    "embedded, embedded:FILE, classical, sam2:PATH_OR_ID[@512|@1024], medsam2:PATH, "
    "sam:PATH_OR_ID, medsam:PATH_OR_ID"
)


def load_tool(
    spec: str, *, device: str = "auto", dtype: str = "auto", point_to_box: float | None = None
) -> Tool:
    """The tool of a spec such as `embedded` or `sam2:facebook/sam2.1-hiera-tiny@1024`.

    `point_to_box` (percent of the picture's sides) lets a tool that takes only boxes answer clicks.
    Raises InputError for an unknown spec or weights that cannot be used.
    """
    tool = _load(spec, device, dtype)
    if point_to_box is None:
        return tool
    from ibisagent.tools.point_to_box import PointToBox

    return PointToBox(tool, point_to_box)


def _load(spec: str, device: str, dtype: str) -> Tool:
    kind, _, place = spec.partition(":")
    if kind == "classical" and place:
        raise InputError("the classical tool is named without a path", repr(spec), "write classical")
    if kind == "classical":
        from ibisagent.tools.classical import ClassicalTool

        return ClassicalTool()
    if kind == "embedded":
        from ibisagent.tools.embedded import EmbeddedTool

        return EmbeddedTool.load(place or None)
    if kind not in ("sam2", "medsam2", "sam", "medsam") or not place:
        raise InputError("the tool is one that ibisagent knows", repr(spec), f"choose from: {SPECS}")
    if kind in ("sam", "medsam"):
        from ibisagent.tools.sam import load_sam

        return load_sam(place, kind=kind, device=device, dtype=dtype)
    from ibisagent.tools.sam2 import load_sam2

    size = None
    if place.endswith(("@512", "@1024")):
        place, _, number = place.rpartition("@")
        size = int(number)
    if kind == "medsam2" and size == 1024:
        raise InputError("medsam2 runs at 512 pixels", "@1024", "leave the size out, or write sam2:")
    return load_sam2(place, kind=kind, size=size, device=device, dtype=dtype)
