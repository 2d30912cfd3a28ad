"""`train sft`: what is learned, that it lowers the loss, and that a killed run goes on as if it never was."""

import json
import sys
from dataclasses import asdict, replace

import pytest
from training.made_training import curve, make_trajectories, sft

from ibisagent.episodes import read_episodes
from ibisagent.errors import EpisodeFormatError, InputError, MissingExtraError
from ibisagent.masks import iou
from ibisagent.synthesis.trajectories import wrong_turns
from ibisagent.training import optimiser
from ibisagent.training.examples import examples_of, observed_steps
from ibisagent.training.optimiser import Optimisation
from ibisagent.training.policy import claim
from ibisagent.training.sft import train
from ibisagent.types import View


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory):
    return make_trajectories(tmp_path_factory.mktemp("sft"))


def test_wrong_turns_are_read_and_never_learned(trajectories) -> None:
    episodes = list(read_episodes(trajectories / "trajectories-00000.jsonl"))
    assert {episode.kind for episode in episodes} >= {"plain", "self_correction", "absent"}
    for episode in episodes:
        steps = observed_steps(episode, View(max_side=64))
        wrong = set(wrong_turns(episode))
        assert [written.weight is None for _, written in steps] == [
            turn.number in wrong for turn in episode.turns
        ]
        single, whole = examples_of(steps, "none"), examples_of(steps, "all")
        assert len(single) == len(steps) - len(wrong)
        assert len(whole) == 1 and len(whole[0].texts) == len(steps)
    assert any(wrong_turns(episode) for episode in episodes)


def test_observations_are_those_of_the_episode(trajectories) -> None:
    episode = next(e for e in read_episodes(trajectories / "trajectories-00000.jsonl") if len(e.turns) > 1)
    steps = observed_steps(episode, View(max_side=64), history="all")
    masks = [episode.start_mask, *(turn.mask for turn in episode.turns)]
    for number, (observation, written) in enumerate(steps):
        assert observation.turn == number + 1
        assert written.text == episode.turns[number].attempts[-1].text
        assert len([m for m in observation.messages if m.role == "assistant"]) == number
        if masks[number] is None:
            assert observation.mask is None
        else:
            assert iou(observation.mask, masks[number]) == 1
    with pytest.raises(ValueError, match="texts of an episode lead"):
        observed_steps(replace(episode, turns=(episode.turns[-1], *episode.turns)), View(max_side=64))


def test_a_run_that_was_stopped_goes_on_as_if_it_never_was(trajectories, tmp_path, monkeypatch) -> None:
    train(sft(trajectories, tmp_path / "whole"))
    real = optimiser.Journal.write

    def interrupted(self, step, stepped, **more):
        if step == 3:
            raise KeyboardInterrupt
        real(self, step, stepped, **more)

    monkeypatch.setattr(optimiser.Journal, "write", interrupted)
    with pytest.raises(KeyboardInterrupt):
        train(sft(trajectories, tmp_path / "cut"))
    monkeypatch.setattr(optimiser.Journal, "write", real)
    assert not (tmp_path / "cut/policy").exists()
    train(sft(trajectories, tmp_path / "cut"))
    whole, cut = (curve(tmp_path / name, "loss", "lr") for name in ("whole", "cut"))
    assert [row[0] for row in cut] == [1, 2, 3, 4]
    for one, other in zip(whole, cut, strict=True):
        assert other == pytest.approx(one, abs=1e-4)
    assert (tmp_path / "cut/policy/embedded_policy.safetensors").is_file()
    assert len(list((tmp_path / "cut/checkpoints").iterdir())) == 2
    card = json.loads((tmp_path / "cut/training.json").read_text())
    assert card["stage"] == "sft" and card["steps"] == 4
    assert card["fingerprint"]["tool"]["name"] == "classical"


def test_more_steps_on_few_texts_lower_the_loss(trajectories, tmp_path) -> None:
    quick = Optimisation(lr=1e-3, micro_batch=4)
    train(sft(trajectories, tmp_path / "run", steps=24, kinds=("wrong_start",), optimisation=quick))
    losses = [row[1] for row in curve(tmp_path / "run", "loss")]
    assert sum(losses[-3:]) < 0.6 * sum(losses[:3])


