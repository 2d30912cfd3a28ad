import json
from dataclasses import replace

import numpy as np
import pytest
from small_sets import make_sets

from ibisagent.errors import InputError
from ibisagent.evaluation.baselines import FirstClickThenOracle
from ibisagent.evaluation.baselines_table import Baselines, baselines
from ibisagent.evaluation.samples import read_scores
from ibisagent.pair import PairOptions
from ibisagent.policies.scripted import RULES, ScriptedPolicy
from ibisagent.types import BASE_VERBS, Click, Observation


@pytest.fixture(scope="module")
def command(tmp_path_factory: pytest.TempPathFactory) -> Baselines:
    """Training pictures are those of the test split, mirrored in name only: enough for the table."""
    data = make_sets(tmp_path_factory.mktemp("sets"))
    for name in ("BTCV", "Other"):
        folder = data / name
        index = json.loads((folder / "test.json").read_text())
        for image in index["images"]:
            for kind, files in (("", [image]), ("_mask", image["targets"])):
                for file in files:
                    key = "file_name" if not kind else "mask_file"
                    target = folder / f"train{kind}" / f"t{file[key]}"
                    target.parent.mkdir(exist_ok=True)
                    target.write_bytes((folder / f"test{kind}" / file[key]).read_bytes())
                    file[key] = target.name
        (folder / "train.json").write_text(json.dumps(index))
    pair = PairOptions(policy="scripted:image-centre", tool="classical", max_turns=8)
    return Baselines(data, out=tmp_path_factory.mktemp("out"), samples=0, pair=pair)


def test_the_table_holds_every_baseline_that_can_be_run(command: Baselines) -> None:
    table = baselines(command)
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == [
        "agent", "first click only", "first click, then oracle", "oracle clicks", "oracle clicks, jittered",
        "oracle clicks, like people", "constant click",
    ]  # fmt: skip
    assert "no proposal from text" in table["left_out"]["single pass"]
    iou = {name: row["metrics"]["mean IoU"]["value"] for name, row in rows.items()}
    assert iou["oracle clicks"] > 0.79 > iou["agent"] and iou["first click, then oracle"] > 0.6
    assert iou["oracle clicks, jittered"] > 0.7 and iou["oracle clicks, like people"] > 0.7
    assert iou["constant click"] > iou["agent"], "a place per target beats the middle here"
    assert (
        rows["first click only"]["minus_reference"]["mean IoU"]["difference"] == 0.0
    )  # image-centre clicks once
    assert rows["oracle clicks"]["minus_reference"]["mean IoU"]["low"] > 0
    turns = [case.turns for case in read_scores(command.out / "first-click-only")]
    assert set(turns) == {2}
    assert json.loads((command.out / "baselines.json").read_text()) == table
    before = (command.out / "oracle" / "samples.jsonl").read_bytes()
    assert (
        baselines(command)["rows"][3]["metrics"]["mean IoU"] == rows["oracle clicks"]["metrics"]["mean IoU"]
    )
    assert (command.out / "oracle" / "samples.jsonl").read_bytes() == before


def test_shards_are_refused(command: Baselines) -> None:
    with pytest.raises(InputError, match="whole runs"):
        baselines(replace(command, shard="1/2"))


def test_the_oracle_follows_the_first_click() -> None:
    truth = np.zeros((40, 40), bool)
    truth[5:20, 5:20] = True
    policy = FirstClickThenOracle(
        ScriptedPolicy("image-centre", RULES["image-centre"]), {"a": truth, "b": truth}
    )
    blank = np.zeros((40, 40, 3), np.uint8)

    def seen(name: str, *clicks: Click) -> Observation:
        return Observation(name, "Find it.", blank, (), None, clicks, BASE_VERBS, 1 + len(clicks), 0, 7)

    second, first = policy.act([seen("b", Click(0.5, 0.5, True)), seen("a")])
    assert "(0.5000, 0.5000)" in first.text and "Positive Point (0.3125, 0.3125)" in second.text
    assert policy.name == "first click, then oracle (scripted:image-centre)"
