"""A run's folder against the world: a second run, a full disk, files that are cut off."""

import errno
import json
import resource
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from synthesis.made_data import make_set
from training.made_training import PICTURES, curve, make_trajectories, rl, sft

from ibisagent.errors import InputError
from ibisagent.files import locked
from ibisagent.training import grpo
from ibisagent.training.optimiser import Optimisation
from ibisagent.training.policy import card_of
from ibisagent.training.sft import train


@pytest.fixture(scope="module")
def trajectories(tmp_path_factory):
    return make_trajectories(tmp_path_factory.mktemp("sft"))


@pytest.fixture(scope="module")
def trained(trajectories, tmp_path_factory):
    """A finished run of four steps, with checkpoints of steps 3 and 4."""
    out = tmp_path_factory.mktemp("trained") / "run"
    train(sft(trajectories, out))
    return out


@pytest.fixture
def run(trained, tmp_path):
    return Path(shutil.copytree(trained, tmp_path / "run"))


def content(folder: Path) -> dict[str, bytes]:
    return {str(p.relative_to(folder)): p.read_bytes() for p in folder.rglob("*") if p.is_file()}


# --- a second run -------------------------------------------------------------------------------


HOLD = """
import sys
from pathlib import Path
from ibisagent.files import locked
with locked(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@contextmanager
def held_by_another_process(folder: Path):
    folder.mkdir(parents=True, exist_ok=True)
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen([sys.executable, "-c", HOLD, str(folder)], **pipes) as process:
        assert process.stdout.readline() == "held\n"
        yield


def test_a_folder_belongs_to_one_run_at_a_time(trajectories, tmp_path) -> None:
    data = make_set(tmp_path / "data", PICTURES)
    for out, begin in (
        (tmp_path / "sft", lambda out: train(sft(trajectories, out, steps=1))),
        (tmp_path / "rl", lambda out: grpo.train(rl(data, out, steps=1, validate_every=0))),
    ):
        with held_by_another_process(out):
            before = content(out)
            with pytest.raises(InputError, match=rf"one job at a time .* a running one in {out}; wait for"):
                begin(out)
            assert content(out) == before
        begin(out)  # the lock fell with the process that held it
        assert (out / "policy").is_dir()
        begin(out)  # and with the run before


def test_a_file_system_without_locks_holds_nobody_back(tmp_path, monkeypatch) -> None:
    """As Lustre without flock, or NFS without its daemon."""

    def none_here(*_):
        raise OSError(errno.ENOSYS, "Function not implemented")

    monkeypatch.setattr("fcntl.flock", none_here)
    with locked(tmp_path), locked(tmp_path):
        pass


# --- damaged files ------------------------------------------------------------------------------

WEIGHTS = "model.safetensors"


@pytest.mark.parametrize("name", [WEIGHTS, "optimizer.bin", "state.json"])
@pytest.mark.parametrize("damage", ["cut", "empty", "gone"])
def test_a_run_goes_on_from_the_newest_whole_checkpoint(
    trajectories, trained, run, name, damage, capsys
) -> None:
    file = run / "checkpoints/step-0000004" / name
    whole = file.read_bytes()
    file.unlink() if damage == "gone" else file.write_bytes(whole[: len(whole) // 2 * (damage == "cut")])
    train(sft(trajectories, run))
    said = " ".join(capsys.readouterr().err.split())
    assert "skipped: checkpoint step-0000004, which is damaged" in said and "continued at 3 of 4" in said
    for one, other in zip(curve(trained, "loss", "lr"), curve(run, "loss", "lr"), strict=True):
        assert other == pytest.approx(one, abs=1e-4)
    train(sft(trajectories, run))  # step 4 is whole again
    assert "skipped" not in capsys.readouterr().err


def test_without_a_whole_checkpoint_a_run_says_so(trajectories, run) -> None:
    for folder in (run / "checkpoints").iterdir():
        (folder / WEIGHTS).write_bytes(b"")
    policy = content(run / "policy")
    with pytest.raises(InputError, match=r"goes on from a whole checkpoint; got 2 damaged in .*checkpoints"):
        train(sft(trajectories, run))
    assert content(run / "policy") == policy


@pytest.mark.parametrize("text", ["", '{"stage": "sf', "[]", "\x00\x00"])
def test_damaged_records_are_named(trajectories, run, text) -> None:
    before = json.loads((run / "items.json").read_text())
    (run / "items.json").write_text(text)
    train(sft(trajectories, run))  # what follows from data and run.json is found out again
    assert json.loads((run / "items.json").read_text()) == before
    (run / "training.json").write_text(text)
    with pytest.raises(InputError, match=r"training\.json, which is damaged; repeat the command"):
        card_of(f"embedded:{run}/policy")
    train(sft(trajectories, run))
    assert card_of(f"embedded:{run}/policy")["steps"] == 4
    (run / "run.json").write_text(text)
    with pytest.raises(InputError, match=r"run\.json, which is damaged; .*another --out"):
        train(sft(trajectories, run))


# --- a full disk --------------------------------------------------------------------------------


@contextmanager
def files_of_at_most(size: int):
    """No file grows above so many bytes: the write fails as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.mark.parametrize("size", [20, 2_000, 200_000])
def test_a_full_disk_is_named_and_costs_no_checkpoint(trajectories, run, size, capsys) -> None:
    assert capsys  # what is said goes to no file
    kept = content(run / "checkpoints")
    with (
        files_of_at_most(size),
        pytest.raises(InputError, match=r"--out is a folder that can be written to; got .*; name another"),
    ):
        train(sft(trajectories, run, steps=5))
    assert content(run / "checkpoints") == kept
    train(sft(trajectories, run, steps=5))
    assert [row[0] for row in curve(run, "loss")] == [1, 2, 3, 4, 5]


@pytest.mark.parametrize("part", ["checkpoints", "policy", "training.json"])
def test_whatever_cannot_be_written_is_named(trajectories, tmp_path, monkeypatch, part) -> None:
    real = Path.replace

    def full(self, target):
        if part in str(target):
            raise OSError(28, "No space left on device")
        return real(self, target)

    monkeypatch.setattr(Path, "replace", full)
    monkeypatch.setattr(Path, "rename", full)
    with pytest.raises(InputError, match="got No space left on device"):
        train(sft(trajectories, tmp_path / "out", steps=1, optimisation=Optimisation(save_every=1)))
