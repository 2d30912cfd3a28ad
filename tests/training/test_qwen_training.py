"""Training a Qwen2.5-VL-layout policy, on a tiny random checkpoint in the released folder layout."""

from dataclasses import replace

import numpy as np
import pytest
import torch
from policies.tiny_qwen import write_checkpoint

from ibisagent.errors import InputError
from ibisagent.policies.qwen import QwenPolicy
from ibisagent.policies.qwen_processor import encode
from ibisagent.training.loss import policy_loss
from ibisagent.training.qwen import QwenTrainable
from ibisagent.training.qwen_folder import merge
from ibisagent.training.trainable import Example, Written
from ibisagent.types import BASE_VERBS, Message, Observation

STOP = "<think> It fits. </think> <action> Terminate </action> <answer> The liver is enlarged. </answer>"
CLICK = "<think> The liver is at the left. </think> <action> Positive Point (0.2500, 0.5000) </action>"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return write_checkpoint(tmp_path_factory.mktemp("models") / "tiny-qwen")


@pytest.fixture(scope="module")
def trainable(folder):
    """Untouched by tests; those that train load their own."""
    return load(folder)


def load(folder, **options):
    defaults = {"device": "cpu", "max_new_tokens": 12, "temperature": 1.0}
    return QwenTrainable.load(str(folder), **(defaults | options))


def picture(seed, height=56, width=84):
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


def observe(*pictures, replies=(), seed=0, text="Find the liver."):
    """A conversation that shows a picture in each turn; `replies` are the earlier texts."""
    messages = [Message("system", "You are careful.")]
    for number, pixels in enumerate(pictures):
        if number:
            messages.append(Message("assistant", replies[number - 1]))
        messages.append(Message("user", text, (pixels,) if pixels is not None else ()))
    image = pictures[-1] if pictures[-1] is not None else picture(0)
    return Observation("s", text, image, tuple(messages), None, (), BASE_VERBS, len(pictures), 0, seed)


def single(seed, text=STOP, **written):
    return Example(
        observe(picture(seed), text="Find the liver." + " Now." * seed), (Written(text, **written),)
    )


def ids_of(trainable, text):
    return tuple(trainable.policy.processor.tokenizer(text, add_special_tokens=False)["input_ids"])


def im_end(trainable):
    return trainable.policy.processor.tokenizer.get_vocab()["<|im_end|>"]


def spelled(trainable, text):
    """The same text in single bytes: a tokenisation that the tokenizer would not choose."""
    backend = trainable.policy.processor.tokenizer.backend_tokenizer
    split = backend.pre_tokenizer.pre_tokenize_str(text)
    vocabulary = trainable.policy.processor.tokenizer.get_vocab()
    ids = tuple(vocabulary[letter] for word, _ in split for letter in word)
    assert trainable.policy.processor.tokenizer.decode(ids) == text and ids != ids_of(trainable, text)
    return ids


def log_probs(trainable, examples):
    """Log-probabilities of the trained tokens, one tensor an example."""
    batch = trainable.collate(examples)
    with torch.no_grad():
        found = trainable.module(**batch.inputs)
    assert found.dtype == torch.float32 and found.shape == batch.mask.shape
    assert (found[~batch.mask] == 0).all()
    return [row[mask] for row, mask in zip(found, batch.mask, strict=True)]


def by_hand(trainable, example, spliced):
    """Log-probabilities of `spliced` after the prompt that the policy would read, with whole scores."""
    policy = trainable.policy
    prompt = encode(policy.processor, [example.observation.messages])
    ids = torch.tensor([[*prompt["input_ids"][0].tolist(), *spliced]])
    kind = torch.zeros_like(ids)
    kind[:, : prompt["input_ids"].shape[1]] = prompt["mm_token_type_ids"]
    pictures = {k: prompt[k] for k in ("pixel_values", "image_grid_thw") if k in prompt}
    with torch.no_grad():
        scores = (
            policy.model(
                input_ids=ids,
                attention_mask=torch.ones_like(ids),
                mm_token_type_ids=kind,
                use_cache=False,
                **pictures,
            )
            .logits[0]
            .double()
        )
    scores[:, policy.banned] = -torch.inf
    places = torch.arange(ids.shape[1] - len(spliced), ids.shape[1])
    return torch.log_softmax(scores / policy.temperature, -1)[places - 1, torch.tensor(spliced)].float()


