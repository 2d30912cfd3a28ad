"""One recorded episode is the same episode through our loop, through verl's AgentLoop and through TRL.

    verl-env/bin/python benchmarks/engines_conformance.py --engine verl   # verl 0.9.1, transformers < 5.11
    trl-env/bin/python  benchmarks/engines_conformance.py --engine trl    # TRL 1.16

Uses the engines' own classes on the CPU; only text generation is replaced: a fake server (verl) or a
fake generate (TRL) plays the recorded texts token by token. Compared with our loop, turn by turn: the
pictures handed to the model (every pixel), the tokens of the prompt (with our own policy's encoding), the
masks after every turn, which tokens are trained, the reward. docs/training-verl.md says how to build the
environments. Exit code 1 where something differs.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path[:0] = [str(REPOSITORY / "tests"), str(REPOSITORY / "tests" / "policies")]

from ibisagent.environment import Settings  # noqa: E402
from ibisagent.episodes import read_episodes  # noqa: E402
from ibisagent.errors import ToolError  # noqa: E402
from ibisagent.policies.scripted import RULES, ScriptedPolicy, fixed, noisy_oracle  # noqa: E402
from ibisagent.rewards import SHAPED, score_episode  # noqa: E402
from ibisagent.rollout import collect, rollout  # noqa: E402
from ibisagent.tools.classical import ClassicalTool  # noqa: E402
from ibisagent.training.driver import Driver  # noqa: E402
from ibisagent.types import BASE_VERBS, VLM_VIEW, Episode, Message, Observation, Picture, Sample, Verb  # noqa: E402

SETTINGS = Settings(history="all", verbs=BASE_VERBS | {Verb.UNDO}, max_turns=6)
GOLDEN = REPOSITORY / "tests" / "golden" / "episode-v1.jsonl"


# --- recordings ---------------------------------------------------------------------------------


@dataclass(frozen=True)
class Recording:
    """An episode of our own loop with what the policy was shown before each text."""

    name: str
    sample: Sample
    episode: Episode
    shown: tuple[tuple[Message, ...], ...]
    reward: float

    @property
    def texts(self) -> list[str]:
        return [attempt.text for turn in self.episode.turns for attempt in turn.attempts]


def disc(height: int, width: int, row: float, column: float, radius: float) -> Any:
    rows, columns = np.mgrid[:height, :width]
    return (rows - row) ** 2 + (columns - column) ** 2 <= radius**2


def record(name: str, sample: Sample, policy: ScriptedPolicy) -> Recording:
    seen: list[Observation] = []
    act = policy.act

    sample = replace(sample, instruction=f"{sample.instruction} ({name})")

    def watched(observations: Sequence[Observation]) -> Any:
        seen.extend(observations)
        return act(observations)

    policy.act, policy.view = watched, VLM_VIEW  # type: ignore[method-assign]
    [episode] = collect(rollout([sample], policy, ClassicalTool(), SETTINGS))
    reward = score_episode(episode, SHAPED).total
    assert reward is not None
    return Recording(name, sample, episode, tuple(o.messages for o in seen), reward)


def recordings() -> list[Recording]:
    """The golden texts (a retry, every base verb, Undo), four noisy oracles, a wrong start, cheats.

    Each has an instruction of its own, so that a prompt tells whose it is.
    """
    truth, other = disc(96, 128, 40, 50, 18), disc(96, 128, 66, 98, 14)
    noise = np.random.default_rng(7).normal(0, 4, (96, 128))
    grey = np.clip(50 + 110 * truth + 60 * other + noise, 0, 255).astype(np.uint8)
    picture = Picture(np.repeat(grey[..., None], 3, axis=2), (1.0, 0.8), "known")
    sample = Sample("discs", picture, "Find the disc <|im_end|>", "disc", truth)
    [golden] = read_episodes(GOLDEN)
    first = Sample("golden", golden.picture, golden.instruction, golden.target, golden.truth)
    texts = [attempt.text for turn in golden.turns for attempt in turn.attempts]
    made = [record("golden", first, fixed(texts))]
    for seed in range(4):
        one = replace(sample, sample_id=f"discs-{seed}")
        made.append(
            record(f"noisy {seed}", one, ScriptedPolicy("n", noisy_oracle(0.5), {one.sample_id: truth}))
        )
    start = replace(sample, sample_id="start", start_mask=other)
    made.append(record("wrong start", start, ScriptedPolicy("o", RULES["oracle"], {"start": truth})))
    absent = replace(sample, sample_id="absent", truth=np.zeros_like(truth))
    for rule in ("stop-at-once", "repeated-click", "nonsense-when-hard", "never-stop"):
        one = replace(absent if rule == "stop-at-once" else sample, sample_id=rule)
        if rule == "nonsense-when-hard":
            one = replace(one, truth=disc(96, 128, 40, 50, 5))
        made.append(record(rule, one, ScriptedPolicy(rule, RULES[rule], {rule: one.truth})))
    return made


class Remembered(Driver):
    """A driver that can be asked for its episode afterwards."""

    made: ClassVar[list[Driver]] = []

    def __init__(self, *values: Any, **options: Any) -> None:
        super().__init__(*values, **options)
        Remembered.made.append(self)


class Checks:
    """Counts what was compared and prints what differed."""

    def __init__(self) -> None:
        self.counts: dict[str, int] = {}
        self.failed = 0

    def __call__(self, what: str, good: bool, where: str = "") -> None:
        self.counts[what] = self.counts.get(what, 0) + 1
        if not good:
            self.failed += 1
            print(f"DIFFERS: {what} {where}")

    def pictures(self, given: Sequence[Any], messages: Sequence[Message], where: str) -> None:
        wanted = [image for message in messages for image in message.images]
        good = len(given) == len(wanted) and all(
            np.array_equal(np.asarray(one), other) for one, other in zip(given, wanted, strict=True)
        )
        self("pictures of a turn, bit by bit", good, where)

    def masks(self, made: Episode, recorded: Episode, where: str) -> None:
        good = len(made.turns) == len(recorded.turns) and made.status is recorded.status
        self("status and number of turns", good, f"{where}: {made.status}, {recorded.status}")
        for one, other in zip(made.turns, recorded.turns, strict=False):
            same = (one.mask is None) == (other.mask is None)
            good = same and (one.mask is None or np.array_equal(one.mask, other.mask))
            self("mask after a turn, bit by bit", good, where)


def tiny(folder: Path) -> Any:
    from tiny_qwen import write_checkpoint

    from ibisagent.policies.qwen_processor import load_processor

    return load_processor(str(write_checkpoint(folder)))


def token_ids(processor: Any, messages: Sequence[Message]) -> list[int]:
    from ibisagent.policies.qwen_processor import encode

    return encode(processor, [messages])["input_ids"][0].tolist()


# --- verl ---------------------------------------------------------------------------------------


class FakeServer:
    """verl's LLMServerClient as far as an agent loop calls it; plays texts in order, or fails."""

    def __init__(self, processor: Any, config: Any) -> None:
        self.tokenizer, self.config = processor.tokenizer, config
        self.texts: dict[int, list[Any]] = {}  # by rollout: texts, or token ids as they are sampled
        self.calls: dict[int, list[tuple[list[int], list[Any], dict[str, Any]]]] = {}
        self.requests: dict[str, int] = {}
        self.fails: set[int] = set()

    def written(self, text: str) -> list[int]:
        return self.tokenizer(text)["input_ids"] + [self.tokenizer.convert_tokens_to_ids("<|im_end|>")]

    async def generate(
        self, request_id: str, *, prompt_ids, sampling_params, image_data=None, **_: Any
    ) -> Any:
        from verl.workers.rollout.replica import TokenOutput

        place = self.requests.setdefault(request_id, len(self.requests))
        if place in self.fails:
            raise TimeoutError("the server is gone")
        calls = self.calls.setdefault(place, [])
        text = self.texts[place][len(calls)]
        calls.append((list(prompt_ids), list(image_data), sampling_params))
        ids = text if isinstance(text, list) else self.written(text)
        await asyncio.sleep(0)
        step = {"global_steps": 3, "min_global_steps": 3, "max_global_steps": 3 + len(calls)}
        return TokenOutput(token_ids=ids, log_probs=[-0.5] * len(ids), extra_fields=step)


