"""Conversation files among the trajectories."""

import json
from collections import Counter

import numpy as np
import pytest
from PIL import Image

from ibisagent.errors import InputError
from ibisagent.training.mix import Mixer, parse, read_conversations
from ibisagent.types import VLM_VIEW

PLAIN = {
    "messages": [
        {"role": "system", "content": "Be brief."},
        {"role": "user", "content": "<image>What is it?"},
        {"role": "assistant", "content": "A liver."},
        {"role": "user", "content": "And <image>\nthis?"},
        {"role": "assistant", "content": "A spleen."},
    ],
    "images": ["images/a.png", "images/b.png"],
}
LLAVA = {
    "id": 3,
    "image": "images/a.png",
    "conversations": [
        {"from": "human", "value": "<image>\nIs it large?"},
        {"from": "gpt", "value": "No."},
    ],
}
BLOCKS = {
    "messages": [
        {
            "role": "user",
            "content": [{"type": "image", "text": None}, {"type": "text", "text": "Which organ?"}],
        },
        {"role": "assistant", "content": [{"type": "text", "text": "The liver."}]},
    ],
    "images": ["images/b.png"],
}
CHAT = {
    "system": "You help.",
    "conversations": [{"from": "human", "value": "2 + 2?"}, {"from": "gpt", "value": "4"}],
}


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "images").mkdir()
    for name, value in (("a", 10), ("b", 200)):
        Image.fromarray(np.full((70, 98, 3), value, np.uint8)).save(tmp_path / "images" / f"{name}.png")
    return tmp_path


def write(folder, rows, name="mix.json"):
    file = folder / name
    text = "\n".join(map(json.dumps, rows)) if name.endswith("l") else json.dumps(rows)
    file.write_text(text, encoding="utf-8")
    return file


@pytest.mark.parametrize("name", ["mix.json", "mix.jsonl"])
def test_all_layouts_become_conversations(folder, name):
    found = read_conversations(write(folder, [PLAIN, LLAVA, BLOCKS, CHAT], name))
    said = [[(line.role, line.text, [path.name for path in line.images]) for line in c.lines] for c in found]
    assert said == [
        [
            ("system", "Be brief.", []),
            ("user", "What is it?", ["a.png"]),
            ("assistant", "A liver.", []),
            ("user", "And this?", ["b.png"]),
            ("assistant", "A spleen.", []),
        ],
        [("user", "Is it large?", ["a.png"]), ("assistant", "No.", [])],
        [("user", "Which organ?", ["b.png"]), ("assistant", "The liver.", [])],
        [("system", "You help.", []), ("user", "2 + 2?", []), ("assistant", "4", [])],
    ]
    assert found[2].name == f"{name} 3"


def test_examples_hold_pictures_at_the_policy_s_size_and_every_assistant_text(folder):
    example = read_conversations(write(folder, [PLAIN]))[0].example(VLM_VIEW)
    assert [written.text for written in example.texts] == ["A liver.", "A spleen."]
    assert [message.role for message in example.observation.messages] == [
        "system",
        "user",
        "assistant",
        "user",
    ]
    shown = [image for message in example.observation.messages for image in message.images]
    assert [image.shape for image in shown] == [(56, 112, 3)] * 2  # 70 x 98, to multiples of 28
    assert [int(image.mean()) for image in shown] == [10, 200]
    assert example.observation.instruction == "What is it?"


def test_a_chat_without_pictures_is_an_example_too(folder):
    example = read_conversations(write(folder, [CHAT]))[0].example(VLM_VIEW)
    assert not any(message.images for message in example.observation.messages)
    assert example.observation.image.shape == (1, 1, 3)


def test_our_own_export_is_read_back(folder, tmp_path):
    """`ibisagent export` writes both layouts; the marker and block rules are shared."""
    from ibisagent.synthesis.export import Record, write_records
    from ibisagent.types import Message

    pixels = np.full((56, 56, 3), 90, np.uint8)
    record = Record(
        key="k",
        messages=(
            Message("system", "S"),
            Message("user", "Find it.", (pixels,)),
            Message("assistant", "Done."),
        ),
        kind="plain",
        target=None,
        truth=None,
        turn=1,
    )
    for to, name in (("llamafactory", "data.json"), ("messages", "data.jsonl")):
        out = tmp_path / to
        out.mkdir()
        write_records([record], to, out, "turns")
        example = read_conversations(out / name)[0].example(VLM_VIEW)
        assert [written.text for written in example.texts] == ["Done."]
        assert np.array_equal(example.observation.messages[1].images[0], pixels)


