import numpy as np
import pytest

from ibisagent.actions import parse
from ibisagent.environment import Environment
from ibisagent.errors import InputError
from ibisagent.policies import load_policy
from ibisagent.policies.human import HumanPolicy, text_of
from ibisagent.policies.scripted import RULES, ScriptedPolicy
from ibisagent.rollout import collect, rollout
from ibisagent.settings import Settings
from ibisagent.tools.classical import ClassicalTool
from ibisagent.types import (
    BASE_VERBS,
    Click,
    Episode,
    EpisodeStatus,
    Outcome,
    Sample,
    Terminate,
    Undo,
    Verb,
    View,
)

SETTINGS = Settings(verbs=BASE_VERBS | {Verb.UNDO}, max_turns=8)


def run(rule: str, sample: Sample) -> Episode:
    policy = ScriptedPolicy(rule, RULES[rule], {sample.sample_id: sample.truth})
    [episode] = collect(rollout([sample], policy, ClassicalTool(), SETTINGS))
    return episode


@pytest.mark.parametrize(
    ("rule", "status", "outcome"),
    [
        ("oracle", EpisodeStatus.TERMINATED, Outcome.SEGMENTED),
        ("stop-at-once", EpisodeStatus.TERMINATED, Outcome.ABSENT),
        ("always-absent", EpisodeStatus.TERMINATED, Outcome.ABSENT),
        ("never-stop", EpisodeStatus.TURN_LIMIT, Outcome.SEGMENTED),
        ("repeated-click", EpisodeStatus.REPEATED_CLICK, Outcome.SEGMENTED),
        ("alternate-signs", EpisodeStatus.REPEATED_CLICK, Outcome.SEGMENTED),
        ("click-then-undo", EpisodeStatus.REPEATED_CLICK, Outcome.NONE),
        ("format-only", EpisodeStatus.TERMINATED, Outcome.SEGMENTED),
        ("image-centre", EpisodeStatus.TERMINATED, Outcome.SEGMENTED),
        ("one-good-then-noise", EpisodeStatus.TERMINATED, Outcome.SEGMENTED),
    ],
)
def test_every_rule_does_what_its_name_says(
    rule: str, status: EpisodeStatus, outcome: Outcome, sample: Sample
) -> None:
    episode = run(rule, sample)
    assert (episode.status, episode.outcome) == (status, outcome)


def test_rim_clicks_lie_on_the_rim_of_what_is_missed(sample: Sample) -> None:
    env = Environment(sample, SETTINGS, View())
    env.begin()
    text = RULES["rim-clicks"](env.observe(), sample.truth, np.random.default_rng(0))
    click = parse(text).action
    assert isinstance(click, Click) and click.positive
    row, column = int(click.y * 96), int(click.x * 128)
    around = sample.truth[row - 1 : row + 2, column - 1 : column + 2]
    assert sample.truth[row, column] and not around.all()


def test_nonsense_only_where_the_target_is_small(sample: Sample) -> None:
    assert run("nonsense-when-hard", sample).status is EpisodeStatus.TERMINATED
    small = np.zeros_like(sample.truth)
    small[38:42, 48:52] = True
    hard = Sample("hard", sample.picture, "Find it", truth=small)
    assert run("nonsense-when-hard", hard).status is EpisodeStatus.UNPARSABLE


def test_absent_targets_are_told_by_the_oracle(sample: Sample) -> None:
    gone = Sample("gone", sample.picture, "Find it", truth=np.zeros_like(sample.truth))
    assert run("oracle", gone).outcome is Outcome.ABSENT


def test_specs() -> None:
    assert load_policy("scripted:image-centre").name == "scripted:image-centre"
    with pytest.raises(InputError, match="choose from"):
        load_policy("scripted:unknown")
    with pytest.raises(InputError, match="--truth"):
        load_policy("scripted:oracle")
    with pytest.raises(InputError, match="readable text file"):
        load_policy("scripted:@/nowhere")


@pytest.mark.parametrize(
    ("line", "action"),
    [
        ("+ 0.41 0.30", Click(0.41, 0.30, True)),
        ("- .5 1", Click(0.5, 1.0, False)),
        ("undo", Undo()),
        ("done", Terminate()),
        ("done a large mass", Terminate()),
        ("<think> x </think> <action> Positive Point (0.1, 0.2) </action>", Click(0.1, 0.2, True)),
    ],
)
def test_a_persons_short_commands_become_the_grammar(line: str, action: object) -> None:
    parsed = parse(text_of(line), SETTINGS.verbs)
    assert parsed.action == action and parsed.format_ok


def test_a_persons_mistake_is_told_and_can_be_mended(sample: Sample, capsys: pytest.CaptureFixture) -> None:
    lines = iter(["+ 5 7", "+ 0.39 0.42", "done one disc"])
    policy = HumanPolicy(lambda _: next(lines))
    [episode] = collect(rollout([sample], policy, ClassicalTool(), SETTINGS))
    assert episode.status is EpisodeStatus.TERMINATED and episode.answer == "one disc"
    assert len(episode.turns) == 2 and len(episode.turns[0].attempts) == 1
    said = capsys.readouterr().err
    assert "current.png" in said and "That is no command (out_of_range)" in said


def test_a_person_who_leaves_ends_the_episode(sample: Sample) -> None:
    policy = HumanPolicy(lambda _: "quit")
    [episode] = collect(rollout([sample], policy, ClassicalTool(), SETTINGS))
    assert episode.status is EpisodeStatus.POLICY_ERROR and episode.mask is None