class FakeQueue:
    """The calls that the worker makes to TransferQueue, kept."""

    def __init__(self) -> None:
        self.rows: dict[str, Any] = {}
        self.status: dict[str, str] = {}

    async def async_kv_put(self, key: str, partition_id: str, tag: dict[str, Any]) -> None:
        self.status[key] = tag["status"]

    async def async_kv_batch_put(self, keys, fields, tags, partition_id) -> None:
        for place, key in enumerate(keys):
            self.rows[key] = (fields[place], tags[place])


def verl_config(folder: Path) -> Any:
    """The launch script's configuration, composed by verl itself; validates every key."""
    from omegaconf import OmegaConf

    variables = os.environ | {"PYTHON": sys.executable, "MODEL": str(folder), "DATA": str(folder)}
    command = [str(REPOSITORY / "runs" / "verl_7b.sh"), "--cfg", "job"]
    out = subprocess.run(command, env=variables, capture_output=True, text=True, cwd=folder)
    assert out.returncode == 0, out.stderr[-2000:]
    return OmegaConf.create(out.stdout)


def verl_worker(folder: Path, processor: Any, server_class: type[FakeServer]) -> tuple[Any, Any, FakeQueue]:
    """verl's own worker, made without Ray actors and without loading a model."""
    import types

    from omegaconf import OmegaConf
    from transformers.models.qwen2_5_vl import Qwen2_5_VLConfig, Qwen2_5_VLModel
    from verl.experimental.agent_loop import agent_loop
    from verl.trainer.ppo.v1 import agent_loop_tq
    from verl.utils.config import omega_conf_to_dataclass
    from verl.utils.dataset.rl_dataset import RLHFDataset

    config = verl_config(folder)
    os.environ |= {"IBISAGENT_VERL_DATA": str(folder), "IBISAGENT_VERL_TOOL": "classical"}
    entry = OmegaConf.load(REPOSITORY / "runs" / "verl_agent_loop.yaml")[0]
    entry.settings = {"max_turns": SETTINGS.max_turns, "verbs": ["Undo"]}
    entry.max_tokens = 128
    agent_loop._agent_loop_registry[entry.name] = entry
    # as verl.utils.tokenizer.hf_processor does, whose AutoProcessor needs torchvision
    processor.config = Qwen2_5_VLConfig.from_pretrained(folder / "model")
    for name in ("get_rope_index", "get_vision_position_ids"):
        if hasattr(Qwen2_5_VLModel, name):
            setattr(processor, name, types.MethodType(getattr(Qwen2_5_VLModel, name), processor))
    worker_class = agent_loop_tq.AgentLoopWorkerTQ.__ray_metadata__.modified_class
    worker = worker_class.__new__(worker_class)
    worker.config, worker.processor, worker.tokenizer = config, processor, processor.tokenizer
    worker.rollout_config = omega_conf_to_dataclass(config.actor_rollout_ref.rollout)
    worker.dataset_cls, worker.hf_model_type = RLHFDataset, "qwen2_5_vl"
    worker.mm_processor_kwargs, worker.tools, worker.distillation_enabled = {}, [], False
    worker.reward_loop_worker_handles, worker.background_tasks = None, set()
    worker.llm_client = server_class(processor, config)
    queue = FakeQueue()
    agent_loop_tq.tq = queue
    return worker, worker.llm_client, queue


