"""Messages to model inputs for Qwen2.5-VL, for pictures only.

torchvision and qwen_vl_utils are never imported: pictures are preprocessed with PIL, and at sizes
that are multiples of 28 (`VIEW`) the image processor does not resize at all. Video is left out.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
from jinja2 import TemplateError
from transformers import AutoTokenizer, BatchFeature, Qwen2_5_VLProcessor
from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

from ibisagent.errors import InputError, PolicyError
from ibisagent.render import resize_pixels
from ibisagent.types import VLM_VIEW, Message, Pixels

VIEW = VLM_VIEW
MAX_ASPECT = 200  # the image processor refuses longer pictures

# The released layout, for folders whose training run dropped the template.
DEFAULT_TEMPLATE = (
    "{% for turn in messages %}{{ '<|im_start|>' + turn.role + '\n' }}"
    "{% if turn.content is string %}{{ turn.content }}{% else %}{% for part in turn.content %}"
    "{{ '<|vision_start|><|image_pad|><|vision_end|>' if part.type == 'image' else part.text }}"
    "{% endfor %}{% endif %}{{ '<|im_end|>\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


class ImageOnlyProcessor(Qwen2_5_VLProcessor):
    """The stock processor without its video half, which needs torchvision."""

    def __init__(
        self, image_processor: Any = None, tokenizer: Any = None, chat_template: str | None = None
    ) -> None:
        super().__init__(image_processor, tokenizer, chat_template=chat_template)


def load_processor(source: str) -> ImageOnlyProcessor:
    """PIL image processor, tokenizer and chat template of a folder or hub id; pads on the left.

    Raises InputError where the template cannot carry pictures, OSError where files are absent.
    """
    tokenizer = AutoTokenizer.from_pretrained(source, trust_remote_code=False)
    tokenizer.padding_side = "left"
    if tokenizer.pad_token is None:
        tokenizer.pad_token = tokenizer.eos_token
    stored, _ = ImageOnlyProcessor.get_processor_dict(source)
    template = stored.get("chat_template") or tokenizer.chat_template or DEFAULT_TEMPLATE
    processor = ImageOnlyProcessor(Qwen2VLImageProcessorPil.from_pretrained(source), tokenizer, template)
    picture = np.zeros((28, 28, 3), np.uint8)
    try:
        prompt_text(processor, [Message("system", "s"), Message("user", "u", (picture,))])
    except PolicyError as error:
        raise InputError(error.rule, error.value, error.fix) from error
    return processor


def prompt_text(processor: ImageOnlyProcessor, messages: Sequence[Message]) -> str:
    """The chat template over messages, ending where the reply begins; one `<|image_pad|>` a picture.

    Text cannot write control tokens: `<|` in it becomes `< |`. Raises PolicyError where the template
    drops pictures, as text-only templates do, or refuses the conversation.
    """
    conversation: list[Any] = []
    for message in messages:
        text = message.text.replace("<|", "< |")
        parts = [{"type": "image"} for _ in message.images] + [{"type": "text", "text": text}]
        conversation.append({"role": message.role, "content": parts if message.images else text})
    fix = "put the chat_template.json of the base checkpoint into the folder"
    try:
        prompt = processor.apply_chat_template(conversation, tokenize=False, add_generation_prompt=True)
    except (TemplateError, TypeError) as error:
        raise PolicyError("the chat template must take pictures", str(error), fix) from error
    wanted, written = sum(len(message.images) for message in messages), prompt.count(processor.image_token)
    if wanted != written:
        raise PolicyError("the chat template must keep every picture", f"{written} of {wanted}", fix)
    return prompt


def fit_picture(pixels: Pixels, factor: int = 28) -> Pixels:
    """Pixels (uint8 HxWx3) within the image processor's limits: sides >= `factor`, aspect <= 200.

    Others are stretched, so normalised coordinates stay what they were; most come back untouched.
    """
    height, width = (max(side, factor) for side in pixels.shape[:2])
    return resize_pixels(pixels, min(height, MAX_ASPECT * width), min(width, MAX_ASPECT * height))


def encode(processor: ImageOnlyProcessor, conversations: Sequence[Sequence[Message]]) -> BatchFeature:
    """Model inputs for a batch, padded as the tokenizer says.

    input_ids, attention_mask, mm_token_type_ids: int64 BxL. pixel_values: float32, one row of
    3 x 2 x 14 x 14 normalised values per patch of all pictures in order; image_grid_thw: int64 Nx3.
    """
    factor = processor.image_processor.patch_size * processor.image_processor.merge_size
    pictures = [
        fit_picture(pixels, factor)
        for messages in conversations
        for message in messages
        for pixels in message.images
    ]
    return processor(
        text=[prompt_text(processor, messages) for messages in conversations],
        images=pictures or None,
        input_data_format="channels_last",
        padding=True,
        return_tensors="pt",
    )
