import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from scores import made_up
from small_sets import make_sets

from ibisagent.errors import InputError
from ibisagent.evaluation.baselines_table import Baselines, baselines
from ibisagent.evaluation.best_of import Candidate, _agreements, chosen, read_candidates
from ibisagent.evaluation.samples import read_lines, read_scores
from ibisagent.masks import decode_rle, encode_rle, iou
from ibisagent.pair import PairOptions


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Baselines:
    pair = PairOptions(policy="scripted:noisy-oracle", tool="classical", max_turns=4)
    data = make_sets(tmp_path_factory.mktemp("sets"))
    made = Baselines(data, out=tmp_path_factory.mktemp("out"), datasets=("Other",), samples=3, pair=pair)
    baselines(made)
    return made


def test_each_rule_takes_what_it_says(command: Baselines) -> None:
    folders = [command.out / f"sampled-{number}" for number in (1, 2, 3)]
    lines = [{line["case"]: line for line in read_lines(folder)} for folder in folders]
    scores = [{score.case: score for score in read_scores(folder)} for folder in folders]
    best = [{s.case: s for s in read_scores(command.out / f"best-of-3-{k}")} for k in (1, 2, 3)]
    assert len({json.dumps([run[case].ious for run in scores]) for case in scores[0]}) > 1
    for case in scores[0]:
        results = [run[case] for run in scores]
        assert best[0][case].tool_score == max(score.tool_score or -1 for score in results)
        assert best[2][case].iou() == max(score.iou() for score in results)
        masks = [decode_rle(run[case]["episode"]["result"]["mask"]) for run in lines]
        alike = [np.mean([iou(a, b) for b in masks if b is not a]) for a in masks]
        assert best[1][case].ious == results[int(np.argmax(alike))].ious
        assert best[0][case].tokens == sum(score.tokens for score in results), "the cost is that of all"


def test_the_table_names_every_rule_and_how_agreement_is_calibrated(command: Baselines) -> None:
    table = json.loads((command.out / "baselines.json").read_text())
    rows = {row["name"]: row["metrics"]["mean IoU"]["value"] for row in table["rows"]}
    upper = rows["best of 3 by the oracle (upper bound)"]
    singles = [value for name, value in rows.items() if name.startswith("sampled episode")]
    assert len(singles) == 3 and upper >= max(*singles, rows["best of 3 by the tool's own score"])
    assert "best of 3 by agreement" in rows
    found = [c for cases in read_candidates([command.out / f"sampled-{k}" for k in (1, 2, 3)]).values()
             for c in cases]  # fmt: skip
    bins: dict[int, list[tuple[float, float]]] = {}
    for candidate in found:
        place = next(k for k in range(10) if k == 9 or candidate.agreement < (k + 1) / 10)
        bins.setdefault(place, []).append((candidate.agreement, candidate.score.iou()))
    gaps = [abs(sum(said for said, _ in own) - sum(true for _, true in own)) for own in bins.values()]
    ece = table["agreement"]["ECE of the agreement"]
    assert ece["n"] == 9 == sum(map(len, bins.values())) and len(bins) > 1 and sum(gaps) > 0.05
    assert ece["value"] == pytest.approx(sum(gaps) / 9, abs=1e-9)


def test_ties_missing_scores_and_missing_masks() -> None:
    score = made_up()[0]
    tied = [Candidate(replace(score, tool_score=value), 0.5) for value in (None, 0.3, 0.3)]
    assert chosen(tied, "by the tool's own score") == 1 and chosen(tied, "by agreement") == 0
    mask = np.zeros((4, 4), bool)
    mask[:2] = True
    assert _agreements([encode_rle(mask), encode_rle(mask), None]) == [0.5, 0.5, 0.0]
    assert _agreements([encode_rle(~mask)]) == [1.0]


def test_wrong_options_are_named(command: Baselines, tmp_path: Path) -> None:
    for change, rule in (
        ({"samples": 1}, "--samples"),
        ({"sample_temperature": 0.0}, "--sample-temperature"),
    ):
        with pytest.raises(InputError, match=rule):
            baselines(replace(command, out=tmp_path, **change))