async def verl_group(worker: Any, row: dict[str, Any], uid: str, size: int) -> None:
    """`size` rollouts of one row through the worker's own code."""
    prompt = {
        key: row[key] for key in ("raw_prompt", "extra_info", "reward_model", "data_source", "agent_name")
    }
    prompt |= {"uid": uid, "__rollout_n__": size, "global_steps": 3, "index": 0}
    where = {"step": 3, "sample_index": 0, "rollout_n": 0, "validate": False}
    await worker._run_prompt(prompt, {"temperature": 1.0, "logprobs": True}, trajectory=where, trace=False)


def verl_rows(found: list[Recording], folder: Path, processor: Any) -> Any:
    """The rows as verl's own data set reads them from our parquet."""
    from omegaconf import OmegaConf
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from ibisagent.training.verl_rows import write_rows

    write_rows([one.sample for one in found], folder, "train")
    options = {
        "max_prompt_length": 1024,
        "filter_overlong_prompts": False,
        "cache_dir": str(folder / "cache"),
    }
    path = str(folder / "train.parquet")
    return RLHFDataset(path, processor.tokenizer, OmegaConf.create(options), processor)


def through_verl(folder: Path, check: Checks) -> None:
    from transformers import __version__ as transformers_version
    from verl import __version__ as verl_version

    import ibisagent.training.verl as ours

    print(f"verl {verl_version}, transformers {transformers_version}")
    processor = tiny(folder / "model")
    found = recordings()
    rows = verl_rows(found, folder, processor)
    worker, server, queue = verl_worker(folder, processor, FakeServer)
    ours.Driver = Remembered  # type: ignore[misc]

    async def play() -> None:
        for place, one in enumerate(found):
            server.texts[place] = one.texts
            await verl_group(worker, rows[place], f"u{place}", 1)

    asyncio.run(play())
    pad, ends = processor.tokenizer.pad_token_id, processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    image_token = processor.image_token_id
    for place, one in enumerate(found):
        where, driver = one.name, Remembered.made[place]
        check("calls of the server", len(server.calls[place]) == len(one.texts), where)
        for (ids, images, params), shown in zip(server.calls[place], one.shown, strict=True):
            check.pictures(images, shown, where)
            check("prompt tokens of a turn", ids == token_ids(processor, shown), where)
            check("picture tokens cannot be sampled", image_token in params["logit_bias"], where)
        check.masks(driver.episode(), one.episode, where)
        fields, tag = queue.rows[f"u{place}_0_0"]
        check("the reward", bool(np.isclose(fields["rm_scores"].sum().item(), one.reward, atol=1e-6)), where)
        check("the reward stands on the last token", fields["rm_scores"][-1].item() != 0, where)
        written = [token for text in one.texts for token in [*processor.tokenizer(text)["input_ids"], ends]]
        mask, ids = fields["response_mask"].bool(), fields["responses"]
        check("trained tokens are the policy's", ids[mask].tolist() == written, where)
        check(
            "untrained log-probabilities are 0", bool((fields["rollout_log_probs"][~mask] == 0).all()), where
        )
        last = server.calls[place][-1][0]
        whole = [*last, *processor.tokenizer(one.texts[-1])["input_ids"], ends]
        check("prompt and response are the whole conversation", fields["input_ids"].tolist() == whole, where)
        grid = fields["multi_modal_inputs"]["image_grid_thw"]
        features = int(grid.prod(-1).sum()) // 4
        check(
            "picture tokens and features", int((fields["input_ids"] == image_token).sum()) == features, where
        )
        check(
            "no padding, positions for all",
            pad not in whole and fields["position_ids"].shape[-1] == len(whole),
        )
        check(
            "staleness stamps", tag["min_global_steps"] == 3 and tag["max_global_steps"] == 3 + len(one.texts)
        )
    verl_faults(worker, server, queue, rows, found, check)
    verl_odd_replies(worker, server, queue, rows, found, processor, check)
    verl_advantages(check)
    verl_single_turn(folder, found, processor, check)


