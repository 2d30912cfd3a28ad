"""A step of our multi-turn GRPO against TRL's: time and peak memory, the same work on both sides.

    trl-env/bin/python benchmarks/grpo.py            # an environment with trl 1.16, peft, accelerate, ours

A tiny Qwen2.5-VL (3 M parameters, random weights) plays 8 rollouts of 5 turns on one 252 px picture with
history `all` and is moved by one optimiser step, all weights, fp32. Both sides write exactly TOKENS tokens
a turn (only digits may be sampled, so that texts and tokens are the same thing) and the environment
executes the same scripted clicks, whatever was written: pictures, prompts and tool calls are equal. TRL
runs its own trainer with `training/trl.py`; ours is `training/grpo.py`. Each side lives in a process of
its own with one thread; steps are taken by turns. Prints medians and the processes' peak memory, and our
`none` mode beside it. Exit code 1 where ours is slower or larger than TRL.
"""

from __future__ import annotations

import argparse
import contextlib
import itertools
import json
import os
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests" / "policies")]

ROLLOUTS, TURNS, TOKENS, SIDE = 8, 5, 50, 252
SYSTEM = "Find the target with clicks."


# --- what both sides share ------------------------------------------------------------------------


def write_model(folder: Path) -> Path:
    """The tests' tiny checkpoint at 3 M parameters."""
    import tiny_qwen

    small = tiny_qwen._config

    def larger(ids: dict[str, int]) -> dict[str, Any]:
        config = small(ids)
        text = {"hidden_size": 192, "intermediate_size": 576, "num_hidden_layers": 4, "max_window_layers": 4}
        heads = {"num_attention_heads": 6, "num_key_value_heads": 2}
        vision = {
            "depth": 4,
            "hidden_size": 128,
            "intermediate_size": 256,
            "num_heads": 4,
            "out_hidden_size": 192,
        }
        config["vision_config"] |= vision | {"fullatt_block_indexes": [3]}
        return config | text | heads | {"rope_scaling": {"type": "mrope", "mrope_section": [4, 6, 6]}}

    tiny_qwen._config = larger
    return tiny_qwen.write_checkpoint(folder)


def make_sample() -> Any:
    from ibisagent.types import Picture, Sample

    rows, columns = np.mgrid[:SIDE, :SIDE]
    truth = (rows - 120) ** 2 + (columns - 130) ** 2 <= 50**2
    noise = np.random.default_rng(0).normal(0, 6, truth.shape)
    grey = np.clip(60 + 100 * truth + noise, 0, 255).astype(np.uint8)
    return Sample("disc", Picture(np.repeat(grey[..., None], 3, axis=2)), "Find the disc.", "disc", truth)


def script_clicks() -> None:
    """Every text of a rollout executes the next click of its own list; the text itself is kept."""
    from ibisagent import environment
    from ibisagent.actions import format_text
    from ibisagent.types import Click

    read, made = environment.parse, itertools.count()
    begin, submit = environment.Environment.begin, environment.Environment.submit

    def begun(self: Any) -> Any:
        self.place = next(made) % ROLLOUTS
        return begin(self)

    def submitted(self: Any, reply: Any) -> Any:
        turn, place = len(self._turns), self.place
        click = Click(0.3 + 0.06 * place + 0.01 * turn, 0.3 + 0.1 * turn, True)
        environment.parse = lambda text, verbs: read(format_text("a", click), verbs)
        return submit(self, reply)

    environment.Environment.begin = begun  # type: ignore[method-assign]
    environment.Environment.submit = submitted  # type: ignore[method-assign]


def only_digits(tokenizer: Any, size: int) -> list[int]:
    """Ids that may not be sampled: all but the ten digits, each of which is always one token."""
    digits = set(tokenizer.convert_tokens_to_ids(list("0123456789")))
    assert len(digits) == 10
    return sorted(set(range(size)) - digits)


def clocks() -> tuple[float, float]:
    """Wall and processor seconds; on a shared machine the second says more."""
    return time.perf_counter(), time.process_time()