# --- which tokens -----------------------------------------------------------------------------


def test_a_supervised_text_is_trained_with_its_end_after_the_policy_s_own_prompt(trainable):
    example = single(1)
    batch = trainable.collate([example])
    prompt = encode(trainable.policy.processor, [example.observation.messages])
    start = prompt["input_ids"].shape[1]
    assert batch.inputs["input_ids"][0, :start].tolist() == prompt["input_ids"][0].tolist()
    assert torch.equal(batch.inputs["pixel_values"], prompt["pixel_values"])
    assert torch.equal(batch.inputs["image_grid_thw"], prompt["image_grid_thw"])
    assert not batch.mask[0, :start].any() and batch.mask[0, start:].all()
    own = batch.inputs["input_ids"][0, start:].tolist()
    assert own == [*ids_of(trainable, STOP), im_end(trainable)]
    assert (batch.weights[0, start:] == 1).all() and (batch.weights[0, :start] == 0).all()


def test_sampled_ids_are_trained_as_sampled_and_never_tokenised_again(trainable):
    sampled = (*spelled(trainable, CLICK), im_end(trainable))
    example = single(1, CLICK, token_ids=sampled, weight=-0.5)
    batch = trainable.collate([example])
    assert tuple(batch.inputs["input_ids"][batch.mask].tolist()) == sampled
    assert (batch.weights[batch.mask] == -0.5).all()
    torch.testing.assert_close(
        log_probs(trainable, [example])[0], by_hand(trainable, example, sampled), atol=1e-5, rtol=0
    )


def test_log_probabilities_are_those_of_the_temperature_that_texts_were_sampled_at(folder):
    cool = load(folder, temperature=0.4)
    example = single(1, CLICK)
    ids = [*ids_of(cool, CLICK), im_end(cool)]
    [found] = log_probs(cool, [example])
    torch.testing.assert_close(found, by_hand(cool, example, ids), atol=1e-5, rtol=0)
    assert (found - log_probs(load(folder), [example])[0]).abs().max() > 0.1


def test_a_text_that_was_cut_off_gets_no_end(trainable):
    sampled = spelled(trainable, CLICK)[:7]
    batch = trainable.collate([single(1, CLICK[:7], token_ids=sampled)])
    assert tuple(batch.inputs["input_ids"][batch.mask].tolist()) == sampled


def conversation(trainable, cut_off=False):
    """Three turns: sampled in single bytes, supervised, and sampled; each with a weight of its own."""
    first = spelled(trainable, CLICK)
    texts = (
        Written(CLICK, token_ids=first if cut_off else (*first, im_end(trainable)), weight=2.0),
        Written(STOP, weight=-1.0),
        Written("The liver", token_ids=(*spelled(trainable, "The liver"), im_end(trainable)), weight=0.0),
    )
    seen = observe(picture(1), picture(2, 56, 56), picture(3), replies=(CLICK, STOP))
    return Example(seen, texts)


@pytest.mark.parametrize("cut_off", [False, True])
def test_each_text_of_a_conversation_has_its_weight_and_closes_once(trainable, cut_off):
    example = conversation(trainable, cut_off)
    batch = trainable.collate([example])
    ids, mask, weights = batch.inputs["input_ids"][0], batch.mask[0], batch.weights[0]
    text = trainable.policy.processor.tokenizer.decode(ids)
    assert text.count("<|im_end|>") == text.count("<|im_start|>") == 7
    assert CLICK + "<|im_end|>\n<|im_start|>user" in text and text.endswith("The liver<|im_end|>")
    for written, weight in zip(example.texts, (2.0, -1.0, 0.0), strict=True):
        own = written.token_ids or (*ids_of(trainable, STOP), im_end(trainable))
        if weight:
            assert tuple(ids[weights == weight].tolist()) == own
    assert mask.sum() == sum(len(w.token_ids or (*ids_of(trainable, STOP), 0)) for w in example.texts)
    assert batch.inputs["image_grid_thw"].tolist() == [[1, 4, 6], [1, 4, 4], [1, 4, 6]]


