"""`train rl`: rollouts, advantages on texts, resumption, the stop for reward hacking."""

import json
from dataclasses import replace

import pytest
import torch
from synthesis.made_data import make_set
from training.made_training import PICTURES, curve, rl

from ibisagent.errors import InputError
from ibisagent.training import grpo
from ibisagent.training import optimiser as optimisers
from ibisagent.training.advantage import group_advantages
from ibisagent.training.grpo import examples_with_advantages, hacking, train
from ibisagent.training.optimiser import Optimisation
from ibisagent.training.policy import load_trainable
from ibisagent.training.rounds import Round


@pytest.fixture(scope="module")
def data(tmp_path_factory):
    return make_set(tmp_path_factory.mktemp("rl") / "data", PICTURES)


@pytest.fixture(scope="module")
def played(data, tmp_path_factory):
    command = rl(data, tmp_path_factory.mktemp("round"))
    round_ = Round(command, load_trainable(command.model, temperature=1.0))
    samples = [round_.drawer.draw(0, place) for place in range(2)]
    return round_, samples, round_.groups(samples, round_.settings)


def test_every_text_of_a_group_is_an_example_with_its_advantage(played) -> None:
    _, samples, groups = played
    for sample, group in zip(samples, groups, strict=True):
        assert [one.episode.sample_id for one in group] == [sample.sample_id] * 3
        assert sorted(one.episode.rollout for one in group) == [0, 1, 2]
        examples = examples_with_advantages(group, "episode", "none")
        expected = group_advantages([one.reward.total for one in group])
        texts = [attempt.text for one in group for turn in one.episode.turns for attempt in turn.attempts]
        assert [example.texts[-1].text for example in examples] == texts
        weights = [a for a, one in zip(expected, group, strict=True) for _ in one.texts]
        assert [example.texts[-1].weight for example in examples] == weights
        assert all(example.texts[-1].token_ids for example in examples)


def test_a_rollout_that_left_its_group_trains_nothing(played) -> None:
    _, _, [group, _] = played
    gone = replace(group[0], reward=replace(group[0].reward, total=None))
    examples = examples_with_advantages([gone, *group[1:]], "episode", "none")
    assert len(examples) == sum(len(one.texts) for one in group[1:])
    turnwise = examples_with_advantages([gone, *group[1:]], "turn", "none")
    assert len(turnwise) == len(examples)


@torch.no_grad()
def test_the_ratio_of_fresh_rollouts_is_one(played) -> None:
    round_, _, groups = played
    examples = [e for group in groups for e in examples_with_advantages(group, "episode", "none")]
    batch = round_.trainable.collate(examples)
    looks = {(e.observation.instruction, e.observation.image.tobytes()) for e in examples}
    assert len(batch.inputs["image"]) == len(looks) < len(examples)  # a group's first picture, once
    log_probs = round_.trainable.module(**batch.inputs)[batch.mask]
    assert torch.isfinite(log_probs).all()  # what was sampled was possible
    again = round_.trainable.collate(examples[:1])
    one = round_.trainable.module(**again.inputs)[again.mask]
    together = round_.trainable.module(**batch.inputs)[0][batch.mask[0]]
    assert torch.allclose(torch.exp(one - together), torch.ones_like(one), atol=1e-4)


def test_a_case_that_is_drawn_twice_is_played_twice(played) -> None:
    round_, _, _ = played
    # more places than cases: some case comes again
    samples = [round_.drawer.draw(0, place) for place in range(30)]
    cases = [sample.sample_id.partition("~")[0] for sample in samples]
    first = next(index for index, case in enumerate(cases) if case in cases[:index])
    pair = [samples[cases.index(cases[first])], samples[first]]
    groups = round_.groups(pair, round_.settings)
    seeds = [{reply[0].seed for one in group for reply in one.texts} for group in groups]
    assert [len(group) for group in groups] == [3, 3] and not seeds[0] & seeds[1]


def test_draws_depend_on_round_and_place_alone(played) -> None:
    round_, samples, _ = played
    again = round_.drawer.draw(0, 1)
    assert again.sample_id == samples[1].sample_id
    assert (again.picture.pixels == samples[1].picture.pixels).all()
    held = {sample.sample_id.rpartition("/")[0] for sample in round_.drawer.validation(None)}
    drawn = {round_.drawer.draw(n, p).sample_id.rpartition("/")[0] for n in range(6) for p in range(6)}
    assert held and not held & drawn
    shares = [list(round_.drawer.validation(None, rank, 2)) for rank in (0, 1)]
    assert len(shares[0]) + len(shares[1]) == len(list(round_.drawer.validation(None)))


