"""The embedded policy: what it sees, what it writes, and that a batch changes nothing."""

import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from pydicom.examples import get_path
from safetensors.torch import save_file

from ibisagent.actions import parse
from ibisagent.agent import Agent
from ibisagent.datasets.cases import ReadOptions, samples_of
from ibisagent.datasets.detect import open_part
from ibisagent.errors import InputError
from ibisagent.images import load_picture
from ibisagent.masks import iou
from ibisagent.policies.embedded import FORMAT, Calibration, EmbeddedPolicy, looks_of
from ibisagent.policies.embedded_model import (
    LONGEST,
    MAPS,
    EmbeddedPolicyNetwork,
    allowed_cells,
    evidence,
    to_square,
)
from ibisagent.policies.embedded_words import GRID, SIDE, Words
from ibisagent.render import paint, view_image
from ibisagent.synthesis.reasoning import VERDICTS
from ibisagent.targets import TARGETS
from ibisagent.types import BASE_VERBS, Observation, Policy, Verb, View

WORDS = Words.build()


@pytest.fixture(scope="module")
def network() -> EmbeddedPolicyNetwork:
    torch.manual_seed(0)
    return EmbeddedPolicyNetwork(len(TARGETS), len(WORDS.entries)).eval()


@pytest.fixture(scope="module")
def shipped() -> EmbeddedPolicy:
    return EmbeddedPolicy.load()