def test_one_pass_over_an_episode_gives_what_each_turn_gives_alone(trainable):
    whole = conversation(trainable)
    messages, texts = whole.observation.messages, whole.texts
    together = log_probs(trainable, [whole])[0]
    alone = []
    for number in range(3):
        seen = replace(whole.observation, messages=messages[: 2 + 2 * number])
        earlier = [replace(written, weight=None) for written in texts[:number]]
        if number == 2:  # the supervised text has no ids; they are those of its tokenisation
            ids = (*ids_of(trainable, STOP), im_end(trainable))
            earlier[1] = Written(STOP, token_ids=ids, weight=None)
        alone += log_probs(trainable, [Example(seen, (*earlier, texts[number]))])
    torch.testing.assert_close(together, torch.cat(alone), atol=1e-5, rtol=0)


def test_earlier_texts_that_are_only_read_are_encoded_as_the_policy_reads_them(trainable):
    seen = observe(picture(1), picture(2), replies=("\n\n" + CLICK,))
    example = Example(seen, (Written("\n\n" + CLICK, weight=None), Written(STOP)))
    batch = trainable.collate([example])
    prompt = encode(trainable.policy.processor, [seen.messages])["input_ids"][0].tolist()
    assert batch.inputs["input_ids"][0, : len(prompt)].tolist() == prompt
    assert batch.mask.sum() == len(ids_of(trainable, STOP)) + 1


def test_control_tokens_in_a_supervised_text_stay_text(trainable):
    batch = trainable.collate([single(1, "a <|image_pad|> b <|im_start|>")])
    ids = batch.inputs["input_ids"][0].tolist()
    assert ids.count(trainable.policy.processor.image_token_id) == 2 * 3
    assert trainable.policy.processor.tokenizer.decode(ids).endswith(
        "a < |image_pad|> b < |im_start|><|im_end|>"
    )


# --- which values -----------------------------------------------------------------------------


def test_log_probabilities_equal_those_by_hand_with_whole_scores(trainable, monkeypatch):
    example = single(2)
    expected = by_hand(trainable, example, [*ids_of(trainable, STOP), im_end(trainable)])
    torch.testing.assert_close(log_probs(trainable, [example])[0], expected, atol=1e-5, rtol=0)
    monkeypatch.setattr("ibisagent.training.qwen.CHUNK", 3)
    torch.testing.assert_close(log_probs(trainable, [example])[0], expected, atol=1e-5, rtol=0)


@pytest.mark.parametrize("side", ["right", "left"])
def test_a_batch_gives_what_each_gives_alone_whatever_the_padding(trainable, side):
    examples = [single(1), conversation(trainable), Example(observe(None), (Written(CLICK),))]
    alone = [log_probs(trainable, [example])[0] for example in examples]
    batch = trainable.collate(examples)
    inputs = dict(batch.inputs)
    if side == "left":
        lengths = inputs["attention_mask"].sum(1).tolist()
        width = batch.mask.shape[1]
        turned = [torch.arange(width).roll(width - length) for length in lengths]
        for name in ("input_ids", "attention_mask", "mm_token_type_ids", "written"):
            inputs[name] = torch.stack([row[turn] for row, turn in zip(inputs[name], turned, strict=True)])
        positions = inputs["position_ids"]
        inputs["position_ids"] = torch.stack([positions[:, i, turn] for i, turn in enumerate(turned)], 1)
    with torch.no_grad():
        found = trainable.module(**inputs)
    for row, mask, expected in zip(found, inputs["written"], alone, strict=True):
        torch.testing.assert_close(row[mask], expected, atol=1e-5, rtol=0)


