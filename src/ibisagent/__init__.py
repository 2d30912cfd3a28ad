"""Say "find the liver in this image" and get a mask, with the reasoning behind it."""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ibisagent.agent import Agent, Result
    from ibisagent.types import EpisodeStatus, Outcome

__all__ = ["Agent", "EpisodeStatus", "Outcome", "Result"]
__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """The public names, loaded when first asked for: `import ibisagent.types` stays cheap."""
    if name not in __all__:
        raise AttributeError(f"module 'ibisagent' has no attribute {name!r}")
    from ibisagent import agent, types

    return getattr(agent, name, None) or getattr(types, name)
