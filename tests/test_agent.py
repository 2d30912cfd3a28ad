from pathlib import Path

import numpy as np
import pytest
from PIL import Image
from test_episodes import same

from ibisagent import Agent, EpisodeStatus, Outcome
from ibisagent.agent import make_sample
from ibisagent.errors import InputError
from ibisagent.policies import PolicyOptions
from ibisagent.types import BASE_VERBS, Picture, Sample, Verb

CENTRE = {"policy": "scripted:image-centre", "tool": "classical", "start": "none"}


def test_path_pil_and_array_are_the_same_picture(sample: Sample, tmp_path: Path) -> None:
    path = tmp_path / "Smith^Anna.png"
    Image.fromarray(sample.picture.pixels).save(path)
    agent = Agent.load(**CENTRE)
    results = [
        agent.segment(image, "Find the disc")
        for image in (path, str(path), Image.open(path), sample.picture.pixels, sample.picture.pixels[..., 0])
    ]
    for result in results:
        assert result.outcome is Outcome.SEGMENTED and result.status is EpisodeStatus.TERMINATED
        assert result.mask.dtype == bool and result.mask.shape == (96, 128)
        assert np.array_equal(result.mask, results[0].mask)
        assert "Smith" not in repr(result.episode.sample_id) + repr(result.episode.picture.assumptions)
    assert len(results[0].turns) == 2 and results[0].answer == "The mask fits the target."


def test_segment_many_gives_what_segment_gives_in_the_order_asked(sample: Sample) -> None:
    agent = Agent.load(**CENTRE, seed=5)
    pictures = [np.roll(sample.picture.pixels, 9 * index, axis=1) for index in range(5)]
    requests = [(pixels, f"Find disc {index}") for index, pixels in enumerate(pictures)]
    many = list(agent.segment_many(requests, batch_size=3))
    assert [result.episode.instruction for result in many] == [text for _, text in requests]
    for result, (pixels, text) in zip(many, requests, strict=True):
        assert same(result.episode, agent.segment(pixels, text).episode)


def test_a_mask_to_start_from(sample: Sample) -> None:
    agent = Agent.load("scripted:stop-at-once", "classical")
    result = agent.segment(sample.picture, "Find the disc", start=sample.truth)
    assert np.array_equal(result.mask, sample.truth) and result.episode.start == "file"


@pytest.mark.parametrize("instruction", ["", "   ", "x" * 2001])
def test_instructions_have_a_length(sample: Sample, instruction: str) -> None:
    with pytest.raises(InputError, match="1 to 2000 characters"):
        make_sample(sample.picture, instruction)


@pytest.mark.parametrize(
    "image",
    [
        np.zeros((0, 5), np.uint8),
        np.zeros((4, 4, 7), np.uint8),
        np.full((4, 4), np.nan),
        "no/such/file.png",
        5,
    ],
)
def test_bad_images_are_named_errors(image: object) -> None:
    with pytest.raises(InputError):
        make_sample(image, "Find the disc")


def test_one_pixel_goes_through() -> None:
    result = Agent.load(**CENTRE).segment(np.full((1, 1, 3), 80, np.uint8), "Find the disc")
    assert result.mask is not None and result.mask.shape == (1, 1)


def test_defaults_follow_policy_and_tool() -> None:
    agent = Agent.load("scripted:image-centre", "classical")
    assert agent.settings.start == "none" and "Box" not in agent.settings.verbs
    assert "Undo" in agent.settings.verbs


def test_sample_ids_hold_content_and_instruction_only(sample: Sample) -> None:
    one = make_sample(sample.picture, "Find the liver")
    assert one.sample_id == make_sample(Picture(sample.picture.pixels.copy()), " Find the liver ").sample_id
    assert one.sample_id != make_sample(sample.picture, "Find the spleen").sample_id
    assert len(one.sample_id) == 16


def test_a_bad_request_of_many_is_named_and_loses_nothing_before_it(sample: Sample):
    agent = Agent.load(**CENTRE)
    results = []
    with pytest.raises(InputError, match=r"^request 2: The picture must exist"):
        for result in agent.segment_many(
            [(sample.picture, "liver")] * 2 + [("nowhere.png", "liver"), (sample.picture, "liver")],
            batch_size=3,
        ):
            results.append(result)
    assert len(results) == 2 and all(result.mask is not None for result in results)
    with pytest.raises(InputError, match="request 0: a request is a pair; got str"):
        list(agent.segment_many(["abc"]))
    for size in (0, -1):
        with pytest.raises(InputError, match="batch size and group are at least 1"):
            list(agent.segment_many([(sample.picture, "liver")], batch_size=size))
    for instruction in (None, ["liver"], b"liver"):
        with pytest.raises(InputError, match="an instruction is text; got"):
            agent.segment(sample.picture, instruction)


def test_options_of_both_kinds_are_taken_and_others_named():
    agent = Agent.load(device="cpu", temperature=0.5, verbs=["Undo", *BASE_VERBS], seed=3)
    assert agent.policy.temperature == 0.5 and Verb.UNDO in agent.settings.verbs and agent.settings.seed == 3
    with pytest.raises(InputError, match=r"got max_turn; did you mean max_turns\?"):
        Agent.load(max_turn=3)
    with pytest.raises(InputError, match="the device is auto, cpu"):
        Agent.load(device="foo")
    with pytest.raises(InputError, match="an adapter belongs to a qwen policy"):
        Agent.load(adapter="nope")


def test_verbs_reach_the_policies_that_can_be_taught_them(sample: Sample):
    chat = "chat:x@http://127.0.0.1:9/v1"
    wanted = BASE_VERBS | {Verb.UNDO}
    for agent in (
        Agent.load(chat, "classical", verbs={Verb.UNDO}),
        Agent.load(chat, "classical", verbs=["Undo"], options=PolicyOptions(temperature=0.5)),
        Agent.load(chat, "classical", options=PolicyOptions(verbs=frozenset({Verb.UNDO}))),
    ):
        assert agent.policy.verbs == agent.settings.verbs == wanted
    taught = Agent.load(chat, "classical", verbs=(), options=PolicyOptions(verbs=frozenset({Verb.UNDO})))
    assert taught.settings.verbs == BASE_VERBS and taught.policy.verbs == wanted
    assert Agent.load(chat, "classical").policy.verbs == BASE_VERBS
    with pytest.raises(InputError, match="verbs are those of the grammar"):
        Agent.load("qwen:nowhere", "classical", verbs=["Fly"])
    with pytest.raises(InputError, match="verbs that it was taught"):
        Agent.load(chat, "classical", verbs=["Undo"], options=PolicyOptions(verbs=frozenset()))


@pytest.mark.parametrize("limit", [0, 0.0, -1, float("inf"), float("nan"), "5"])
def test_a_time_limit_is_above_0(limit: object):
    with pytest.raises(InputError, match=r"time_limit is a number of seconds above 0; got"):
        Agent.load(**CENTRE, time_limit=limit)


def test_a_picture_is_no_mask_to_start_from(sample: Sample):
    with pytest.raises(InputError, match="A mask is a path, a Pillow image or an array; got Picture"):
        Agent.load(**CENTRE).segment(sample.picture, "Find the disc", start=sample.picture)


def test_what_a_policy_never_saw_is_no_result(sample: Sample):
    agent = Agent.load(policy="chat:x@http://127.0.0.1:9/v1")  # nothing listens there
    result = agent.segment(sample.picture, "Find the liver", start=sample.truth)
    assert (result.status, result.outcome, result.mask) == ("policy_error", "none", None)
    assert np.array_equal(result.episode.start_mask, sample.truth), "what it began from is kept"
