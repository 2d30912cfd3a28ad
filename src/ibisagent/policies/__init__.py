"""Policies by name: `embedded`, `qwen:`, `chat:`, `scripted:`, `human`."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from ibisagent.devices import check_names
from ibisagent.errors import InputError
from ibisagent.types import BASE_VERBS, Mask, Policy, Verb

SPECS = "embedded, embedded:PATH, qwen:PATH_OR_ID, chat:MODEL@URL, scripted:RULE, scripted:@FILE, human"


@dataclass(frozen=True)
class PolicyOptions:
    """What some policies take besides their spec."""

    adapter: str | None = None  # LoRA folder or id, for qwen
    device: str = "auto"
    dtype: str = "auto"
    temperature: float = 0.0  # 0 is greedy
    max_new_tokens: int | None = None  # of one text; None: 512 for qwen, 1024 for chat
    allow_upload: bool = False  # for chat to a host that is not this machine
    verbs: frozenset[Verb] | None = None  # beyond clicks and Terminate, that a qwen or chat policy was taught


def load_policy(
    spec: str, options: PolicyOptions | None = None, truths: dict[str, Mask] | None = None
) -> Policy:
    """The policy of a spec such as `embedded` or `chat:my-model@http://127.0.0.1:8000/v1`.

    `truths` (true masks by sample id) is for the scripted rules that need them, such as
    `scripted:oracle`. Raises InputError for an unknown spec or weights that cannot be used.
    """
    options = options or PolicyOptions()
    check_names(options.device, options.dtype)
    kind, _, place = spec.partition(":")
    if options.adapter is not None and kind != "qwen":
        raise InputError("an adapter belongs to a qwen policy", repr(spec), "leave --adapter out")
    if kind == "embedded" and bool(place) == (":" in spec):
        from ibisagent.policies.embedded import EmbeddedPolicy

        return EmbeddedPolicy.load(place or None, temperature=options.temperature)
    if spec == "human":
        from ibisagent.policies.human import HumanPolicy

        return HumanPolicy()
    if kind == "scripted" and place:
        return _scripted(place, truths)
    if kind == "qwen" and place:
        from ibisagent.policies.qwen import QwenPolicy

        return QwenPolicy.load(
            place,
            adapter=options.adapter,
            device=options.device,
            dtype=options.dtype,
            temperature=options.temperature,
            max_new_tokens=options.max_new_tokens or 512,
            verbs=BASE_VERBS | (options.verbs or frozenset()),
        )
    if kind == "chat" and place:
        from ibisagent.policies.chat import ChatPolicy

        return ChatPolicy.load(
            place,
            allow_upload=options.allow_upload,
            temperature=options.temperature,
            max_tokens=options.max_new_tokens or 1024,
            verbs=BASE_VERBS | (options.verbs or frozenset()),
        )
    raise InputError("the policy is one that ibisagent knows", repr(spec), f"choose from: {SPECS}")


def _scripted(place: str, truths: dict[str, Mask] | None) -> Policy:
    from ibisagent.policies import scripted

    if place.startswith("@"):
        try:
            lines = Path(place[1:]).read_text(encoding="utf-8").splitlines()
        except (OSError, UnicodeDecodeError) as error:
            raise InputError(
                "scripted:@FILE is a readable text file, one reply a line", type(error).__name__
            ) from None
        return scripted.fixed([line for line in lines if line.strip()])
    rule = scripted.RULES.get(place)
    if rule is None:
        raise InputError(
            "the rule is one of scripted's", repr(place), f"choose from: {', '.join(scripted.RULES)}"
        )
    if truths is None and place not in scripted.BLIND:
        raise InputError(f"scripted:{place} needs the true mask", None, "give it with --truth FILE")
    return scripted.ScriptedPolicy(place, rule, truths)