def test_under_unchanged_weights_the_ratio_to_generation_is_one(folder):
    trainable = load(folder, lora_rank=0)
    policy, generate, seen = trainable.policy, trainable.policy.model.generate, []

    def with_scores(**inputs):
        out = generate(**inputs, output_logits=True, return_dict_in_generate=True)
        seen.append(torch.stack(out.logits, 1))
        return out.sequences

    policy.model.generate = with_scores
    observations = [
        observe(picture(1), seed=1),
        observe(picture(2, 28, 28), picture(3), replies=(CLICK,), seed=2),
    ]
    replies = policy.act(observations)
    scores = seen[0].clone().index_fill(-1, torch.tensor(policy.banned), -torch.inf)
    examples = [
        Example(observations[0], (Written(replies[0].text, replies[0].token_ids),)),
        Example(
            observations[1], (Written(CLICK, weight=None), Written(replies[1].text, replies[1].token_ids))
        ),
    ]
    assert replies[0].token_ids != ids_of(trainable, replies[0].text)
    for row, reply, new in zip(scores, replies, log_probs(trainable, examples), strict=True):
        ids = torch.tensor(reply.token_ids)
        old = torch.log_softmax(row[: len(ids)], -1).gather(1, ids[:, None])[:, 0]
        torch.testing.assert_close(torch.exp(new - old), torch.ones(len(ids)), atol=1e-4, rtol=0)


def test_bfloat16_full_training_keeps_float32_weights_and_agrees_with_its_own_sampling(folder, tmp_path):
    trainable = load(folder, lora_rank=0, dtype="bfloat16")
    assert {p.dtype for p in trainable.module.parameters()} == {torch.float32}
    reply = trainable.policy.act([observe(picture(1))])[0]
    assert reply.error is None
    example = Example(observe(picture(1)), (Written(reply.text, reply.token_ids),))
    found = log_probs(trainable, [example])[0]
    assert torch.isfinite(found).all() and found.mean() > -6  # bfloat16 is coarse; ln 350 = 5.9
    trainable.save(tmp_path / "half")
    assert (
        QwenPolicy.load(str(tmp_path / "half"), dtype="bfloat16", device="cpu").model.dtype == torch.bfloat16
    )


# --- gradients --------------------------------------------------------------------------------


def gradients(trainable, examples):
    module = trainable.module
    module.train()
    batch = trainable.collate(examples)
    found = module(**batch.inputs)
    module.zero_grad()
    (torch.where(batch.mask, found, 0.0) * batch.weights).sum().backward()
    return {n: p.grad.clone() for n, p in module.named_parameters() if p.grad is not None}


def test_gradients_equal_those_of_whole_scores_with_and_without_checkpointing(folder):
    example = single(1)
    plain, saving = load(folder, lora_rank=0), load(folder, lora_rank=0, gradient_checkpointing=True)
    own = gradients(plain, [example])
    again = gradients(saving, [example])
    reference = load(folder, lora_rank=0)
    batch = reference.collate([example])
    inputs = {k: v for k, v in batch.inputs.items() if k not in ("written", "position_ids")}
    scores = (
        reference.policy.model(**inputs)
        .logits[0]
        .index_fill(-1, torch.tensor(reference.policy.banned), -1e30)
    )
    places = batch.mask[0].nonzero()[:, 0]
    chosen = torch.log_softmax(scores, -1)[places - 1, batch.inputs["input_ids"][0, places]]
    reference.policy.model.model.visual.requires_grad_(False)
    chosen.sum().backward()
    assert own.keys() == again.keys() and not any("visual" in name for name in own)
    for name, parameter in reference.module.named_parameters():
        if name in own:
            torch.testing.assert_close(own[name], parameter.grad, atol=2e-4, rtol=1e-4)
            torch.testing.assert_close(own[name], again[name], atol=1e-5, rtol=1e-5)


def test_checkpointing_does_not_reach_sampling(folder, trainable):
    saving = load(folder, gradient_checkpointing=True)
    seen = observe(picture(1), seed=4)
    gradients(saving, [single(1)])
    reply = saving.policy.act([seen])[0]
    assert reply.token_ids == trainable.policy.act([seen])[0].token_ids
    assert any(getattr(m, "gradient_checkpointing", False) for m in saving.module.modules())
    assert not any(module.training for module in saving.module.model.modules())


