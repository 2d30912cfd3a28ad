"""What a tool makes of simulated clicks: IoU after every click, and the metrics of that.

No policy takes part: the simulator sees the true mask and the tool's last mask, and the tool gets
all clicks so far and its own logits, as in an episode. Unlike an episode it goes on until no pixel
is wrong or the clicks are used up; clicks that an episode would take for repeated ones count here.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import Any, Literal

import numpy as np

from ibisagent import metrics
from ibisagent.errors import ToolError
from ibisagent.evaluation.intervals import Resampler, grouped_columns, mean, mean_columns, mean_of_groups
from ibisagent.masks import iou
from ibisagent.metrics import CLICK_LIMIT
from ibisagent.seeding import generator_for
from ibisagent.synthesis.clicks import ClickSimulator
from ibisagent.types import Click, Logits, Mask, Sample, Tool, ToolReply, ToolRequest

AFTER = (1, 2, 3, 5, 10, 20)  # clicks after which the IoU is listed
GOALS = (0.80, 0.85, 0.90)  # of NoC
_CALIBRATED = 10  # clicks whose scores the calibration error takes

_NO_MASK = "The tool gave no mask."

Start = Literal["none", "proposal"]


@dataclass(frozen=True)
class Clicked:
    """One case: what stood before the first click and after each."""

    case: str  # the sample's id
    ious: tuple[float, ...]  # [0] before the first click; ends early where no pixel is wrong
    scores: tuple[float | None, ...]  # the tool's own of the same masks
    clicks: tuple[Click, ...]
    error: str | None = None  # the tool failed; what came before stands

    def iou_after(self, clicks: int) -> float:
        """IoU after so many clicks; the last one stays. Asserts that the tool did not fail."""
        assert self.error is None, "a failed call has no IoU"
        return self.ious[min(clicks, len(self.ious) - 1)]


@dataclass
class _Running:
    """A case between two clicks."""

    sample: Sample
    mask: Mask | None = None
    logits: Logits | None = None
    clicks: tuple[Click, ...] = ()
    ious: list[float] = field(default_factory=list)
    scores: list[float | None] = field(default_factory=list)
    error: str | None = None

    def take(self, reply: ToolReply) -> None:
        """A reply, or none where a tool proposes nothing; a failure is never an empty mask."""
        assert self.sample.truth is not None
        self.error = reply.error
        if reply.error is None:
            self.mask, self.logits = reply.mask, reply.low_res_logits
            empty = np.zeros_like(self.sample.truth)
            self.ious.append(iou(self.sample.truth, empty if self.mask is None else self.mask))
            self.scores.append(reply.score)

    def next(self, simulator: ClickSimulator, seed: int) -> bool:
        """Place one more click; False where the tool failed or no pixel is wrong."""
        if self.error is not None:
            return False
        assert self.sample.truth is not None
        rng = generator_for(seed, self.sample.sample_id, "click", len(self.clicks) + 1)
        click = simulator.next_click(self.sample.truth, self.mask, self.clicks, rng)
        if click is not None:
            self.clicks += (click,)
        return click is not None


def click_cases(
    samples: Iterable[Sample],
    tool: Tool,
    simulator: ClickSimulator | None = None,
    clicks: int = CLICK_LIMIT,
    *,
    start: Start = "none",
    named: bool = False,
    seed: int = 0,
    batch_size: int = 8,
) -> Iterator[Clicked]:
    """IoU after each of at most `clicks` clicks, for every sample whose target is there, in order.

    `simulator` None is the rule of METHOD section 5. `start` "proposal" begins from what the tool makes
    of the instruction alone; then, and with `named`, the tool hears the instruction with every click.
    Draws depend on (seed, sample id, click) alone. Asserts that samples have their true masks.
    """
    simulator = simulator or ClickSimulator()
    hears = "text" in tool.prompts and (named or start == "proposal")
    proposes = "text" in tool.prompts and start == "proposal"
    waiting = _present(samples)
    while cases := [_Running(sample) for sample in islice(waiting, batch_size)]:
        _begin(tool, cases, proposes)
        running = cases
        for _ in range(clicks):
            running = [case for case in running if case.next(simulator, seed)]
            replies = _ask(tool.predict, [_request(case, hears) for case in running])
            for case, reply in zip(running, replies, strict=True):
                silent = reply.mask is None and reply.error is None
                case.take(ToolReply(error=_NO_MASK) if silent else reply)
        for case in cases:
            yield Clicked(
                case.sample.sample_id, tuple(case.ious), tuple(case.scores), case.clicks, case.error
            )


def _present(samples: Iterable[Sample]) -> Iterator[Sample]:
    for sample in samples:
        assert sample.truth is not None, "clicks are simulated from the true mask"
        if sample.truth.any():
            yield sample


def _begin(tool: Tool, cases: Sequence[_Running], proposes: bool) -> None:
    replies = [ToolReply()] * len(cases)
    try:
        tool.set_image([case.sample.picture for case in cases])
        if proposes:
            asked = [ToolRequest(c.sample.picture, instruction=c.sample.instruction) for c in cases]
            replies = _ask(tool.propose, asked)
    except ToolError as error:
        replies = [ToolReply(error=str(error))] * len(cases)
    for case, reply in zip(cases, replies, strict=True):
        case.take(reply)


def _request(case: _Running, hears: bool) -> ToolRequest:
    instruction = case.sample.instruction if hears else None
    return ToolRequest(case.sample.picture, case.clicks, low_res_logits=case.logits, instruction=instruction)


def _ask(
    call: Callable[[Sequence[ToolRequest]], list[ToolReply]], requests: Sequence[ToolRequest]
) -> list[ToolReply]:
    if not requests:
        return []
    try:
        return call(requests)
    except ToolError as error:
        return [ToolReply(error=str(error))] * len(requests)


# --- metrics ----------------------------------------------------------------------------------


def click_metrics(
    found: Sequence[Clicked],
    datasets: Mapping[str, str],
    patients: Mapping[str, str],
    clicks: int = CLICK_LIMIT,
) -> list[dict[str, Any]]:
    """IoU after clicks, NoC and its failures, area under IoU, and the calibration of the score.

    `datasets` and `patients` name the data set and the patient of each case. Cases where the tool
    failed count nowhere. Plain values: name, value, low, high (95 % over patients), n, unit, by_set.
    """
    found = sorted((one for one in found if one.error is None), key=lambda one: one.case)
    sets = [datasets[one.case] for one in found]
    draws = Resampler(sets, [patients[one.case] for one in found])
    rows: list[dict[str, Any]] = []

    def means(name: str, values: Sequence[float], unit: str = "") -> None:
        interval = asdict(draws.interval(mean_columns(values), mean))
        macro = asdict(draws.interval(grouped_columns(values, sets), mean_of_groups))
        each = {
            name: float(np.mean([value for value, own in zip(values, sets, strict=True) if own == name]))
            for name in sorted(set(sets))
        }
        rows.append({"name": name, **interval, "n": len(values), "unit": unit, "set_macro": macro})
        rows[-1]["by_set"] = each

    for count in (0, *(n for n in AFTER if n <= clicks)):
        means(f"IoU after {count}", [one.iou_after(count) for one in found])
    for goal in GOALS:
        numbers = [metrics.number_of_clicks(one.ious, goal, clicks) for one in found]
        means(f"NoC@{100 * goal:.0f}", [float(number) for number, _ in numbers], "clicks")
        means(f"failures of NoC@{100 * goal:.0f}", [float(not reached) for _, reached in numbers])
    means(f"area under IoU to {clicks}", [metrics.click_area(one.ious, clicks) for one in found])
    estimates, qualities, owners = _scored(found)
    if estimates:
        each_click = metrics.calibration_columns(estimates, qualities)
        columns = np.zeros((len(found), each_click.shape[1]))
        np.add.at(columns, owners, each_click)  # a patient is drawn with all clicks
        name = f"ECE of the score, clicks 1 to {min(clicks, _CALIBRATED)}"
        interval = asdict(draws.interval(columns, metrics.calibration_error))
        rows.append({"name": name, **interval, "n": len(found), "unit": ""})
    return rows


def _scored(found: Sequence[Clicked]) -> tuple[list[float], list[float], list[int]]:
    """Score, IoU and the case's place for each of the first clicks; the last one stays."""
    rows = [
        (one.scores[at], one.ious[at], place)
        for place, one in enumerate(found)
        for at in (min(click, len(one.ious) - 1) for click in range(1, _CALIBRATED + 1))
        if one.clicks
    ]
    kept = [(score, value, place) for score, value, place in rows if score is not None]
    return [row[0] for row in kept], [row[1] for row in kept], [row[2] for row in kept]
