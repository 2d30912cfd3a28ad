"""The policy that ships in the package: a small network that looks and writes the grammar.

It sees the painted picture and nothing else of the state: no mask array, no clicks, no history; it
only knows which turn it is and whether a mask stands. Without history it would repeat the click that
it took back, so after the first turn it repairs by clicks and does not write Undo; and the more turns
are behind it, the sooner a mask is good enough.
Its own part of the work is reading the instruction (targets.understand), looking and writing;
what it writes is text, read by the same parser as the text of a 7B model.
"""

from __future__ import annotations

import itertools
import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from importlib import resources
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor
from torch.nn import functional as F

from ibisagent.errors import InputError
from ibisagent.files import part_of
from ibisagent.fingerprint import file_id
from ibisagent.lanes import in_lanes
from ibisagent.policies.embedded_model import (
    LONGEST,
    EmbeddedPolicyNetwork,
    Seen,
    allowed_cells,
    to_square,
)
from ibisagent.policies.embedded_words import POINT, SIDE, Words, cells_inside
from ibisagent.synthesis.reasoning import VERDICTS
from ibisagent.targets import TARGETS, by_convention, understand
from ibisagent.types import BASE_VERBS, Laterality, Observation, Pixels, PolicyReply, Support, Verb, View

Scores: TypeAlias = NDArray[np.float32]  # one logit per word, or per cell
CHUNK = 8  # texts written side by side; padded to it, so that a text never depends on its neighbours
WEIGHTS = "embedded_policy.safetensors"
FORMAT = 2  # of the weights file
PATIENCE = 1.0  # what "No click would help much." gains in logits with every turn after the second
_PRESENCE_GAIN, _PRESENCE_MOST = 4.0, 20.0  # how the distance to the threshold shifts a verdict's logit
_UNDO_WORDS = (str(Verb.UNDO), VERDICTS["elsewhere"], VERDICTS["phantom"])


@dataclass(frozen=True)
class Calibration:
    """What is chosen on validation patients after training (runs/calibrate_policy.py)."""

    verdicts: Mapping[str, float] = field(default_factory=dict)
    """shifts of the logits of verdicts, such as {"A fresh start is better.": 2.5}"""
    presence: float | None = None
    """logit of the target's presence below which it is reported as absent; None: the words decide alone"""
    sure: Mapping[str, float] = field(default_factory=dict)
    """by kind of statement: a greedy one is left out if less of its kind's probability is on it; above
    1 the kind is never stated"""


@dataclass(frozen=True)
class _Look:
    """An observation and what the network saw in it."""

    observation: Observation
    seen: Seen  # of one picture
    memory: list[tuple[Tensor, Tensor]]  # keys and values of `seen.memory`