def test_a_text_of_weight_zero_or_none_moves_nothing(folder):
    trainable = load(folder, lora_rank=0)
    seen = observe(picture(1), picture(2), replies=(CLICK,))
    base = gradients(trainable, [Example(seen, (Written(CLICK, weight=None), Written(STOP)))])
    ids = (*ids_of(trainable, CLICK), im_end(trainable))
    zero = gradients(trainable, [Example(seen, (Written(CLICK, ids, weight=0.0), Written(STOP)))])
    assert base.keys() == zero.keys()
    for name in base:
        torch.testing.assert_close(base[name], zero[name], atol=1e-5, rtol=1e-5)
    nothing = gradients(trainable, [single(1, weight=0.0)])
    assert all((grad == 0).all() for grad in nothing.values())


def test_scores_of_prompt_and_picture_tokens_carry_no_gradient(folder):
    """The gradient at the hidden states before the head is zero wherever no trained token follows."""
    trainable = load(folder, lora_rank=0)
    kept = []
    trainable.policy.model.model.language_model.norm.register_forward_hook(
        lambda *call: (call[2].retain_grad(), kept.append(call[2]))[1]
    )
    batch = trainable.collate([conversation(trainable), single(1)])
    found = trainable.module(**batch.inputs)
    (found * batch.weights).sum().backward()
    reached = kept[0].grad.abs().sum(-1) > 0
    assert torch.equal(reached, (batch.weights != 0).roll(-1, 1))


def test_text_alone_runs_the_vision_tower_without_effect(folder):
    trainable = load(folder, lora_rank=0, freeze_vision=False)
    example = Example(observe(None), (Written(CLICK),))
    found = gradients(trainable, [example])
    visual = [grad for name, grad in found.items() if "visual" in name]
    assert visual and all((grad == 0).all() for grad in visual)
    expected = by_hand(trainable, example, [*ids_of(trainable, CLICK), im_end(trainable)])
    torch.testing.assert_close(log_probs(trainable, [example])[0], expected, atol=1e-5, rtol=0)


def test_a_batch_without_trained_tokens_still_has_a_gradient_of_zero(folder):
    trainable = load(folder)
    found = gradients(trainable, [single(1, weight=None)])
    assert found and all((grad == 0).all() for grad in found.values())


# --- what is trained --------------------------------------------------------------------------


def trained(trainable):
    return [name for name, p in trainable.module.named_parameters() if p.requires_grad]


def test_lora_covers_the_language_model_s_linear_layers_and_nothing_else(trainable, folder):
    names = trained(trainable)
    assert len(names) == 2 * 7 * 2 and all("language_model" in n and "lora_" in n for n in names)
    assert all(trainable.module.state_dict()[n].shape.count(8) == 1 for n in names)
    attention = trained(load(folder, lora_targets="attention", lora_rank=4))
    assert len(attention) == 2 * 4 * 2 and all("self_attn" in n for n in attention)
    seeing = trained(load(folder, freeze_vision=False))
    assert len([n for n in seeing if "visual" in n]) == 2 * (2 * 5 + 2)
    assert not [n for n in trained(load(folder, lora_rank=0)) if "visual" in n]
    assert any("visual" in n for n in trained(load(folder, lora_rank=0, freeze_vision=False)))


def test_a_new_adapter_changes_nothing_and_follows_its_seed(trainable, folder):
    example = single(1)
    plain = log_probs(load(folder, lora_rank=0), [example])[0]
    assert torch.equal(log_probs(trainable, [example])[0], plain)
    one, same, other = (load(folder, seed=seed).module.state_dict() for seed in (1, 1, 2))
    assert all(torch.equal(one[name], same[name]) for name in one)
    assert any(not torch.equal(one[name], other[name]) for name in one)


def descend(trainable, examples, steps, lr, loss):
    optimiser = torch.optim.AdamW([p for p in trainable.module.parameters() if p.requires_grad], lr=lr)
    losses = []
    for _ in range(steps):
        batch = trainable.collate(examples)
        value = loss(trainable.module(**batch.inputs), batch)
        optimiser.zero_grad()
        value.backward()
        optimiser.step()
        trainable.refresh()
        losses.append(float(value.detach()))
    return losses


def cross_entropy(found, batch):
    return -(torch.where(batch.mask, found, 0.0) * batch.weights).sum() / batch.mask.sum()