def memory() -> float:
    """Peak resident memory of this process in MB."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


def wait() -> None:
    """Until the parent asks for a step; ends the process where it asks for no more."""
    if sys.stdin.readline().strip() != "step":
        os._exit(0)


def tell(**facts: Any) -> None:
    print(json.dumps(facts), flush=True)


# --- ours -----------------------------------------------------------------------------------------


def ours(model: Path, history: str, micro_batch: int) -> None:
    import torch

    from ibisagent.environment import Settings
    from ibisagent.rewards import SHAPED
    from ibisagent.tools.classical import ClassicalTool
    from ibisagent.training import grpo
    from ibisagent.training.optimiser import Optimisation, Optimiser
    from ibisagent.training.qwen import LogProbs, QwenTrainable

    torch.set_num_threads(1)
    script_clicks()
    trainable = QwenTrainable.load(
        str(model), lora_rank=0, freeze_vision=False, dtype="float32", device="cpu", temperature=1.0,
        max_new_tokens=TOKENS, batch_size=ROLLOUTS, max_tokens=8192,
    )  # fmt: skip
    policy = trainable.policy
    policy.banned = only_digits(policy.processor.tokenizer, policy.model.config.get_text_config().vocab_size)
    trainable.module = LogProbs(policy.model, policy.banned)
    trainable._encoder.banned = frozenset(policy.banned)
    command = grpo.TrainRl(
        data=model, groups=1, group=ROLLOUTS, batch_size=ROLLOUTS, history=history,
        optimisation=Optimisation(lr=1e-6, schedule="constant", micro_batch=micro_batch),
    )  # fmt: skip
    optimiser = Optimiser(trainable, command.optimisation, model.parent / "ours", 1000)
    round_ = grpo.Round.__new__(grpo.Round)
    round_.command, round_.trainable, round_.tool = command, trainable, ClassicalTool()
    round_.profile = SHAPED
    settings = Settings(history=history, max_turns=TURNS, system=SYSTEM)
    sample = make_sample()
    parameters = sum(p.numel() for p in trainable.module.parameters())
    tell(loaded=memory(), parameters=parameters)
    for number in itertools.count():
        wait()
        began = clocks()
        played = round_.groups([sample], replace(settings, seed=number))
        rolled = clocks()[1] - began[1]
        stepped = grpo.learn(command, optimiser, None, number, played)
        seconds, cpu = (now - then for now, then in zip(clocks(), began, strict=True))
        turns = sum(len(one.episode.turns) for group in played for one in group)
        rewards = [round(one.reward.total, 5) for group in played for one in group]
        tell(
            seconds=seconds,
            cpu=cpu,
            rollout=rolled,
            peak=memory(),
            turns=turns,
            tokens=stepped.tokens,
            rewards=rewards,
        )


# --- TRL ------------------------------------------------------------------------------------------


def theirs(model: Path, micro_batch: int) -> None:
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    import torch
    from datasets import Dataset
    from transformers import Qwen2_5_VLForConditionalGeneration, TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    import ibisagent.training.trl as adapter
    from ibisagent.environment import Settings
    from ibisagent.policies.qwen_processor import load_processor
    from ibisagent.tools.classical import ClassicalTool

    torch.set_num_threads(1)
    script_clicks()
    processor = adapter.prepare(load_processor(str(model)))
    net = Qwen2_5_VLForConditionalGeneration.from_pretrained(model, dtype=torch.float32)
    banned = only_digits(processor.tokenizer, net.config.get_text_config().vocab_size)
    settings = Settings(history="all", max_turns=TURNS, system=SYSTEM)
    sample = make_sample()
    seen: dict[str, Any] = {}

    class Steps(TrainerCallback):
        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            wait()
            seen["began"] = clocks()

        def on_step_end(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            seconds, cpu = (now - then for now, then in zip(clocks(), seen["began"], strict=True))
            tell(seconds=seconds, cpu=cpu, peak=memory(), **seen["facts"])

    def rewards(completions: Any, environments: Any, completion_ids: Any, **_: Any) -> list[float]:
        made = adapter.episode_rewards(completions, environments)
        episodes = [environment._driver.episode() for environment in environments]
        turns = sum(len(episode.turns) for episode in episodes)
        tokens = sum(sum(token in digits for token in ids) for ids in completion_ids)
        seen["facts"] = {"turns": turns, "tokens": tokens, "rewards": [round(r, 5) for r in made]}
        return made

    digits = set(range(net.config.get_text_config().vocab_size)) - set(banned)
    options = GRPOConfig(
        output_dir=str(model.parent / "trl"),
        per_device_train_batch_size=micro_batch,
        gradient_accumulation_steps=ROLLOUTS // micro_batch,
        num_generations=ROLLOUTS,
        max_completion_length=8000,
        max_tool_calling_iterations=TURNS - 1,
        generation_kwargs={"suppress_tokens": banned, "max_new_tokens": TOKENS},
        temperature=1.0,
        beta=0.0,
        learning_rate=1e-6,
        lr_scheduler_type="constant",
        max_steps=1000,
        gradient_checkpointing=False,
        bf16=False,
        use_cpu=True,
        report_to=[],
        logging_strategy="no",
        save_strategy="no",
        disable_tqdm=True,
    )
    trainer = GRPOTrainer(
        net,
        reward_funcs=rewards,
        args=options,
        train_dataset=Dataset.from_list(adapter.dataset_rows([sample] * 64, settings)),
        processing_class=processor,
        environment_factory=adapter.environment_factory([sample], ClassicalTool(), settings),
        callbacks=[Steps()],
    )
    tell(loaded=memory(), parameters=sum(p.numel() for p in net.parameters()))
    trainer.train()


# --- the comparison -------------------------------------------------------------------------------


class Side:
    """One side's process."""

    def __init__(self, name: str, model: Path, micro_batch: int) -> None:
        self.name = name
        command = [sys.executable, __file__, "--side", name, "--model", str(model)]
        environment = os.environ | {"OMP_NUM_THREADS": "1", "TOKENIZERS_PARALLELISM": "false"}
        self.process = subprocess.Popen(
            [*command, "--micro-batch", str(micro_batch)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            text=True,
            env=environment,
        )
        self.loaded = self.answer()
        self.steps: list[dict[str, Any]] = []

    def answer(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            with contextlib.suppress(json.JSONDecodeError):
                found: dict[str, Any] = json.loads(line)
                return found
        raise SystemExit(f"{self.name} ended with {self.process.wait()}; run it with --side {self.name}")

    def step(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write("step\n")
        self.process.stdin.flush()
        self.steps.append(self.answer())
        return self.steps[-1]

    def end(self) -> None:
        assert self.process.stdin is not None
        self.process.stdin.close()
        self.process.wait()


def compare(repeats: int, micro_batch: int) -> int:
    with tempfile.TemporaryDirectory() as folder:
        model = write_model(Path(folder) / "model")
        sides = {name: Side(name, model, micro_batch) for name in ("ours", "trl", "none")}
        try:
            for number in range(repeats + 1):
                for side in sides.values():
                    step = side.step()
                    print(
                        f"step {number} {side.name}: {step['seconds']:.2f} s, "
                        f"{step['cpu']:.2f} s of processor time, peak {step['peak']:.0f} MB",
                        file=sys.stderr,
                        flush=True,
                    )
                    if number == 0:
                        side.steps.pop()  # warm-up
                    expected = (ROLLOUTS * TURNS, ROLLOUTS * TURNS * TOKENS)
                    assert (step["turns"], step["tokens"]) == expected, f"{side.name}: {step}"
        finally:
            for side in sides.values():
                side.end()
    rewards = {name: side.steps[-1]["rewards"] for name, side in sides.items()}
    assert sorted(rewards["ours"]) == sorted(rewards["trl"]) == sorted(rewards["none"]), rewards
    print(
        f"{sides['ours'].loaded['parameters'] / 1e6:.1f} M parameters, {ROLLOUTS} rollouts x {TURNS} turns x "
        f"{TOKENS} tokens, {SIDE} px, micro-batches of {micro_batch}, one thread, median of {repeats}"
    )
    peak = {name: side.steps[-1]["peak"] for name, side in sides.items()}
    for name, side in sides.items():
        wall, cpu = ([step[kind] for step in side.steps] for kind in ("seconds", "cpu"))
        rolled = [step["rollout"] for step in side.steps if "rollout" in step]
        print(
            f"{name:5s} {statistics.median(wall):6.2f} s a step ({min(wall):.2f} to {max(wall):.2f}), "
            f"of processor time {statistics.median(cpu):.2f} s ({min(cpu):.2f} to {max(cpu):.2f})"
            + (f", rollouts {statistics.median(rolled):.2f} s of it" if rolled else "")
            + f", peak {peak[name]:.0f} MB, {peak[name] - side.loaded['loaded']:.0f} MB above what was loaded"
        )
    ratio = {name: _ratios(side.steps, sides["trl"].steps) for name, side in sides.items()}
    for name, label in (("ours", "ours"), ("none", "our none mode")):
        wall_ratio, cpu_ratio = ratio[name]
        memory_ratio = peak[name] / peak["trl"]
        print(
            f"{label} against TRL: time {wall_ratio:.2f}x ({cpu_ratio:.2f}x of processor time), "
            f"memory {memory_ratio:.2f}x"
        )
    return int(ratio["ours"][0] > 1 or peak["ours"] > peak["trl"])


def _ratios(steps: list[dict[str, Any]], others: list[dict[str, Any]]) -> list[float]:
    """Median over pairs of steps, of wall and of processor time."""
    pairs = list(zip(steps, others, strict=True))
    return [statistics.median(a[kind] / b[kind] for a, b in pairs) for kind in ("seconds", "cpu")]


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument(
        "--micro-batch", type=int, default=ROLLOUTS, help="rollouts (none: texts) in one pass"
    )
    parser.add_argument(
        "--side", choices=("ours", "none", "trl"), help="one side alone, steps asked on stdin"
    )
    parser.add_argument("--model", type=Path, help="of --side")
    options = parser.parse_args()
    if options.side is None:
        return compare(options.repeats, options.micro_batch)
    if options.side == "trl":
        theirs(options.model, options.micro_batch)
    else:
        ours(options.model, "all" if options.side == "ours" else "none", options.micro_batch)
    return 0


if __name__ == "__main__":
    sys.exit(main())