def test_data_of_other_prompts_warns_loudly(trajectories, tmp_path) -> None:
    text = (trajectories / "trajectories-00000.jsonl").read_text()
    record = json.loads(text.splitlines()[0])
    other = tmp_path / "other.jsonl"
    (tmp_path / "pictures").symlink_to(trajectories / "pictures")
    other.write_text(text.replace(record["fingerprint"]["prompt"], "0123456789abcdef"))
    with pytest.warns(UserWarning, match="training data was made under another fingerprint"):
        train(sft(other, tmp_path / "run", steps=1))


def test_what_is_not_installed_is_named_with_its_extra(trajectories, tmp_path, monkeypatch) -> None:
    logged = Optimisation(log_with="tensorboard")
    monkeypatch.setattr(optimiser.importlib.util, "find_spec", lambda name: None)
    with pytest.raises(MissingExtraError, match=r"checkout of ibisagent: pip install '\.\[train\]'"):
        train(sft(trajectories, tmp_path / "a", optimisation=logged))
    monkeypatch.setitem(sys.modules, "accelerate", None)
    with pytest.raises(MissingExtraError, match="training needs accelerate"):
        train(sft(trajectories, tmp_path / "b"))


def test_unusable_data_is_named(trajectories, tmp_path) -> None:
    with pytest.raises(InputError, match="there are trajectories to learn"):
        train(sft(trajectories, tmp_path / "a", kinds=("nonsense",)))
    with pytest.raises(InputError, match="no such path"):
        train(sft(tmp_path / "nowhere", tmp_path / "b"))
    (tmp_path / "log.jsonl").write_text("{ half a line\n")
    with pytest.raises(EpisodeFormatError, match=r"log\.jsonl"):
        train(sft(tmp_path / "log.jsonl", tmp_path / "c"))
    with pytest.raises(InputError, match="--batch and --steps"):
        train(sft(trajectories, tmp_path / "d", batch=0))
    with pytest.raises(InputError, match="--epochs is a number above 0"):
        train(sft(trajectories, tmp_path / "e", epochs=float("inf")))
    with pytest.raises(InputError, match="sees the current picture alone"):
        train(sft(trajectories, tmp_path / "f", history="all"))
    with pytest.raises(InputError, match="--weight-decay"):
        train(sft(trajectories, tmp_path / "g", optimisation=Optimisation(weight_decay=-1.0)))


def test_a_run_is_continued_with_what_it_was_begun_with(trajectories, tmp_path) -> None:
    train(sft(trajectories, tmp_path, steps=1))
    with pytest.raises(InputError, match=r"options\.batch: 2 here, 4 there"):
        train(sft(trajectories, tmp_path, steps=2, batch=2))
    with pytest.raises(InputError, match="stage: rl here, sft there"):
        claim(tmp_path, "rl", asdict(sft(trajectories, tmp_path)), rank=0)
    train(sft(trajectories, tmp_path, steps=2))  # more steps are no other run
    assert len(curve(tmp_path, "loss")) == 2


def test_weights_that_are_no_numbers_are_never_saved(trajectories, tmp_path) -> None:
    wild = Optimisation(lr=1e30, max_norm=1e30, warmup=0.0, micro_batch=2, save_every=1)
    with pytest.raises(InputError, match="gradients are finite numbers"):
        train(sft(trajectories, tmp_path, optimisation=wild))
    assert not (tmp_path / "policy").exists()


def test_the_first_step_of_a_run_without_warm_up_has_the_whole_rate(trajectories, tmp_path) -> None:
    train(sft(trajectories, tmp_path, optimisation=Optimisation(lr=1e-4, warmup=0.0, schedule="constant")))
    assert [rate for _, rate in curve(tmp_path, "lr")] == [1e-4] * 4


def test_a_run_stopped_before_its_first_checkpoint_may_begin_with_other_data(
    trajectories, tmp_path, monkeypatch
) -> None:
    def stopped(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(optimiser.Journal, "write", lambda *_, **__: stopped())
        with pytest.raises(KeyboardInterrupt):
            train(sft(trajectories, tmp_path / "run"))
    absent = replace(sft(trajectories, tmp_path / "run"), kinds=("absent",))
    train(absent)
    train(replace(absent, out=tmp_path / "fresh"))
    ours, fresh = (json.loads((tmp_path / name / "items.json").read_text()) for name in ("run", "fresh"))
    assert ours["items"] == fresh["items"] and ours["run"]["options"]["kinds"] == ["absent"]