def verl_faults(
    worker: Any, server: Any, queue: Any, rows: Any, found: list[Recording], check: Checks
) -> None:
    """In a group of three one server call and then one tool call fails; two rows are left of it."""
    import ibisagent.training.verl as ours

    [place] = [place for place, one in enumerate(found) if one.name == "noisy 0"]

    def play(uid: str, fails: set[int]) -> None:
        server.requests, server.calls, server.fails = {}, {}, fails
        server.texts = dict.fromkeys(range(3), found[place].texts)
        asyncio.run(verl_group(worker, rows[place], uid, 3))

    play("server", {1})
    check("a failed server call leaves two of three", sum(k.startswith("server_") for k in queue.rows) == 2)
    check("its group goes on", queue.status["server"] == "finished")
    loaded, _ = ours._workshop("classical", "cpu")
    predict, calls = loaded.predict, []

    def broken(requests: Any) -> Any:
        calls.append(1)
        if len(calls) == 1:
            raise ToolError("the tool is gone")
        return predict(requests)

    loaded.predict = broken  # type: ignore[method-assign]
    play("tool", set())
    loaded.predict = predict  # type: ignore[method-assign]
    check("a failed tool call leaves two of three", sum(k.startswith("tool_") for k in queue.rows) == 2)
    check("its group goes on", queue.status["tool"] == "finished")