def test_which_source_depends_on_seed_and_place_alone_and_keeps_the_ratios(folder):
    one, two = write(folder, [LLAVA, CHAT]), write(folder, [PLAIN], "other.json")
    mixer = Mixer([f"{one}:0.2", f"{two}:0.1"], seed=5)
    picked = [mixer.pick(place) for place in range(6000)]
    assert picked[::-1] == [mixer.pick(place) for place in reversed(range(6000))]
    counts = Counter(None if p is None else p[0] for p in picked)
    assert abs(counts[0] / 6000 - 0.2) < 0.02 and abs(counts[1] / 6000 - 0.1) < 0.02
    rows = Counter(p[1] for p in picked if p is not None and p[0] == 0)
    assert set(rows) == {0, 1} and abs(rows[0] - rows[1]) < 150
    own = [mixer.trajectory(place) for place in range(6400)]
    assert sorted(number for number in own if number is not None) == list(range(4480)), "each has its place"
    assert [Mixer([f"{one}:0.2", f"{two}:0.1"], seed=6).pick(place) for place in range(200)] != picked[:200]
    place = next(place for place, p in enumerate(picked) if p == (1, 0))
    assert mixer.draw(place).texts[0].text == "A liver."
    assert mixer.draw(picked.index(None)) is None


def test_what_cannot_be_trained_is_left_out_and_named_before_the_first_step(folder):
    (folder / "images" / "bad.png").write_bytes(b"no picture")
    broken = LLAVA | {"image": "images/bad.png"}
    mixer = Mixer([f"{write(folder, [LLAVA, CHAT, broken])}:0.5"], seed=0)
    left = mixer.check(lambda example: "too short" if example.texts[0].text == "4" else None)
    assert left["too short"] == 1 and sum(left.values()) == 2
    assert [conversation.name for conversation in mixer.sources[0]] == ["mix.json 1"]
    with pytest.raises(InputError, match="can be trained; got none; no"):
        mixer.check(lambda example: "no")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        ({"images": ["images/a.png"]}, r"1 pictures and 2 markers in conversation 1; write one <image>"),
        ({"images": ["images/a.png", "../x.png"]}, "below the folder of their --mix file"),
        ({"images": ["images/a.png", "/etc/hostname"]}, "below the folder of their --mix file"),
        ({"images": ["images/a.png", "images/c.png"]}, "every picture of a --mix file is there"),
        ({"images": ["images/a.png", 7]}, "named by paths"),
        ({"messages": None}, "a list `messages`"),
        ({"messages": PLAIN["messages"][:-1]}, "take turns, and the assistant ends"),
        ({"messages": [{"role": "tool", "content": "x"}]}, "roles are system, user"),
        ({"messages": [{"role": "user", "content": 5}]}, "text or blocks"),
        ({"messages": [{"role": "user", "content": [{"type": "video"}]}]}, "blocks are text or image"),
        (
            {"messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": "<image>"}]},
            "user messages",
        ),
        (
            {
                "messages": [{"role": "user", "content": "a"}, {"role": "assistant", "content": " "}],
                "images": [],
            },
            "not empty",
        ),
        ({"messages": []}, "as many pictures as markers"),
    ],
)
def test_conversations_that_cannot_be(folder, change, said):
    with pytest.raises(InputError, match=said):
        read_conversations(write(folder, [PLAIN | change]))


def test_a_link_that_leads_out_is_refused(folder, tmp_path_factory):
    outside = tmp_path_factory.mktemp("outside") / "x.png"
    outside.write_bytes((folder / "images" / "a.png").read_bytes())
    (folder / "images" / "link.png").symlink_to(outside)
    with pytest.raises(InputError, match="below the folder"):
        read_conversations(write(folder, [LLAVA | {"image": "images/link.png"}]))


@pytest.mark.parametrize("text", ["", "[1, 2", "{}\nno", "[]", "[3]", "\ufeff"])
def test_files_that_cannot_be(folder, text):
    (folder / "odd.json").write_text(text, encoding="utf-8")
    with pytest.raises(InputError):
        read_conversations(folder / "odd.json")


def test_ratios(folder):
    assert parse("a:b/c.json:0.25")[1] == 0.25 and str(parse("a:b/c.json:0.25")[0]) == "a:b/c.json"
    for text in ("a.json", "a.json:", ":0.5", "a.json:0", "a.json:1", "a.json:x", "a.json:nan", "a.json:-1"):
        with pytest.raises(InputError, match="FILE:RATIO"):
            parse(text)
    file = write(folder, [CHAT])
    with pytest.raises(InputError, match="less than 1"):
        Mixer([f"{file}:0.5", f"{file}:0.5"], 0)
    with pytest.raises(InputError, match="readable text"):
        Mixer([f"{folder / 'none.json'}:0.5"], 0)