def look(
    number: int, instruction: str = "Find the liver in this image.", height: int = 256, width: int = 256
) -> Observation:
    rng = np.random.default_rng(number)
    image = np.repeat(rng.integers(0, 255, (height, width, 1), dtype=np.uint8), 3, axis=2)
    mask = np.zeros((height, width), bool)
    mask[height // 4 : height // 2, width // 4 : width // 2] = True
    painted = paint(image, mask if number % 2 else None)
    return Observation("s", instruction, painted, (), None, (), BASE_VERBS | {Verb.UNDO}, 1, 0, seed=number)


def test_it_is_a_policy(network: EmbeddedPolicyNetwork) -> None:
    policy = EmbeddedPolicy(network, WORDS)
    assert isinstance(policy, Policy)
    assert policy.view.max_side == SIDE
    assert policy.verbs == BASE_VERBS | {Verb.UNDO}
    assert policy.supports("Where is the patient's left kidney?").target == "left kidney"
    assert not policy.supports("Find the prostate").known


def test_the_square_holds_the_image_at_its_top_left() -> None:
    image = np.random.default_rng(0).integers(0, 255, (100, 256, 3), dtype=np.uint8)
    square = to_square(image, "assumed")
    assert square.shape == (5, 256, 256)
    assert square.dtype == np.float32
    assert (square[3, :100] == 1).all()
    assert (square[:, 100:] == 0).all()
    assert (square[4] == 0).all()
    assert (to_square(image, "known")[4] == square[3]).all()
    values = image.astype(np.float32)
    expected = (values - values.mean()) / (values.std() + 8)
    np.testing.assert_allclose(square[:3, :100].transpose(1, 2, 0), expected, atol=1e-5)


def test_step_by_step_writing_equals_teacher_forcing(network: EmbeddedPolicyNetwork) -> None:
    image = torch.from_numpy(np.stack([to_square(look(n).image, "assumed") for n in (0, 1)]))
    target = torch.tensor([3, 13])
    tokens = torch.randint(2, len(WORDS.entries), (2, 12))
    with torch.inference_mode():
        seen = network.see(image, target)
        logits, states = network.write(seen, tokens)
        memory, past = network.recall(seen.memory), None
        for position in range(12):
            last = seen.glance if position == 0 else tokens[:, position - 1]
            one, state, past = network.step(memory, past, last, position)
            torch.testing.assert_close(one, logits[:, position], rtol=1e-4, atol=1e-4)
            torch.testing.assert_close(state, states[:, position], rtol=1e-4, atol=1e-4)
        assert seen.maps.shape == (2, len(MAPS), GRID, GRID)
        assert network.point(seen, states[:, 3]).shape == (2, GRID * GRID)


def test_evidence_measures_areas_and_overlap() -> None:
    maps = torch.full((1, 4, GRID, GRID), -20.0)
    maps[:, 0, :32] = 20.0  # the upper half is target
    maps[:, 1, 16:48] = 20.0  # the middle half is painted: a third overlaps
    valid = torch.zeros(1, 1, GRID, GRID)
    valid[:, :, :, :32] = 1  # the picture is the left half of the square
    maps[:, 0, :, 32:] = -20.0
    maps[:, 1, :, 32:] = -20.0
    figures = evidence(maps, valid)[0]
    assert figures[0].item() == pytest.approx(1 / 3, abs=1e-3)
    assert figures[2].exp().item() == pytest.approx(0.25, abs=1e-3)
    assert figures[8].item() == pytest.approx(20 / 4)
    assert figures[12].item() == pytest.approx(0.0, abs=1e-3)  # in the middle across
    assert figures[13].item() == pytest.approx(4 * 0.25 - 2, abs=1e-3)
    assert figures[14].exp().item() == pytest.approx(0.5, abs=1e-3)  # half of the picture


def test_cells_outside_the_image_are_never_written() -> None:
    inside = allowed_cells(torch.tensor([2]), torch.tensor([64]))
    assert inside.view(GRID, GRID)[:2].all()
    assert int(inside.sum()) == 2 * 64


def test_unknown_instructions_and_large_pictures_are_errors_of_their_own_row(
    network: EmbeddedPolicyNetwork,
) -> None:
    policy = EmbeddedPolicy(network, WORDS)
    replies = policy.act([look(0), look(1, "Find the prostate"), look(2, height=300)])
    assert replies[0].error is None
    assert replies[0].text
    assert replies[1].error is not None
    assert "'prostate'" in replies[1].error
    assert replies[2].error is not None
    assert "256" in replies[2].error


def test_weights_of_another_kind_are_refused(tmp_path: Path) -> None:
    file = tmp_path / "other.safetensors"
    save_file({"a": torch.zeros(1)}, str(file), {"format": "something else"})
    with pytest.raises(InputError, match="embedded policy"):
        EmbeddedPolicy.load(file)
    with pytest.raises(InputError, match="must exist"):
        EmbeddedPolicy.load(tmp_path / "none.safetensors")
    metadata = {"format": f"ibisagent embedded policy {FORMAT}", "targets": json.dumps(["liver"])}
    save_file({"a": torch.zeros(1)}, str(file), metadata)
    with pytest.raises(InputError, match="list of targets"):
        EmbeddedPolicy.load(file)


def test_what_ships_writes_the_grammar_on_any_picture(shipped: EmbeddedPolicy) -> None:
    observations = [
        look(n, f"Find the {TARGETS[n % len(TARGETS)]}.", height=height, width=width)
        for n, (height, width) in enumerate([(256, 256), (256, 100), (4, 256), (256, 4), (173, 256)] * 3)
    ]
    for observation, reply in zip(observations, shipped.act(observations), strict=True):
        read = parse(reply.text, observation.verbs)
        assert read.failure is None, reply.text
        assert read.format_ok, reply.text
        assert 0 < reply.tokens <= LONGEST


def test_undo_is_never_written_where_it_is_off(shipped: EmbeddedPolicy) -> None:
    observations = [replace(look(n), verbs=BASE_VERBS) for n in range(1, 12, 2)]
    for reply in shipped.act(observations):
        read = parse(reply.text, BASE_VERBS)
        assert read.failure is None
        assert not (read.think or "").startswith((VERDICTS["elsewhere"], VERDICTS["phantom"]))


def test_presence_decides_about_absent_targets(network: EmbeddedPolicyNetwork) -> None:
    """Far above the threshold a target is never reported as absent, far below always."""
    bare, painted = look(0), replace(look(1), mask=np.ones((256, 256), bool))
    for threshold, reported in ((-50.0, False), (50.0, True)):
        policy = EmbeddedPolicy(network, WORDS, calibration=Calibration(presence=threshold))
        for observation, situation in ((bare, "absent"), (painted, "phantom")):
            first = policy.act([observation])[0].token_ids[1]
            assert (first == WORDS.id(VERDICTS[situation])) == reported


def test_statements_without_enough_probability_are_left_out() -> None:
    kinds = WORDS.statements()
    image = view_image(load_picture(get_path("overlay")), None, View(max_side=SIDE))
    spot = np.zeros(image.shape[:2], bool)
    spot[60:90, 30:60] = True  # in the liver
    seen = [
        replace(look(0, f"Find the {name}."), image=paint(image, spot) if painted else image)
        for name in ("liver", "spleen", "left kidney", "right kidney", "stomach", "aorta")
        for painted in (False, True)
    ]

    def said(**sure: float) -> dict[str, int]:
        policy = EmbeddedPolicy.load()
        policy.calibrate(replace(policy.calibration, sure=sure))
        tokens = [token for reply in policy.act(seen) for token in reply.token_ids]
        return {kind: sum(token in ids for token in tokens) for kind, ids in kinds.items()}

    free = said()
    assert sum(free.values()) > sum(said(**dict.fromkeys(kinds, 0.97)).values())
    assert not any(said(**dict.fromkeys(kinds, 1.1)).values())
    for kind, count in free.items():
        assert count == 0 or said(**{kind: 1.1})[kind] == 0
    assert sum(count > 0 for count in free.values()) >= 1


def test_calibration_is_saved_with_the_weights(network: EmbeddedPolicyNetwork, tmp_path: Path) -> None:
    chosen = Calibration({VERDICTS["elsewhere"]: 2.5}, presence=1.25, sure={"place": 0.9})
    EmbeddedPolicy(network, WORDS, calibration=chosen).save(tmp_path / "a.safetensors")
    assert EmbeddedPolicy.load(tmp_path / "a.safetensors").calibration == chosen


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_a_batch_changes_nothing(shipped: EmbeddedPolicy, temperature: float) -> None:
    policy = EmbeddedPolicy.load(temperature=temperature)
    observations = [look(n, f"Find the {TARGETS[n]}.") for n in range(11)]
    together = [reply.text for reply in policy.act(observations)]
    alone = [policy.act([observation])[0].text for observation in observations]
    backwards = [reply.text for reply in policy.act(observations[::-1])][::-1]
    assert together == alone == backwards


def test_the_same_picture_is_looked_at_once(monkeypatch) -> None:
    policy = EmbeddedPolicy.load(temperature=1.0)
    pictures = (look(0), look(0, f"Find the {TARGETS[3]}."), look(1))
    observations = [replace(item, seed=seed) for item in pictures for seed in range(3)]
    alone = [policy.act([observation])[0].text for observation in observations]
    looks, see = [], policy.network.see
    monkeypatch.setattr(policy.network, "see", lambda *asked: looks.append(asked) or see(*asked))
    assert [reply.text for reply in policy.act(observations)] == alone
    assert len(looks) == 3 and len(set(alone)) > 3


def test_the_number_of_threads_changes_nothing(network: EmbeddedPolicyNetwork) -> None:
    policy = EmbeddedPolicy(network, WORDS, temperature=1.0)
    observations = [look(n, f"Find the {TARGETS[n]}.") for n in range(3)]
    before = torch.get_num_threads()
    replies = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        replies.append([reply.text for reply in policy.act(observations)])
    torch.set_num_threads(before)
    assert replies[0] == replies[1]


def test_rows_of_padding_change_no_bit_of_the_others(network: EmbeddedPolicyNetwork) -> None:
    image = torch.from_numpy(np.stack([to_square(look(n).image, "assumed") for n in (0, 1, 2)]))
    with torch.inference_mode():
        seen = network.see(image, torch.tensor([3, 13, 7]))
        memory = network.recall(seen.memory)

        def states(rows: int) -> list[torch.Tensor]:
            kept = [(key[:rows], value[:rows]) for key, value in memory]
            past, last, result = None, seen.glance.clone(), []
            last[rows:] = 0
            for position in range(6):
                logits, _, past = network.step(kept, past, last, position)
                last = torch.arange(5, 8)
                result.append(logits[:rows])
            return result

        for alone, together in zip(states(1), states(3), strict=True):
            assert torch.equal(alone, together[:1])


def test_sampling_follows_the_seed() -> None:
    policy = EmbeddedPolicy.load(temperature=1.5)
    first, again = (policy.act([look(0)])[0].text for _ in range(2))
    others = {policy.act([replace(look(0), seed=seed)])[0].text for seed in range(6)}
    assert first == again
    assert len(others) > 1


def test_the_fingerprint_names_the_weights(shipped: EmbeddedPolicy) -> None:
    mark = shipped.fingerprint()
    assert mark["name"] == "embedded"
    assert len(mark["weights"]) == 16
    assert mark["temperature"] == 0.0


def test_alike_pictures_are_looked_at_once_unless_one_says_its_sides() -> None:
    bare, again, other = look(0), replace(look(0), turn=2), look(2)
    sided = replace(bare, laterality="known")
    asked = [(bare, 0), (again, 0), (bare, 1), (sided, 0), (other, 0), (sided, 0)]
    assert looks_of(asked) == ([0, 2, 3, 4], [0, 0, 1, 2, 3, 2])


def test_in_a_mirrored_file_sides_are_still_the_patients(data_root: Path) -> None:
    """CT slices with both kidneys, turned left to right: the file says so, and names stay the patient's."""
    agent, found = Agent.load(max_turns=4), 0
    for case in open_part(data_root / "BTCV", "val").cases:
        if not {"left kidney", "right kidney"} <= {target.name for target in case.targets} or found == 3:
            continue
        truths = {sample.target: sample for sample in samples_of(case, ReadOptions())}
        left, right = truths["left kidney"], truths["right kidney"]
        if min(left.truth.mean(), right.truth.mean()) < 0.008:
            continue
        found += 1
        turned = replace(left.picture, pixels=left.picture.pixels[:, ::-1].copy(), laterality="mirrored")
        for name, own, other in (("left", left, right), ("right", right, left)):
            result = agent.segment(turned, f"Find the patient's {name} kidney")
            assert iou(result.mask, own.truth[:, ::-1]) > 0.7 and iou(result.mask, other.truth[:, ::-1]) == 0
            texts = " ".join(attempt.text for turn in result.episode.turns for attempt in turn.attempts)
            assert f"{name} kidney" in texts and f"{(own is left and 'right') or 'left'} kidney" not in texts
    assert found == 3