def verl_odd_replies(
    worker: Any, server: Any, queue: Any, rows: Any, found: list[Recording], processor: Any, check: Checks
) -> None:
    """Replies without an end, with a picture token in them, and a budget that is used up."""
    [place] = [place for place, one in enumerate(found) if one.name == "noisy 0"]
    one, stop = found[place], "<think> a </think> <action> Terminate </action> <answer> b </answer>"
    click = "<think> a </think> <action> Positive Point (0.4, 0.4) </action>"
    plain = processor.tokenizer(click)["input_ids"]

    def play(uid: str, texts: list[Any]) -> tuple[Any, Driver]:
        server.requests, server.calls, server.fails, server.texts = {}, {}, set(), {0: texts}
        asyncio.run(verl_group(worker, rows[place], uid, 1))
        return queue.rows[f"{uid}_0_0"][0], Remembered.made[-1]

    def shown(texts: list[str]) -> Any:
        return record("noisy 0", replace(one.sample, instruction=_untagged(one)), fixed(texts))

    wanted = shown([click, stop])
    for uid, first in (("cut", plain), ("pictured", [*plain, processor.image_token_id, *plain])):
        fields, driver = play(uid, [first, stop])
        check.masks(driver.episode(), wanted.episode, uid)
        check(
            "prompt tokens after an odd reply", server.calls[0][1][0] == token_ids(processor, wanted.shown[1])
        )
        own = fields["responses"][fields["response_mask"].bool()].tolist()
        check("an end that was not sampled is not trained", own == [*plain, *server.written(stop)], uid)
        made = fields["rm_scores"].sum().item()
        check("the reward after an odd reply", bool(np.isclose(made, wanted.reward, atol=1e-6)), uid)
    rollout_config = worker.config.actor_rollout_ref.rollout
    before, room = rollout_config.response_length, 250  # one turn, then no room for 128 tokens
    rollout_config.response_length = room
    fields, driver = play("budget", [click, stop])
    rollout_config.response_length = before
    check("a budget that is used up is the turn limit", driver.episode().status == "turn_limit")
    check("and its row stays", len(fields["responses"]) <= room and bool(fields["response_mask"].any()))


def _untagged(one: Recording) -> str:
    return one.sample.instruction.removesuffix(f" ({one.name})")


def verl_advantages(check: Checks) -> None:
    """Our estimator is found by name and gives METHOD's advantages; verl's own differs by a factor."""
    import torch
    from verl.trainer.ppo import core_algos

    import ibisagent.training.verl_advantage  # noqa: F401  as VERL_USE_EXTERNAL_MODULES does

    rewards, groups = [0.1, 0.5, 0.9, 0.3, 0.3, 0.7], ["a", "a", "a", "b", "b", "c"]
    scores, mask = torch.zeros(6, 4), torch.tensor([[1.0, 0.0, 1.0, 0.0]] * 6)
    scores[:, 2] = torch.tensor(rewards)
    given = {"token_level_rewards": scores, "response_mask": mask, "index": np.array(groups), "config": None}
    made, _ = core_algos.get_adv_estimator_fn("ibisagent")(**given)
    theirs, _ = core_algos.get_adv_estimator_fn("grpo")(**given)
    wanted = torch.tensor([-(1.5**0.5), 0, 1.5**0.5, 0, 0, 0])
    check("advantages of METHOD", torch.allclose(made, wanted[:, None] * mask, atol=1e-5))
    check("as verl's, but for n - 1", torch.allclose(theirs[:3] * 1.5**0.5, made[:3], atol=1e-4))
    print(f"a group of one: ours {made[5, 0]:.2f}, verl's own grpo {theirs[5, 0]:.2f}")