def test_a_run_that_was_stopped_goes_on_as_if_it_never_was(data, tmp_path, monkeypatch) -> None:
    train(rl(data, tmp_path / "whole"))
    real = optimisers.Journal.write

    def interrupted(self, step, stepped, **more):
        if step == 2:
            raise KeyboardInterrupt
        real(self, step, stepped, **more)

    monkeypatch.setattr(optimisers.Journal, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(rl(data, tmp_path / "cut"))
    monkeypatch.setattr(optimisers.Journal, "write", real)
    train(rl(data, tmp_path / "cut"))
    whole, cut = (curve(tmp_path / name, "loss", "reward", "iou", "norm") for name in ("whole", "cut"))
    for one, other in zip(whole, cut, strict=True):
        assert other == pytest.approx(one, abs=1e-4)
    cards = [json.loads((tmp_path / name / "training.json").read_text()) for name in ("whole", "cut")]
    for one, other in zip(cards[0]["validations"], cards[1]["validations"], strict=True):
        assert other == pytest.approx(one, abs=1e-6)
    assert [v["step"] for v in cards[0]["validations"]] == [0, 2, 3]
    assert (tmp_path / "whole/best/embedded_policy.safetensors").is_file()
    mark = cards[0]["fingerprint"]["policy"]["weights"]
    train(rl(data, tmp_path / "whole"))  # there is nothing left to do, and what is there stays
    assert (
        json.loads((tmp_path / "whole/training.json").read_text())["fingerprint"]["policy"]["weights"] == mark
    )
    with pytest.raises(InputError, match=r"optimisation\.lr: 9\.0 here, 0\.0001 there"):
        train(rl(data, tmp_path / "whole", optimisation=Optimisation(lr=9.0, schedule="constant")))
    with pytest.raises(InputError, match=r"data: [0-9a-f]{16} here"):
        train(replace(rl(data, tmp_path / "whole"), data=make_set(tmp_path / "other", PICTURES + 2)))
    pages = sorted(path.name for path in (tmp_path / "whole/rollouts").iterdir())
    assert pages[0] == "round-00001-best.html" and len(pages) == 4
    assert "reward" in (tmp_path / "whole/rollouts" / pages[0]).read_text()


def test_training_stops_where_reward_rises_and_iou_falls() -> None:
    def row(reward, overlap):
        return {"reward": reward, "set-macro IoU": overlap}

    good = [row(0.5 + k / 100, 0.6) for k in range(6)]
    assert hacking(good) is None
    bad = [row(0.5 + k / 100, 0.6 - k * 0.0041) for k in range(6)]
    assert "reward rose by 0.050" in (hacking(bad) or "")
    assert hacking(bad[:5]) is None  # too few to tell
    assert hacking([row(0.5 - k / 100, 0.6 - k / 10) for k in range(6)]) is None  # no hacking, only bad


def test_options_that_cannot_be_are_named(data, tmp_path) -> None:
    with pytest.raises(InputError, match="--group is at least 2"):
        train(rl(data, tmp_path / "a", group=1))
    with pytest.raises(InputError, match="does not weigh"):
        train(rl(data, tmp_path / "b", without=("S_nothing",)))
    with pytest.raises(InputError, match="needs a tool that takes text"):
        train(rl(data, tmp_path / "c", start="proposal"))
    with pytest.raises(InputError, match="credit per turn needs rewards that add up"):
        train(rl(data, tmp_path / "e", profile="paper", credit="turn"))
    with pytest.raises(InputError, match="sees the current picture alone"):
        train(rl(data, tmp_path / "f", history="all"))
    for name in ("kl", "least_spread"):
        with pytest.raises(InputError, match=f"--{name.replace('_', '-')}"):
            train(rl(data, tmp_path / "g", **{name: float("nan")}))
    with pytest.raises(InputError, match="--validate-per-set is at least 1"):
        train(rl(data, tmp_path / "h", validate_per_set=0))
    for temperature in (0.0, -1.0, float("nan"), float("inf")):
        with pytest.raises(InputError, match="--temperature is a number above 0"):
            train(rl(data, tmp_path / "d", temperature=temperature))


def test_a_run_that_was_stopped_for_its_reward_stays_so(data, tmp_path, monkeypatch) -> None:
    monkeypatch.setattr(grpo, "hacking", lambda found: "made up" if len(found) > 1 else None)
    assert train(rl(data, tmp_path, validate_every=1)) == "made up"
    rounds = curve(tmp_path, "loss")
    monkeypatch.undo()
    assert train(rl(data, tmp_path, validate_every=1)) == "made up"
    assert curve(tmp_path, "loss") == rounds and len(rounds) == 1
    assert json.loads((tmp_path / "training.json").read_text())["stopped"] == "made up"


def test_the_divergence_from_the_beginning_is_written_down(data, tmp_path) -> None:
    train(rl(data, tmp_path, kl=0.1, updates=2, validate_every=0, record_every=0))
    rows = curve(tmp_path, "kl", "clipped")
    assert rows[0][1] >= 0 and rows[-1][1] > 0 and all(0 <= clipped <= 1 for _, _, clipped in rows)
