"""Both published schemas become episodes with the recorded masks; what is damaged is named, not guessed."""

import base64
import json
import zlib

import numpy as np
import pytest
from conftest import disc
from PIL import Image
from pycocotools import mask as coco_mask

from ibisagent.episodes import read_episodes
from ibisagent.errors import InputError
from ibisagent.synthesis.importers import Import, decode_recorded_mask, run
from ibisagent.types import Click, EpisodeStatus, Terminate

SHAPE = (40, 60)
TRUTH = disc(*SHAPE, 18, 25, 10)
MASKS = [disc(*SHAPE, 16, 22, 7) | disc(*SHAPE, 8, 50, 5), disc(*SHAPE, 17, 24, 9), TRUTH]
PIXELS = [(25, 18), (50, 8), (31, 22)]  # the second lies outside the target


def text_code(mask):
    """The generator's codec: decimal runs, row by row, background first."""
    flat = mask.ravel().astype(int)
    edges = np.flatnonzero(np.diff(flat)) + 1
    runs = np.diff([0, *edges, flat.size]).tolist()
    runs = [0, *runs] if flat[0] else runs
    return base64.b64encode(zlib.compress(" ".join(map(str, runs)).encode())).decode()


def coco_code(mask):
    """The converter's codec: COCO's compressed counts."""
    rle = coco_mask.encode(np.asfortranarray(mask.astype(np.uint8)))
    return {"size": list(mask.shape), "counts": base64.b64encode(zlib.compress(rle["counts"])).decode()}


@pytest.fixture
def files(tmp_path):
    rng = np.random.default_rng(0)
    Image.fromarray(rng.integers(0, 256, (*SHAPE, 3)).astype(np.uint8)).save(tmp_path / "a.png")
    Image.fromarray(TRUTH.astype(np.uint8) * 255).save(tmp_path / "m255.png")
    Image.fromarray(TRUTH.astype(np.uint8)).save(tmp_path / "m1.png")
    Image.fromarray((~TRUTH).astype(np.uint8) * 255).save(tmp_path / "inverted.png")
    return tmp_path


def generator(truth="m255.png", reverse=False, masks=MASKS, **fields):
    steps = [
        {"step": n, "coords_norm": [x / 60, y / 40], "coords_original": [x, y], "mask_rle": text_code(mask)}
        for n, ((x, y), mask) in enumerate(zip(PIXELS, masks, strict=False))
    ]
    image = {"format": "png", "size": [60, 40], "reverse": reverse}
    return {
        "file": "/gone/a.png",
        "type": "img",
        "mask_file": truth,
        "nii_data": None,
        "img_data": image,
        "trajectory": steps,
    } | fields


def converter(**fields):
    clicks = [
        {"is_positive": sign, "coor_norm": [x / 60, y / 40], "coor": [x, y], "mask": coco_code(mask)}
        for (x, y), sign, mask in zip(PIXELS, (True, False, True), MASKS, strict=True)
    ]
    return {
        "data": [
            {
                "image_name": "a",
                "mask_name": "m255",
                "caption": ["Can you find a liver in this image?"],
                "clicks_list": clicks,
            }
            | fields
        ]
    }


def imported(files, data, **options):
    (files / "in").mkdir(exist_ok=True)
    (files / "in/t.json").write_text(json.dumps(data))
    run(Import(files / "in/t.json", files / "out/log.jsonl", pictures=files, masks=files, **options))
    return list(read_episodes(files / "out/log.jsonl"))


def check(episode):
    assert episode.kind == "plain" and episode.status is EpisodeStatus.TERMINATED
    actions = [turn.action for turn in episode.turns]
    assert [action.positive for action in actions[:-1] if isinstance(action, Click)] == [True, False, True]
    assert [(int(action.x * 60), int(action.y * 40)) for action in actions[:-1]] == PIXELS
    assert isinstance(actions[-1], Terminate)
    for turn, mask in zip(episode.turns, MASKS, strict=False):
        np.testing.assert_array_equal(turn.mask, mask)
    np.testing.assert_array_equal(episode.truth, TRUTH)


@pytest.mark.parametrize(
    ("truth", "reverse"), [("m255.png", False), ("m1.png", False), ("inverted.png", True)]
)
def test_generator_schema_infers_signs(files, truth, reverse):
    [episode] = imported(files, generator(truth, reverse), target="liver")
    check(episode)
    assert episode.instruction == "Find the liver in this image."


def test_converter_schema(files):
    [episode] = imported(files, converter())
    check(episode)
    assert (episode.instruction, episode.target) == ("Can you find a liver in this image?", "liver")


def test_trajectories_that_stop_early_are_marked(files):
    [episode] = imported(files, [generator(masks=MASKS[:1])], target="liver")
    assert episode.kind == "unreached" and episode.status is EpisodeStatus.TURN_LIMIT
    assert len(episode.turns) == 1


@pytest.mark.parametrize("seed", range(5))
def test_codecs_on_masks_that_are_not_square(seed):
    mask = np.random.default_rng(seed).random((7, 11)) < 0.5
    np.testing.assert_array_equal(decode_recorded_mask(text_code(mask), (7, 11)), mask)
    np.testing.assert_array_equal(decode_recorded_mask(coco_code(mask), (7, 11)), mask)
    for code in (text_code(mask), coco_code(mask)):
        with pytest.raises(InputError):
            decode_recorded_mask(code, (7, 12))
    with pytest.raises(InputError, match="size"):
        decode_recorded_mask(coco_code(mask), (11, 7))


def test_damage_is_named_and_the_others_are_kept(files, capsys):
    bad = [
        generator(trajectory=[]),
        generator(type="nii"),
        generator(file="/gone/b.png"),
        {"nothing": 1},
    ]
    broken = generator()
    broken["trajectory"][1]["mask_rle"] = "AAAA"
    outside = generator()
    outside["trajectory"][0]["coords_original"] = [60, 3]
    assert len(imported(files, [generator(), *bad[:1], bad[2], broken, outside], target="liver")) == 1
    assert capsys.readouterr().out.count("left out") == 4
    for entry in (bad[1], bad[3]):
        with pytest.raises(InputError):
            imported(files, [entry], target="liver")
    with pytest.raises(InputError, match="something to import"):
        imported(files, generator())  # nothing says what it is
    with pytest.raises(InputError, match="something to import"):
        imported(files, generator(truth="m255.png", masks=[mask[:, :50] for mask in MASKS]), target="liver")
