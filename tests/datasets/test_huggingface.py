"""Tables with pictures and masks, as `datasets` saves them (skipped where it is not installed)."""

import numpy as np
import pytest
from layouts import box, picture
from PIL import Image

from ibisagent.datasets.cases import ReadOptions
from ibisagent.datasets.detect import open_dataset
from ibisagent.datasets.reading import Reading
from ibisagent.errors import InputError, MissingExtraError

A, B = box(2, 3, 10, 12), box(12, 20, 20, 30)


def table(datasets, **columns):
    rows = {
        "image": [Image.fromarray(picture(0)), Image.fromarray(picture(1))],
        "mask": [Image.fromarray(A.astype(np.uint8) * 255), Image.fromarray(B)],
        **columns,
    }
    features = {"image": datasets.Image(), "mask": datasets.Image()}
    features |= {name: datasets.Value("string") for name in columns}
    return datasets.Dataset.from_dict(rows, features=datasets.Features(features))


@pytest.mark.parametrize("saved", ["disk", "splits", "parquet", "folder"])
def test_pictures_masks_and_targets(tmp_path, saved):
    pytest.importorskip("datasets.features", reason="needs the extra data")
    import datasets

    rows = table(datasets, target=["liver", "left kidney"])
    path = tmp_path / "set"
    if saved == "disk":
        rows.save_to_disk(str(path))
    elif saved == "splits":
        datasets.DatasetDict({"validation": rows}).save_to_disk(str(path))
    else:
        path = path / "train-00000-of-00001.parquet"
        path.parent.mkdir()
        rows.to_parquet(str(path))
    found = open_dataset(path.parent if saved == "folder" else path)
    first, second = found
    assert found.format == "huggingface"
    np.testing.assert_array_equal(first.truth, A)
    np.testing.assert_array_equal(second.truth, B)
    np.testing.assert_array_equal(second.picture.pixels, picture(1))
    assert (first.target, second.target) == ("liver", "left kidney")
    assert first.split == ("val" if saved == "splits" else "train")


def test_columns_and_names_must_be_known(tmp_path):
    pytest.importorskip("datasets.features", reason="needs the extra data")
    import datasets

    table(datasets).save_to_disk(str(tmp_path / "set"))
    with pytest.raises(InputError, match="what the masks show"):
        open_dataset(tmp_path / "set")
    with pytest.raises(InputError, match="column of masks"):
        open_dataset(tmp_path / "set", options=ReadOptions(target="x", mask_column="gt"))
    assert len(list(open_dataset(tmp_path / "set", options=ReadOptions(labels={"255": "liver"})))) == 1


def test_columns_and_colours_are_named_on_the_command_line(tmp_path):
    pytest.importorskip("datasets.features", reason="needs the extra data")
    import datasets

    palette = Image.fromarray(A.astype(np.uint8) + 2 * B.astype(np.uint8), "P")
    palette.putpalette([255, 255, 255, 255, 0, 0, 0, 0, 255])
    rows = {"scan": [Image.fromarray(picture())], "truth": [palette]}
    features = datasets.Features({name: datasets.Image() for name in rows})
    datasets.Dataset.from_dict(rows, features=features).save_to_disk(str(tmp_path / "set"))
    labels = ("#ff0000=liver", "#0000ff=spleen", "#ffffff=background")
    with pytest.raises(InputError, match="--picture-column"):
        open_dataset(tmp_path / "set", options=Reading(labels=labels).read_options())
    options = Reading(labels=labels, picture_column="scan", mask_column="truth").read_options()
    found = {sample.target: sample.truth for sample in open_dataset(tmp_path / "set", options=options)}
    assert set(found) == {"liver", "spleen"}
    np.testing.assert_array_equal(found["liver"], A)
    np.testing.assert_array_equal(found["spleen"], B)


def test_the_missing_package_is_named(tmp_path, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, "datasets", None)
    (tmp_path / "state.json").write_text("{}")
    with pytest.raises(MissingExtraError, match="data"):
        open_dataset(tmp_path)
