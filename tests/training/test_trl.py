"""What of the TRL adapter runs without TRL. The rest: benchmarks/engines_conformance.py --engine trl."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from policies.tiny_qwen import write_checkpoint
from transformers.utils.chat_parsing import parse_response

from ibisagent.errors import InputError, ToolError
from ibisagent.policies.qwen_processor import load_processor, prompt_text
from ibisagent.policies.scripted import ScriptedPolicy, noisy_oracle
from ibisagent.rewards import PAPER, score_episode
from ibisagent.rollout import collect, rollout
from ibisagent.settings import Settings
from ibisagent.tools.classical import ClassicalTool
from ibisagent.training.trl import (
    OVER,
    RESPONSE_TEMPLATE,
    dataset_rows,
    environment_factory,
    episode_rewards,
    prepare,
)
from ibisagent.types import BASE_VERBS, Message, Sample, ToolRequest, Verb, View

SETTINGS = Settings(history="all", verbs=BASE_VERBS | {Verb.UNDO}, max_turns=5)
BEFORE = "<|im_start|>system\ns<|im_end|>\n<|im_start|>user\nu<|im_end|>\n<|im_start|>assistant\n"
CLICK = "<think> a </think> <action> Positive Point (0.4, 0.4) </action>"
STOP = "<think> a </think> <action> Terminate </action> <answer> b </answer>"


def call(text: str) -> dict:
    return {"type": "function", "function": {"name": "reply", "arguments": {"text": text}}}


# --- what ends TRL's loop -----------------------------------------------------------------------


@pytest.mark.parametrize("end", ["<|im_end|>", ""])
@pytest.mark.parametrize(
    "text",
    [
        CLICK,
        "hm",
        "I say Terminate",
        "<think> <action> </think>",
        "<action> Undo </action> <action> Terminate </action>",
        "<action> Terminate </action> <action> Undo </action>",
        "<action> Terminate",
        '{"name": "reply"} {content}\n<tool_call>',
    ],
)
def test_every_reply_is_one_call_with_the_whole_text(text: str, end: str) -> None:
    parsed = parse_response(text + end, RESPONSE_TEMPLATE, prefix=BEFORE)
    assert parsed["tool_calls"] == [call(text)] and "content" not in parsed


@pytest.mark.parametrize(
    "text", [STOP, "< action >\nTermination</action>", "x <action> Terminate </action> y"]
)
def test_terminate_is_the_final_answer(text: str) -> None:
    parsed = parse_response(f"{text}<|im_end|>", RESPONSE_TEMPLATE, prefix=BEFORE)
    assert parsed["content"] == text and "tool_calls" not in parsed


def test_what_follows_the_end_is_final() -> None:
    ended = f"{BEFORE}{CLICK}<|im_end|>\n<|im_start|>user\n{OVER}<|im_end|>\n<|im_start|>assistant\n"
    assert "tool_calls" not in parse_response(f"{CLICK}<|im_end|>", RESPONSE_TEMPLATE, prefix=ended)


# --- the environment ----------------------------------------------------------------------------


def message(content: list[dict]) -> Message:
    images = tuple(np.asarray(part["image"]) for part in content if part["type"] == "image")
    return Message("user", content[-1]["text"], images)


@pytest.mark.parametrize("seed", range(3))
def test_a_recorded_episode_is_the_same(sample: Sample, seed: int) -> None:
    settings = replace(SETTINGS, seed=seed)
    policy, seen = ScriptedPolicy("n", noisy_oracle(0.5), {sample.sample_id: sample.truth}), []
    act, policy.view = policy.act, View(multiple=28)

    def watched(observations: Sequence) -> list:
        seen.extend(observations)
        return act(observations)

    policy.act = watched
    [episode] = collect(rollout([sample], policy, ClassicalTool(), settings))
    texts = [attempt.text for turn in episode.turns for attempt in turn.attempts]
    environment = environment_factory([sample], ClassicalTool(), settings, profile=PAPER)()
    [row] = dataset_rows([sample], settings)
    shown = [environment.reset(**row)]
    shown += [environment.reply(f"{text}<|im_end|>") for text in texts[:-1]]
    for content, observation in zip(shown, seen, strict=True):
        made, wanted = message(content), observation.messages[-1]
        assert made.text == wanted.text and len(made.images) == len(wanted.images)
        assert all(np.array_equal(a, b) for a, b in zip(made.images, wanted.images, strict=True))
    assert row["prompt"][0]["content"] == seen[0].messages[0].text
    if episode.status == "terminated":
        last = [{"role": "assistant", "content": texts[-1]}]
    else:  # TRL runs the call and asks for one text more
        assert environment.reply(texts[-1]) == [{"type": "text", "text": OVER}]
        last = [{"role": "assistant", "content": "more"}]
    assert episode_rewards([last], [environment]) == [pytest.approx(score_episode(episode, PAPER).total)]


def test_rollouts_share_a_tool_and_nothing_else(sample: Sample) -> None:
    factory = environment_factory([sample], ClassicalTool(), SETTINGS)
    one, other = factory(), factory()
    for environment in (one, other):
        environment.reset(sample_id=sample.sample_id)
    one.reply(CLICK)
    final = [{"role": "assistant", "content": [{"type": "text", "text": STOP}]}]
    good, nothing = episode_rewards([final, final], [one, other])
    assert good > 0.5 > nothing
    one.reset(sample_id=sample.sample_id)
    assert episode_rewards([final], [one]) == [nothing], "reset begins anew"


def test_a_rollout_that_was_cut_pays(sample: Sample) -> None:
    environment = environment_factory([sample], ClassicalTool(), SETTINGS)()
    cut = [{"role": "assistant", "content": "", "tool_calls": [call(CLICK)]}]
    environment.reset(sample_id=sample.sample_id)
    environment.reply(CLICK)
    driver = environment._driver
    assert driver is not None
    environment._finish("")  # the budget ended after an observation: that is no text of the policy
    assert len(driver.episode().turns) == 1 and driver.episode().status == "turn_limit"
    for completion in (cut, [], [{"role": "tool", "content": "x"}]):
        environment.reset(sample_id=sample.sample_id)
        [reward] = episode_rewards([completion], [environment])
        assert reward == pytest.approx(-0.1 - 0.02), "one malformed text and one turn"


def test_a_failed_tool_has_no_reward(sample: Sample) -> None:
    class Broken(ClassicalTool):
        def predict(self, requests: Sequence[ToolRequest]):
            raise ToolError("gone")

    environment = environment_factory([sample], Broken(), SETTINGS)()
    environment.reset(sample_id=sample.sample_id)
    assert environment.reply(CLICK) == [{"type": "text", "text": OVER}]
    assert episode_rewards([[{"role": "assistant", "content": "more"}]], [environment]) == [None]


def test_bad_input(sample: Sample) -> None:
    with pytest.raises(InputError, match="only append"):
        environment_factory([sample], ClassicalTool(), replace(SETTINGS, history="none"))
    with pytest.raises(InputError, match="sample_id"):
        environment_factory([sample], ClassicalTool(), SETTINGS)().reset(sample_id="other")


# --- templates ----------------------------------------------------------------------------------


def test_the_chat_template_shows_a_call_as_the_text_and_its_reply_as_a_user_message(tmp_path: Path) -> None:
    processor = load_processor(str(write_checkpoint(tmp_path / "tiny")))
    picture = np.zeros((56, 84, 3), np.uint8)
    ours = [
        Message("system", "s"),
        Message("user", "u", (picture,)),
        Message("assistant", CLICK),
        Message("user", "v", (picture,)),
    ]
    wanted = prompt_text(processor, ours)
    image = {"type": "image", "image": picture}
    theirs = [
        {"role": "system", "content": [{"type": "text", "text": "s"}]},
        {"role": "user", "content": [image, {"type": "text", "text": "u"}]},
        {"role": "assistant", "content": "", "tool_calls": [call(CLICK)]},
        {"role": "tool", "name": "reply", "content": [image, {"type": "text", "text": "v"}]},
    ]
    prepared = prepare(processor)
    assert prepared.apply_chat_template(theirs, tokenize=False, add_generation_prompt=True) == wanted
    assert prompt_text(prepared, ours) == wanted
    other = [
        theirs[1],
        {"role": "assistant", "tool_calls": [{"function": {"name": "f", "arguments": {"a": 1}}}]},
    ]
    assert '"f"' in prepared.apply_chat_template(other, tokenize=False)