@pytest.fixture(scope="module")
def taught(folder):
    """A LoRA adapter after ten supervised steps on four texts, with the losses on the way."""
    trainable = load(folder)
    examples = [single(1), single(2, CLICK), single(3), conversation(trainable)]
    examples[3] = replace(examples[3], texts=tuple(replace(w, weight=1.0) for w in examples[3].texts))
    return trainable, descend(trainable, examples, 10, 2e-2, cross_entropy)


def test_supervised_steps_lower_the_loss(taught):
    _, losses = taught
    assert losses[-1] < 0.5 * losses[0]


def test_full_supervised_steps_lower_the_loss_and_leave_vision_alone(folder, tmp_path):
    trainable = load(folder, lora_rank=0)
    before = {n: p.clone() for n, p in trainable.module.named_parameters() if "visual" in n}
    losses = descend(trainable, [single(1), single(2, CLICK)], 8, 3e-3, cross_entropy)
    assert losses[-1] < 0.5 * losses[0]
    after = dict(trainable.module.named_parameters())
    assert all(torch.equal(before[name], after[name]) for name in before)
    trainable.save(tmp_path / "full")
    again = QwenTrainable.load(str(tmp_path / "full"), lora_rank=0, device="cpu", temperature=1.0)
    assert torch.equal(log_probs(again, [single(1)])[0], log_probs(trainable, [single(1)])[0])


def test_a_policy_gradient_step_raises_what_was_good_and_lowers_what_was_bad(folder):
    trainable = load(folder)
    good, bad = trainable.policy.act([observe(picture(1), seed=1), observe(picture(1), seed=2)])
    assert good.token_ids != bad.token_ids
    examples = [
        Example(observe(picture(1)), (Written(reply.text, reply.token_ids, weight),))
        for reply, weight in ((good, 1.0), (bad, -1.0))
    ]
    before = [values.sum() for values in log_probs(trainable, examples)]
    old = trainable.module(**trainable.collate(examples).inputs).detach()
    losses = descend(
        trainable, examples, 1, 1e-3, lambda new, b: policy_loss(new, old, b.weights, b.mask).loss
    )
    after = [values.sum() for values in log_probs(trainable, examples)]
    assert abs(losses[0] - (bad.tokens - good.tokens) / (bad.tokens + good.tokens)) < 0.1  # ratio 1
    assert after[0] > before[0] + 0.01 and after[1] < before[1] - 0.01


# --- folders ----------------------------------------------------------------------------------


def test_an_adapter_is_saved_loaded_by_the_policy_and_trained_further(taught, folder, tmp_path):
    trainable, _ = taught
    trainable.save(tmp_path / "adapter")
    assert "tiny-qwen" in (tmp_path / "adapter" / "adapter_config.json").read_text()
    assert str(folder.parent) not in (tmp_path / "adapter" / "adapter_config.json").read_text()
    with pytest.raises(InputError, match=rf"--policy qwen:BASE --adapter {tmp_path}/adapter, with"):
        QwenPolicy.load(str(tmp_path / "adapter"), device="cpu")
    policy = QwenPolicy.load(str(folder), adapter=str(tmp_path / "adapter"), device="cpu", max_new_tokens=12)
    trainable.policy.temperature = 0.0
    seen = [observe(picture(1))]
    assert policy.act(seen)[0].token_ids == trainable.policy.act(seen)[0].token_ids
    again = load(folder, adapter=str(tmp_path / "adapter"))
    assert trained(again) == trained(trainable)
    torch.testing.assert_close(
        log_probs(again, [single(1)])[0], log_probs(trainable, [single(1)])[0], atol=1e-6, rtol=0
    )
    assert descend(again, [single(1)], 2, 1e-3, cross_entropy)


def test_a_gathered_state_is_saved_in_place_of_the_module_s_own(taught, folder, tmp_path):
    state = taught[0].module.state_dict()
    load(folder).save(tmp_path / "adapter", state)
    again = load(folder, adapter=str(tmp_path / "adapter"))
    torch.testing.assert_close(
        log_probs(again, [single(1)])[0], log_probs(taught[0], [single(1)])[0], atol=1e-6, rtol=0
    )


