import pytest
import torch

from ibisagent.devices import check_names, out_of_memory, pick_device, pick_dtype
from ibisagent.errors import InputError
from ibisagent.policies import PolicyOptions, load_policy
from ibisagent.policies.qwen import QwenPolicy
from ibisagent.tools.sam import load_sam
from ibisagent.tools.sam2 import load_sam2


def machine(monkeypatch: pytest.MonkeyPatch, cards: int, mps: bool) -> None:
    """As if this machine had so many CUDA devices, and MPS or not."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: cards > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: cards)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: mps)


@pytest.mark.parametrize(
    ("cards", "mps", "taken", "refused"),
    [
        (0, False, {"auto": "cpu", "cpu": "cpu"}, ("cuda", "cuda:0", "mps")),
        (0, True, {"auto": "mps", "mps": "mps", "cpu": "cpu"}, ("cuda",)),
        (1, False, {"auto": "cuda", "cuda": "cuda", "cuda:0": "cuda:0"}, ("cuda:1", "cuda:9", "mps")),
        (2, True, {"auto": "cuda", "cuda:1": "cuda:1", "mps": "mps"}, ("cuda:2",)),
    ],
)
def test_a_device_is_one_that_is_here(
    cards: int, mps: bool, taken: dict[str, str], refused: tuple[str, ...], monkeypatch: pytest.MonkeyPatch
) -> None:
    machine(monkeypatch, cards, mps)
    assert {name: pick_device(name) for name in taken} == {
        name: torch.device(device) for name, device in taken.items()
    }
    for device in refused:
        with pytest.raises(InputError, match=f"must be here; got {device} with PyTorch.*--device auto"):
            pick_device(device)


def test_policies_and_tools_refuse_the_same_device(monkeypatch: pytest.MonkeyPatch) -> None:
    """Before they look at any file."""
    machine(monkeypatch, 1, False)
    for load in (QwenPolicy.load, load_sam, load_sam2):
        with pytest.raises(InputError, match="the device asked for must be here; got cuda:9"):
            load("nowhere", device="cuda:9")
        with pytest.raises(InputError, match="the dtype is auto, float32, bfloat16 or float16; got 'fp8'"):
            load("nowhere", device="cpu", dtype="fp8")


def test_a_dtype_is_a_name_or_the_device_s_own() -> None:
    cpu, cuda = torch.device("cpu"), torch.device("cuda")
    assert pick_dtype("auto", cpu) == torch.float32 and pick_dtype("auto", cuda) == torch.bfloat16
    for name in ("float32", "bfloat16", "float16"):
        assert pick_dtype(name, cpu) == pick_dtype(name, cuda) == getattr(torch, name)


@pytest.mark.parametrize("device", ["tpu", "", "cuda:", "cuda:-1", "cpu:0", "CUDA", "cuda:1234"])
def test_words_that_name_no_device_are_named(device: str) -> None:
    for check in (lambda: check_names(device, "auto"), lambda: pick_device(device)):
        with pytest.raises(
            InputError, match=r"the device is auto, cpu, cuda, cuda:N or mps; got '.*'; write"
        ):
            check()
    with pytest.raises(InputError, match="the device is auto"):
        load_policy("scripted:image-centre", PolicyOptions(device=device))


def test_memory_that_ran_out_is_told_from_bugs() -> None:
    for error in (
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 7 GiB"),
        MemoryError(),
        RuntimeError("MPS backend out of memory (MPS allocated: 9 GB)"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:117] DefaultCPUAllocator: can't allocate memory"),
        RuntimeError("DefaultCPUAllocator: not enough memory: you tried to allocate 9 bytes"),
    ):
        assert out_of_memory(error)
    for bug in (RuntimeError("shape mismatch"), ValueError("out of memory")):
        assert not out_of_memory(bug)
