"""Log-probabilities of the embedded policy's texts are those that they were sampled with."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from conftest import disc

from ibisagent.actions import format_text
from ibisagent.errors import InputError
from ibisagent.policies.embedded import Calibration, EmbeddedPolicy
from ibisagent.policies.embedded_model import LONGEST, allowed_cells, to_square
from ibisagent.policies.embedded_words import cells_inside
from ibisagent.render import paint
from ibisagent.synthesis.reasoning import VERDICTS, answer, facts, thought
from ibisagent.targets import TARGETS
from ibisagent.training.embedded import EmbeddedTrainable
from ibisagent.training.trainable import Example, Written
from ibisagent.types import BASE_VERBS, Observation, Terminate, Verb

TRUTH = disc(200, 256, 90, 120, 40)
STOP = format_text(
    thought(facts("liver", TRUTH, TRUTH, Terminate()), np.random.default_rng(0)),
    Terminate(),
    answer(facts("liver", TRUTH, TRUTH, Terminate()), np.random.default_rng(0)),
)


@pytest.fixture(scope="module")
def trainable():
    """Untouched by tests; those that train load their own."""
    return EmbeddedTrainable(EmbeddedPolicy.load(temperature=1.0))


def observe(seed: int, turn: int = 1, height: int = 200, width: int = 256) -> Observation:
    noise = np.random.default_rng(seed).normal(0, 20, (height, width, 1))
    mask = disc(height, width, 90 + seed, 120, 40)
    pixels = np.clip(70 + 60 * mask[..., None] + noise, 0, 255).astype(np.uint8).repeat(3, axis=2)
    shown = paint(pixels, disc(height, width, 100, 130, 30)) if turn > 1 else pixels
    verbs = BASE_VERBS | {Verb.UNDO}
    return Observation("s", "Find the liver.", shown, (), None, (), verbs, turn, 0, seed)


def sampled(trainable, observations):
    replies = trainable.policy.act(observations)
    return [
        Example(seen, (Written(reply.text, reply.token_ids, 1.0),))
        for seen, reply in zip(observations, replies, strict=True)
    ]


def naive(policy: EmbeddedPolicy, example: Example) -> list[float]:
    """Word by word, as the policy writes: softmax over shifted logits, and over cells for a point."""
    network, seen_by = policy.network, example.observation
    words = len(policy.words.entries)
    image = torch.from_numpy(to_square(seen_by.image, seen_by.laterality))[None]
    look = network.see(image, torch.tensor([TARGETS.index("liver")]))
    verdict, every, absence = (torch.from_numpy(shift) for shift in policy.shifts(seen_by))
    verdict = verdict + absence * policy.presence_shift(look.present)
    memory, past, last = network.recall(look.memory), None, look.glance
    inside = allowed_cells(*(torch.tensor([n]) for n in cells_inside(*seen_by.image.shape[:2])))[0]
    found = []
    for position, token in enumerate(example.texts[-1].token_ids):
        logits, state, past = network.step(memory, past, last, position)
        shifted = (logits[0].double() + every + (verdict if position == 1 else 0)) / policy.temperature
        word = min(token, words)
        entry = policy.words.id("<point>") if word == words else word
        found.append(float(shifted[entry] - torch.logsumexp(shifted, 0)))
        if word == words:
            places = (
                network.point(look, state)[0].double().masked_fill(~inside, -torch.inf) / policy.temperature
            )
            found[-1] += float(places[token - words] - torch.logsumexp(places, 0))
        last = torch.tensor([entry])
    return found


@torch.no_grad()
@pytest.mark.parametrize(("presence", "temperature"), [(None, 1.0), (0.0, 1.0), (3.0, 1.0), (None, 0.4)])
def test_log_probabilities_are_those_of_writing_word_by_word(
    presence: float | None, temperature: float
) -> None:
    trainable = EmbeddedTrainable(EmbeddedPolicy.load(temperature=temperature))
    never_absent = {VERDICTS["absent"]: -50.0} if presence is None else {}  # so that it clicks
    trainable.policy.calibrate(Calibration(verdicts=never_absent, presence=presence))
    sided = replace(observe(2, turn=3), laterality="known")
    examples = sampled(trainable, [observe(1), sided, observe(3, height=256, width=140)])
    unlike = [trainable.policy.see(sided.image, 0, sides).maps for sides in ("known", "assumed")]
    assert not torch.equal(*unlike)
    batch = trainable.collate(examples)
    ours = trainable.module(**batch.inputs)
    assert ours.shape == batch.mask.shape
    points = 0
    for row, example in enumerate(examples):
        ids = example.texts[-1].token_ids
        points += any(token >= len(trainable.policy.words.entries) for token in ids)
        assert int(batch.mask[row].sum()) == len(ids) <= LONGEST
        assert ours[row][batch.mask[row]].tolist() == pytest.approx(
            naive(trainable.policy, example), abs=2e-4
        )
    assert points or presence is not None, "no click was sampled; the test says nothing about points"


@torch.no_grad()
def test_a_text_read_back_has_the_ids_that_were_sampled(trainable) -> None:
    [example] = sampled(trainable, [observe(4)])
    again = replace(example, texts=(Written(example.texts[0].text),))
    batches = [trainable.collate([one]) for one in (example, again)]
    assert torch.equal(batches[0].inputs["tokens"], batches[1].inputs["tokens"])
    assert torch.equal(batches[0].inputs["cells"], batches[1].inputs["cells"])


def test_texts_that_are_only_read_carry_no_gradient() -> None:
    trainable = EmbeddedTrainable(EmbeddedPolicy.load())
    read = Example(observe(1), (Written(STOP, weight=None),))
    batch = trainable.collate([read, Example(observe(2), (Written(STOP),))])
    assert batch.mask.sum(1).tolist()[0] == 0 and batch.mask[1].any()
    assert batch.weights[0].eq(0).all()


def test_a_positive_advantage_makes_a_text_likelier_and_a_negative_one_less_likely() -> None:
    for weight in (1.0, -1.0):
        trainable = EmbeddedTrainable(EmbeddedPolicy.load(), freeze_vision=True)
        batch = trainable.collate([Example(observe(1), (Written(STOP, weight=weight),))])
        moved = [p for p in trainable.module.parameters() if p.requires_grad]
        assert all(not p.requires_grad for p in trainable.policy.network.encoder.parameters())
        optimiser = torch.optim.SGD(moved, lr=1e-4)
        before = trainable.module(**batch.inputs)
        (-(before * batch.weights)[batch.mask].sum()).backward()
        optimiser.step()
        after = trainable.module(**batch.inputs)
        change = float((after - before)[batch.mask].sum().detach())
        assert change * weight > 0.01


def test_what_the_policy_could_never_write_is_named(trainable) -> None:
    late = Example(observe(1, turn=2), (Written(STOP.replace("Terminate", "Undo").split(" <answer>")[0]),))
    assert trainable.problem(late) == "an Undo after turn 1, which the embedded policy never writes"
    odd = Example(observe(1), (Written("<think> quantum </think> <action> Terminate </action>"),))
    assert trainable.problem(odd) == "words outside the embedded policy's vocabulary"
    unknown = Example(replace(observe(1), instruction="Find the unicorn."), (Written(STOP),))
    assert trainable.problem(unknown) == "an instruction that the embedded policy cannot read"
    with pytest.raises(InputError, match="never writes"):
        trainable.collate([late])
    assert trainable.problem(Example(observe(1), (Written(STOP),))) is None
    both = trainable.problem(Example(observe(1), (Written(STOP), Written(STOP))))
    assert both == "several trained texts in one conversation, of which the embedded policy reads none"
    assert trainable.problem(Example(observe(1), (Written(STOP, weight=None), Written(STOP)))) is None


def test_saved_weights_are_loaded_by_name(tmp_path) -> None:
    from ibisagent.policies import load_policy

    trainable = EmbeddedTrainable(EmbeddedPolicy.load())
    trainable.save(tmp_path / "policy")
    again = load_policy(f"embedded:{tmp_path / 'policy'}")
    assert again.act([observe(1)])[0].text == EmbeddedPolicy.load().act([observe(1)])[0].text
    mark = again.fingerprint()["weights"]
    assert mark != "unsaved"
    for _ in range(3):  # safetensors orders metadata at random
        trainable.save(tmp_path / "again")
        assert load_policy(f"embedded:{tmp_path / 'again'}").fingerprint()["weights"] == mark
    with torch.no_grad():
        trainable.policy.network.words.weight[5, 0] += 1
    trainable.save(tmp_path / "again")
    assert load_policy(f"embedded:{tmp_path / 'again'}").fingerprint()["weights"] != mark