def test_merged_scores_equal_those_with_the_adapter_and_the_folder_is_as_released(taught, folder, tmp_path):
    trainable, _ = taught
    trainable.save(tmp_path / "adapter")
    merge(str(folder), str(tmp_path / "adapter"), tmp_path / "merged")
    merged = load(tmp_path / "merged", lora_rank=0)
    examples = [single(1), conversation(merged)]
    inputs = {k: v for k, v in merged.collate(examples).inputs.items() if k != "written"}
    with torch.no_grad():
        ours, theirs = trainable.policy.model(**inputs).logits, merged.policy.model(**inputs).logits
    torch.testing.assert_close(theirs, ours, atol=1e-4, rtol=0)
    assert (ours - load(folder).policy.model(**inputs).logits).abs().max() > 0.1
    released = {path.name for path in folder.iterdir() if "safetensors" not in path.name}
    assert {path.name for path in (tmp_path / "merged").iterdir()} == released | {"model.safetensors"}
    for name in released:
        assert (tmp_path / "merged" / name).read_text().split() == (folder / name).read_text().split()
    with pytest.raises(InputError, match="into a new folder"):
        merge(str(folder), str(tmp_path / "adapter"), tmp_path / "merged")


def test_a_checkpoint_of_one_shard_replaces_one_of_two(folder, tmp_path):
    write_checkpoint(tmp_path / "tiny-qwen", seed=3)
    load(folder, lora_rank=0).save(tmp_path / "tiny-qwen")
    again = load(tmp_path / "tiny-qwen", lora_rank=0)
    assert torch.equal(log_probs(again, [single(1)])[0], log_probs(load(folder, lora_rank=0), [single(1)])[0])


# --- what goes wrong --------------------------------------------------------------------------


def test_a_conversation_above_the_cut_off_is_refused_by_name_not_cut(folder):
    trainable = load(folder, max_tokens=60)
    assert trainable.problem(single(1)) == "a conversation above 60 tokens"
    with pytest.raises(
        InputError, match=r"at most 60 tokens and is never cut; got \d+ in sample s, 6 of them"
    ):
        trainable.collate([single(1)])


def test_picture_tokens_that_were_sampled_are_refused(trainable):
    pad = trainable.policy.processor.image_token_id
    example = single(1, "x", token_ids=(5, pad, 6))
    assert trainable.problem(example) == "picture tokens that are not its pictures'"
    with pytest.raises(InputError, match=r"as many picture tokens as its 1 pictures fill; got 7, not 6"):
        trainable.collate([example])
    other = trainable.policy.processor.tokenizer.get_vocab()["<|vision_start|>"]
    for odd in (other, 9999, -1):
        with pytest.raises(InputError, match="are ones that this policy can write"):
            trainable.collate([single(1, "x", token_ids=(5, odd))])
    with pytest.raises(InputError, match="at least one token"):
        trainable.collate([single(1, "", token_ids=())])


def test_texts_that_do_not_belong_to_the_conversation(trainable):
    seen = observe(picture(1), picture(2), replies=(CLICK,))
    for texts in [(Written(STOP),), (Written("other", weight=None), Written(STOP))]:
        assert trainable.problem(Example(seen, texts)) == "texts that do not belong to the conversation"
    assert trainable.problem(Example(seen, (Written(CLICK, weight=None), Written(STOP)))) is None


def test_a_template_that_drops_earlier_texts(folder):
    trainable = load(folder)
    processor = trainable.policy.processor
    processor.chat_template = processor.chat_template.replace(
        "{{ m.content }}", "{% if m.role != 'assistant' %}{{ m.content }}{% endif %}", 1
    )
    with pytest.raises(InputError, match="must keep every earlier text; got 0 of 1"):
        seen = observe(picture(1), picture(2), replies=(CLICK,))
        trainable.collate([Example(seen, (Written(CLICK), Written(STOP)))])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"lora_rank": -1}, "lora_rank is 0"),
        ({"lora_targets": "some"}, "lora_targets is one of all-linear, attention"),
        ({"dtype": "float16"}, "float32 or bfloat16"),
        ({"max_tokens": 0}, "max_tokens is at least 1"),
        ({"adapter": "x/y", "lora_rank": 0}, "without an adapter"),
    ],
)
def test_options_that_cannot_be(folder, options, said):
    with pytest.raises(InputError, match=said):
        load(folder, **options)
