import json
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from small_sets import make_sets

from ibisagent.errors import InputError
from ibisagent.evaluation.compare import Compare, compare
from ibisagent.evaluation.robustness import Robustness, robustness
from ibisagent.evaluation.samples import read_lines
from ibisagent.evaluation.tool_swap import ToolSwap, tool_swap
from ibisagent.masks import decode_rle
from ibisagent.pair import PairOptions

PAIR = PairOptions(policy="scripted:oracle", tool="classical", max_turns=4)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_sets(tmp_path_factory.mktemp("sets"))


def truths(folder: Path) -> dict[str, np.ndarray]:
    return {line["case"]: decode_rle(line["episode"]["truth"]) for line in read_lines(folder)}


def test_the_table_compares_every_perturbation_with_the_plain_run(data: Path, tmp_path: Path) -> None:
    command = Robustness(
        data, out=tmp_path, kinds=("rotation", "denied", "contradictory", "wrong-first-click"), pair=PAIR
    )
    table = robustness(command)
    rows = {row["name"]: row for row in table["rows"]}
    assert list(rows) == ["plain", "rotation", "denied", "contradictory", "wrong-first-click"]
    plain, turned = truths(tmp_path / "plain"), truths(tmp_path / "rotation-1")
    assert plain.keys() == turned.keys() and not any(np.array_equal(plain[k], turned[k]) for k in plain)
    change = rows["rotation"]["minus_reference"]["mean IoU"]
    assert change["n"] == 8 and rows["rotation"]["reference"] == "plain"
    values = [rows[name]["metrics"]["mean IoU"]["value"] for name in ("plain", "rotation")]
    assert change["difference"] == pytest.approx(values[1] - values[0])
    assert rows["denied"]["minus_reference"]["mean IoU"]["difference"] == 0.0  # the oracle does not read
    nothing = rows["contradictory"]["metrics"]["contradictory words: refused or empty"]
    assert (nothing["value"], nothing["n"]) == (1.0, 8), "the oracle knows that nothing is asked for"
    assert rows["wrong-first-click"]["metrics"]["first click inside"]["value"] == 0.0
    assert json.loads((tmp_path / "robustness.json").read_text()) == table
    assert (tmp_path / "rotation-1" / "report.html").stat().st_size > 1000
    differ = compare(Compare(tmp_path / "plain", tmp_path / "rotation-1"))["settings_that_differ"]
    assert any("perturbation" in line for line in differ)
    with pytest.raises(InputError, match=r"perturbation\.strength"):
        robustness(replace(command, kinds=("rotation",), strength=1.0000001))
    for wrong, rule in (({"kinds": ("fog",)}, "one of those known"), ({"perturb": "blur"}, "--perturb|every"),
                        ({"shard": "1/2"}, "whole runs"), ({"strength": -1.0}, "--strength")):  # fmt: skip
        with pytest.raises(InputError, match=rule):
            robustness(replace(command, **wrong))


def test_tools_are_swapped_under_each_policy(data: Path, tmp_path: Path) -> None:
    pair = replace(PAIR, policy="scripted:image-centre", max_turns=2)
    command = ToolSwap(
        data,
        policies=("scripted:image-centre",),
        out=tmp_path,
        datasets=("Other",),
        per_set=1,
        tools=("classical", "embedded"),
        pair=pair,
    )
    table = tool_swap(replace(command, tools=(*command.tools, "sam2:/nowhere/secret.pt")))
    names = [row["name"] for row in table["rows"]]
    assert names == ["scripted:image-centre with classical", "scripted:image-centre with embedded"]
    assert set(table["left_out"]) == {"scripted:image-centre with sam2"}
    assert "secret" not in json.dumps(table["left_out"])
    assert table["start"] == "none" and table["rows"][0]["reference"] is None
    assert table["rows"][1]["reference"] == names[0] and "mean IoU" in table["rows"][1]["minus_reference"]
    sizes = ("sam2:/nowhere/secret.pt@512", "sam2:/nowhere/secret.pt@1024", "medsam:a", "medsam:b")
    left_out = tool_swap(replace(command, tools=(*command.tools, *sizes)))["left_out"]
    assert set(left_out) == {
        f"scripted:image-centre with {name}"
        for name in ("sam2@512", "sam2@1024", "medsam no. 1", "medsam no. 2")
    }
    starts = {
        json.loads(file.read_text())["pair"]["settings"]["start"] for file in tmp_path.glob("*/run.json")
    }
    assert starts == {"none"}
    with pytest.raises(InputError, match="at least one tool"):
        tool_swap(replace(command, tools=()))
    with pytest.raises(InputError, match="at least one pair"):
        tool_swap(replace(command, tools=("sam2:/nowhere",)))