class EmbeddedPolicy:
    """Text from painted pictures. `temperature` 0 is greedy; above, seeded by the observation."""

    name = "embedded"
    view = View(max_side=SIDE)
    verbs = BASE_VERBS | {Verb.UNDO}

    def __init__(
        self,
        network: EmbeddedPolicyNetwork,
        words: Words,
        temperature: float = 0.0,
        calibration: Calibration | None = None,
        weights_id: str = "unsaved",
    ) -> None:
        if not temperature >= 0:
            raise InputError("temperature is 0 or more", temperature)
        self.network = network.eval()
        self.network.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self.words = words
        self.temperature = temperature
        self._weights_id = weights_id
        self.calibrate(calibration or Calibration())
        self._point = words.id(POINT)
        self._stop, self._absent, self._phantom = (
            words.id(VERDICTS[situation]) for situation in ("good", "absent", "phantom")
        )
        self._undo = np.array([words.id(word) for word in _UNDO_WORDS])

    @classmethod
    def load(cls, path: str | Path | None = None, temperature: float = 0.0) -> EmbeddedPolicy:
        """Weights from a safetensors file, or from the folder of one; by default the one in the package."""
        file = Path(path) if path else Path(str(resources.files("ibisagent") / "weights"))
        file = file / WEIGHTS if file.is_dir() else file
        if not file.is_file():
            raise InputError(
                "the embedded policy's weights must exist", file.name, "name a .safetensors file"
            )
        try:
            return cls._load(file, temperature)
        except (OSError, SafetensorError, KeyError, TypeError, RuntimeError, json.JSONDecodeError) as error:
            raise InputError(
                "the embedded policy needs its weights",
                f"{file.name} ({str(error).splitlines()[0]})",
                "reinstall the package",
            ) from None

    @classmethod
    def _load(cls, file: Path, temperature: float) -> EmbeddedPolicy:
        with safe_open(str(file), framework="pt") as stored:
            metadata = stored.metadata() or {}
            if metadata.get("format") != f"ibisagent embedded policy {FORMAT}":
                raise InputError("the file holds weights of the embedded policy", metadata.get("format"))
            tensors = {key: stored.get_tensor(key) for key in stored.keys()}  # noqa: SIM118
        if tuple(json.loads(metadata["targets"])) != TARGETS:
            raise InputError("the weights were trained for this list of targets", "another list")
        words = Words(tuple(json.loads(metadata["words"])))
        network = EmbeddedPolicyNetwork(len(TARGETS), len(words.entries))
        network.load_state_dict(
            {key: value.float() if value.is_floating_point() else value for key, value in tensors.items()}
        )
        return cls(
            network, words, temperature, Calibration(**json.loads(metadata["calibration"])), file_id(file)
        )

    def save(self, path: Path) -> None:
        """Write half-precision weights with all that `load` needs; `path` is replaced as a whole."""
        state = {
            key: (value.half() if value.is_floating_point() else value).contiguous()
            for key, value in self.network.state_dict().items()
        }
        metadata = {
            "format": f"ibisagent embedded policy {FORMAT}",
            "targets": json.dumps(TARGETS),
            "words": json.dumps(self.words.entries),
            "calibration": json.dumps(asdict(self.calibration)),
        }
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = part_of(path)
        save_file(state, str(temporary), metadata)
        temporary.replace(path)

    def refresh(self) -> None:
        """Write with the network's weights as they are now, after they were trained."""
        self._weights_id = "unsaved"

    def calibrate(self, calibration: Calibration) -> None:
        """Replace the calibration. Raises KeyError for a verdict or a kind of statement that is unknown."""
        self.calibration = calibration
        self._bias = np.zeros(len(self.words.entries), np.float32)
        for verdict, value in calibration.verdicts.items():
            self._bias[self.words.id(verdict)] = value
        kinds = self.words.statements()
        self._sure = [(np.array(kinds[kind]), share) for kind, share in calibration.sure.items()]

    def supports(self, instruction: str) -> Support:
        """Whether the instruction names exactly one target of the corpus."""
        return understand(instruction)

    def act(self, observations: Sequence[Observation]) -> list[PolicyReply]:
        """One text per observation, in order; independent of what else is in the batch."""
        began = time.perf_counter()
        targets = [understand(item.instruction).target for item in observations]
        errors = [_fault(item, target) for item, target in zip(observations, targets, strict=True)]
        good = [
            (item, row_of(target or "", item))
            for item, target, error in zip(observations, targets, errors, strict=True)
            if error is None
        ]
        first, place = looks_of(good)
        seen = in_lanes(self._look, [good[index] for index in first])
        looks = [_Look(item, *seen[index]) for (item, _), index in zip(good, place, strict=True)]
        chunks = [looks[first : first + CHUNK] for first in range(0, len(looks), CHUNK)]
        texts = itertools.chain.from_iterable(in_lanes(self._write, chunks))
        share = (time.perf_counter() - began) / max(1, len(observations))
        return [
            PolicyReply(error=error, seconds=share) if error is not None else self._reply(next(texts), share)
            for error in errors
        ]

    def fingerprint(self) -> Mapping[str, Any]:
        """Name, weights and temperature."""
        return {"name": self.name, "weights": self._weights_id, "temperature": self.temperature}

    # --- looking, and writing side by side ---

    @torch.inference_mode()
    def _look(self, asked: tuple[Observation, int]) -> tuple[Seen, list[tuple[Tensor, Tensor]]]:
        """One picture and the row of its target; one at a time, since sums depend on the batch's size."""
        observation, target = asked
        seen = self.see(observation.image, target, observation.laterality)
        return seen, self.network.recall(seen.memory)

    @torch.inference_mode()
    def see(self, image: Pixels, target: int, laterality: Laterality) -> Seen:
        """What the network makes of a painted picture in the policy's view and TARGETS[target]."""
        square = torch.from_numpy(to_square(image, laterality))[None]
        return self.network.see(square.contiguous(memory_format=torch.channels_last), torch.tensor([target]))

    @torch.inference_mode()
    def _write(self, looks: Sequence[_Look]) -> list[tuple[str, tuple[int, ...]]]:
        """Texts and token ids of at most CHUNK observations."""
        network = self.network
        memory = [
            (torch.cat([key for key, _ in layer]), torch.cat([value for _, value in layer]))
            for layer in zip(*(look.memory for look in looks), strict=True)
        ]
        chances = [np.random.default_rng(look.observation.seed) for look in looks]
        shifts = [self.shifts(look.observation) for look in looks]
        tokens: list[list[int]] = [[] for _ in looks]
        glances = torch.cat([look.seen.glance for look in looks])
        past, last = None, F.pad(glances, (0, 0, 0, CHUNK - len(looks)))
        for position in range(LONGEST):
            logits, states, past = network.step(memory, past, last, position)
            scores = logits.numpy()  # choosing one by one is several times cheaper there
            chosen = torch.ones(CHUNK, dtype=torch.long)
            for row, look in enumerate(looks):
                if tokens[row] and tokens[row][-1] == 1:
                    continue
                verdict, every, absence = shifts[row]
                shifted = scores[row] + every
                if position == 1:
                    shifted += verdict + absence * self.presence_shift(look.seen.present).numpy()
                word = self._choose(self._only_sure(shifted), chances[row])
                chosen[row] = word
                if word == self._point:
                    cell = self._cell(look, states[row : row + 1], chances[row])
                    word = self.words.point_id(cell)
                tokens[row].append(word)
            if all(written[-1] == 1 for written in tokens):
                break
            last = chosen
        return [
            (self.text_of(written, look.observation), tuple(written))
            for written, look in zip(tokens, looks, strict=True)
        ]

    def text_of(self, tokens: Sequence[int], observation: Observation) -> str:
        """The text of token ids; where the picture is mirrored, names of sides are the patient's."""
        if observation.laterality == "mirrored":
            tokens = self.words.mirrored(tokens)
        return self.words.decode(tokens, *observation.image.shape[:2])

    def tokens_of(self, text: str, observation: Observation) -> list[int]:
        """The token ids of a text, the inverse of `text_of`. Raises KeyError for unknown words."""
        tokens = self.words.encode(text, *observation.image.shape[:2])
        return self.words.mirrored(tokens) if observation.laterality == "mirrored" else tokens

    @staticmethod
    def _reply(written: tuple[str, tuple[int, ...]], seconds: float) -> PolicyReply:
        text, ids = written
        return PolicyReply(text, None, len(ids), seconds, ids)

    def shifts(self, observation: Observation) -> tuple[Scores, Scores, Scores]:
        """What is added to the words' logits: where the verdict stands (token 1), and at every token.

        Calibration and patience where the verdict stands; -inf for Undo where it is not enabled, or
        of no use: after turn 1 a policy without history would only repeat the click that it undid.
        Last, also where the verdict stands, what `presence_shift` is multiplied by: 1 for the verdict
        that reports the target as absent.
        """
        verdict, every, absence = self._bias.copy(), np.zeros_like(self._bias), np.zeros_like(self._bias)
        verdict[self._stop] += PATIENCE * max(0, observation.turn - 2)
        if Verb.UNDO not in observation.verbs or observation.turn > 1:
            every[self._undo] = -np.inf
        absence[self._absent if observation.mask is None else self._phantom] = 1
        return verdict, every, absence

    def presence_shift(self, present: Tensor) -> Tensor:
        """Shift of the verdict that reports the target as absent, from the logits of its presence."""
        if self.calibration.presence is None:
            return torch.zeros_like(present)
        away = (self.calibration.presence - present.detach()) * _PRESENCE_GAIN
        return away.clamp(-_PRESENCE_MOST, _PRESENCE_MOST)

    def _only_sure(self, logits: Scores) -> Scores:
        """Without statements of a kind whose likeliest one has not enough of the kind's probability."""
        if self.temperature > 0:
            return logits
        for kind, share in self._sure:
            own = logits[kind]
            if 1 / np.exp(own - own.max()).sum() < share:
                logits[kind] = -np.inf
        return logits

    def _cell(self, look: _Look, state: Tensor, chance: np.random.Generator) -> int:
        rows, columns = cells_inside(*look.observation.image.shape[:2])
        logits = self.network.point(look.seen, state)
        inside = allowed_cells(torch.tensor([rows]), torch.tensor([columns]))
        return self._choose(logits.masked_fill(~inside, -torch.inf)[0].numpy(), chance)

    def _choose(self, logits: Scores, chance: np.random.Generator) -> int:
        if self.temperature == 0:
            return int(logits.argmax())
        scaled = logits.astype(np.float64) / self.temperature
        shares = np.cumsum(np.exp(scaled - scaled.max()))
        return min(int(np.searchsorted(shares, chance.random() * shares[-1])), len(shares) - 1)


def row_of(target: str, observation: Observation) -> int:
    """The network's row of a target, as it has learned names of sides."""
    return TARGETS.index(by_convention(target, observation.laterality))


def looks_of(asked: Sequence[tuple[Observation, int]]) -> tuple[list[int], list[int]]:
    """Which of some observations and rows of targets need a look, and which of these looks each has.

    Rollouts of one group begin with the same picture, which is looked at once.
    """
    first: list[int] = []
    known: dict[tuple[tuple[int, ...], bytes, Laterality, int], int] = {}
    place = []
    for index, (observation, target) in enumerate(asked):
        image = observation.image
        key = (image.shape, image.tobytes(), observation.laterality, target)
        if key not in known:
            known[key] = len(first)
            first.append(index)
        place.append(known[key])
    return first, place


def _fault(observation: Observation, target: str | None) -> str | None:
    """Why nothing can be written for an observation, else None."""
    if target is None:
        return understand(observation.instruction).reason
    if max(observation.image.shape[:2]) > SIDE:
        return f"The embedded policy sees pictures of at most {SIDE} pixels a side."
    return None