def verl_single_turn(folder: Path, found: list[Recording], processor: Any, check: Checks) -> None:
    """`compute_score` as verl loads it, against a one-turn episode of our loop."""
    from omegaconf import OmegaConf
    from verl.trainer.ppo.reward import get_custom_reward_fn
    from verl.utils.dataset.rl_dataset import RLHFDataset

    from ibisagent.training.verl_rows import write_rows

    chosen = {"path": "pkg://ibisagent.training.verl", "name": "compute_score"}
    chosen["reward_kwargs"] = {"folder": str(folder), "tool": "classical"}
    score = get_custom_reward_fn(OmegaConf.create({"reward": {"custom_reward_function": chosen}}))
    assert score is not None
    write_rows([one.sample for one in found], folder, "single", single_turn=True)
    options = {
        "max_prompt_length": 1024,
        "filter_overlong_prompts": False,
        "cache_dir": str(folder / "cache"),
    }
    path = str(folder / "single.parquet")
    rows = RLHFDataset(path, processor.tokenizer, OmegaConf.create(options), processor)
    for row, one in zip(rows, found, strict=True):
        if one.sample.start_mask is None:
            image = next(
                p["image"]
                for m in row["raw_prompt"]
                for p in m["content"]
                if isinstance(p, dict) and "image" in p
            )
            check.pictures([image], one.shown[0], f"{one.name}, single turn")
        settings = replace(SETTINGS, max_turns=1, retries=0, verbs=BASE_VERBS)
        [episode] = collect(rollout([one.sample], fixed(one.texts[:1]), ClassicalTool(), settings))
        wanted, truth = score_episode(episode, SHAPED).total, row["reward_model"]["ground_truth"]
        made = score("ibisagent", one.texts[0], truth, extra_info=row["extra_info"])
        check("reward of a single turn", bool(np.isclose(made["score"], wanted)), one.name)


# --- TRL ----------------------------------------------------------------------------------------


