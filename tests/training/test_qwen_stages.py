"""Bar 7: a two-layer checkpoint in the released layout through SFT, merge, RL, save, reload, segment.

The real commands with the real files between them; what is asserted is that each stage trains what it
says, writes what the next one loads, and changes the policy.
"""

import json
from pathlib import Path

import pytest
from PIL import Image
from policies.tiny_qwen import write_checkpoint
from safetensors.torch import load_file
from training.made_training import curve, make_trajectories, rl, sft

from ibisagent.cli import main
from ibisagent.episodes import read_episodes
from ibisagent.policies.qwen import QwenPolicy
from ibisagent.training import grpo
from ibisagent.training.examples import observed_steps
from ibisagent.training.optimiser import Optimisation
from ibisagent.training.policy import PolicyToTrain
from ibisagent.training.sft import train
from ibisagent.types import View


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    folder = tmp_path_factory.mktemp("stages")
    made = make_trajectories(folder)
    texts = []  # a tokenizer that knows the words makes conversations, and the test, five times shorter
    for log in sorted(made.glob("trajectories-*.jsonl")):
        for episode in read_episodes(log):
            for observation, written in observed_steps(episode, View(max_side=32)):
                texts += [message.text for message in observation.messages] + [written.text]
    write_checkpoint(folder / "tiny-qwen", texts=texts, words=900)
    return folder


def to_train(folder: Path, **options):
    return PolicyToTrain(policy=f"qwen:{folder}", device="cpu", max_tokens=2048, **options)


def test_sft_merge_rl_save_reload_segment(place, capsys):
    optimisation = Optimisation(lr=2e-2, micro_batch=4, save_every=12, warmup=0.0)
    out = train(
        sft(
            place / "trajectories",
            place / "sft",
            steps=12,
            kinds=("absent",),
            model=to_train(place / "tiny-qwen", gradient_checkpointing=True),
            optimisation=optimisation,
        )
    )
    losses = [loss for _, loss in curve(place / "sft", "loss")]
    assert len(losses) == 12 and losses[-1] < 0.5 * losses[0]
    assert (out / "adapter_model.safetensors").is_file()

    merged = place / "merged"
    assert main(["train", "merge", str(place / "tiny-qwen"), str(out), str(merged)]) == 0
    adapted = QwenPolicy.load(str(place / "tiny-qwen"), adapter=str(out), device="cpu").fingerprint()
    plain = QwenPolicy.load(str(merged), device="cpu").fingerprint()
    assert plain["adapter"] is None and plain["weights"] != adapted["weights"]
    assert plain["config"] == adapted["config"] and plain["template"] == adapted["template"]

    command = rl(
        place / "data",
        place / "rl",
        steps=1,
        groups=1,
        group=2,
        max_turns=1,
        validate_every=0,
        record_every=1,
        model=to_train(merged, lora_rank=0),
        optimisation=Optimisation(lr=1e-3, micro_batch=2, save_every=1, schedule="constant"),
    )
    assert grpo.run(command) == 0
    [(_, rollouts, tokens, norm)] = curve(place / "rl", "rollouts", "tokens", "norm")
    assert rollouts == 2 and tokens > 0
    trained = place / "rl" / "policy"
    assert {"config.json", "tokenizer.json", "chat_template.json"} <= {
        path.name for path in trained.iterdir()
    }
    assert json.loads((trained / "config.json").read_text())["rope_scaling"]["mrope_section"] == [2, 3, 3]
    before, after = load_file(merged / "model.safetensors"), load_file(trained / "model.safetensors")
    assert before.keys() == after.keys()
    vision = [name for name in before if name.startswith("visual.")]
    assert vision and all((before[name] == after[name]).all() for name in vision)

    picture = next((place / "data").rglob("*.png"))
    Image.open(picture).convert("RGB").save(place / "picture.png")
    code = main(
        [
            *("segment", str(place / "picture.png"), "Find the liver", "--out", str(place / "out")),
            *("--policy", f"qwen:{trained}", "--tool", "classical", "--device", "cpu"),
            *("--max-turns", "1", "--max-new-tokens", "160"),
        ]
    )
    capsys.readouterr()
    [episode] = read_episodes(place / "out" / "episode.jsonl")
    assert code in (0, 3, 4) and episode.status != "policy_error"
    # after so little SFT both rollouts may be nonsense; then nothing tells them apart, and nothing moves
    # (that advantages move texts the right way: test_qwen_training.py)
    moved = episode.fingerprint["policy"]["weights"] != plain["weights"]
    assert moved == (norm > 0)