def through_trl(folder: Path, check: Checks) -> None:
    import torch
    from datasets import Dataset
    from transformers import Qwen2_5_VLForConditionalGeneration
    from transformers import __version__ as transformers_version
    from trl import GRPOConfig, GRPOTrainer
    from trl import __version__ as trl_version

    import ibisagent.training.trl as ours

    print(f"TRL {trl_version}, transformers {transformers_version}")
    os.environ["TRL_EXPERIMENTAL_SILENCE"] = "1"
    processor = ours.prepare(tiny(folder / "model"))
    found = recordings()
    ours.Driver = Remembered  # type: ignore[misc]
    samples = [one.sample for one in found]
    size = len(found)
    options = GRPOConfig(
        output_dir=str(folder / "out"),
        per_device_train_batch_size=size,
        num_generations=size,
        max_completion_length=6000,
        max_steps=1,
        report_to=[],
        use_cpu=True,
        logging_strategy="no",
        save_strategy="no",
    )
    model = Qwen2_5_VLForConditionalGeneration.from_pretrained(folder / "model", dtype=torch.float32)
    before = {name: value.clone() for name, value in model.named_parameters()}
    factory = ours.environment_factory(samples, ClassicalTool(), SETTINGS)
    trainer = GRPOTrainer(
        model,
        reward_funcs=ours.episode_rewards,
        args=options,
        train_dataset=Dataset.from_list(ours.dataset_rows(samples, SETTINGS)),
        processing_class=processor,
        environment_factory=factory,
    )
    end = processor.tokenizer.convert_tokens_to_ids("<|im_end|>")
    scripts = [
        processor.tokenizer(text)["input_ids"] + [end] for one in found for text in [*one.texts, "more"]
    ]
    starts = np.cumsum([0] + [len(one.texts) + 1 for one in found])
    calls: list[list[tuple[list[int], list[Any]]]] = [[] for _ in found]
    prompts: dict[tuple[int, ...], int] = {}

    def generate(prompt_ids, images, multimodal_fields, num_generations, has_tool_images=False):
        made = []
        for ids, given in zip(prompt_ids, images, strict=True):
            # which rollout asks: its prompt begins as it did at first
            place = next((p for start, p in prompts.items() if tuple(ids[: len(start)]) == start), None)
            if place is None:
                place = len(prompts)
                prompts[tuple(ids)] = place
            calls[place].append((list(ids), list(given)))
            made.append(list(scripts[starts[place] + len(calls[place]) - 1]))
        return made, None

    trainer._generate_single_turn = generate
    rows = ours.dataset_rows(samples, SETTINGS)
    trainer.model.train()
    Remembered.made.clear()
    output = trainer._generate_and_score_completions([dict(row) for row in rows])
    surplus = 0
    for place, one in enumerate(found):
        where, driver = one.name, Remembered.made[place]
        extra = len(calls[place]) - len(one.texts)
        surplus += extra
        check("calls for a text", extra == (one.episode.status != "terminated"), where)
        for (ids, images), shown in zip(calls[place], one.shown, strict=False):
            check.pictures(images, shown, where)
            check("prompt tokens of a turn", ids == token_ids(processor, shown), where)
        check.masks(driver.episode(), one.episode, where)
        made = driver.reward().total
        check("the reward", made is not None and bool(np.isclose(made, one.reward)), where)
        mask = (output["tool_mask"] * output["completion_mask"])[place].bool()
        texts = [*one.texts, *["more"] * extra]
        written = [token for text in texts for token in [*processor.tokenizer(text)["input_ids"], end]]
        check(
            "trained tokens are the policy's",
            output["completion_ids"][place][mask].tolist() == written,
            where,
        )
    rewards = np.array([one.reward for one in found])
    spread = rewards.std(ddof=1)
    wanted = (rewards - rewards.mean()) / (spread + 1e-4)
    check("TRL's advantages", bool(np.allclose(output["advantages"].numpy(), wanted, atol=1e-4)))
    print(f"surplus replies after an end without Terminate: {surplus} of {sum(map(len, calls))}")
    trl_exclusion(ours, found[1], check)
    trainer.current_gradient_accumulation_steps = 1  # as `train` sets it
    loss = trainer.compute_loss(trainer.model, output)
    loss.backward()
    moved = sum(float(p.grad.abs().sum()) > 0 for p in trainer.model.parameters() if p.grad is not None)
    check("TRL's loss reaches the weights", bool(torch.isfinite(loss)) and moved > 0.5 * len(before))


def trl_exclusion(ours: Any, one: Recording, check: Checks) -> None:
    """A rollout with an outside fault has no reward; TRL leaves such out of mean and spread."""

    class Broken(ClassicalTool):
        def predict(self, requests: Any) -> Any:
            raise ToolError("the tool is gone")

    environment = ours.environment_factory([one.sample], Broken(), SETTINGS)()
    environment.reset(sample_id=one.sample.sample_id)
    environment.reply("<think> a </think> <action> Positive Point (0.4, 0.4) </action>")
    completion = [{"role": "assistant", "content": "bye"}]
    check("a failed tool call has no reward", ours.episode_rewards([completion], [environment]) == [None])


# --- command line -------------------------------------------------------------------------------


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--engine", choices=("verl", "trl"), required=True)
    engine = parser.parse_args().engine
    check = Checks()
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        (through_verl if engine == "verl" else through_trl)(Path(folder), check)
    for what, count in check.counts.items():
        print(f"{count:5d}  {what}")
    print(f"{sum(check.counts.values())} comparisons, {check.failed} differ")
    return int(bool(check.failed))


if __name__ == "__main__":
    sys.exit(main())
