"""The embedded VLM before training: the geometry of LLaVA-1.5 (336 px, patch 14, 576 tokens, CLS, layer -2), small."""

from __future__ import annotations

import copy
from pathlib import Path

import torch
from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, normalizers, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vtc_demo import world

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
CHAT_TEMPLATE = (
    "{% for message in messages %}{{ message['role'] }}: "
    "{% if message['content'] is string %}{{ message['content'] }}{% else %}"
    "{% for part in message['content'] if part['type'] == 'image' %}<image>\n{% endfor %}"
    "{% for part in message['content'] if part['type'] == 'text' %}{{ part['text'] }}{% endfor %}{% endif %}"
    "{% if message['role'] == 'assistant' %}</s>{% else %} {% endif %}{% endfor %}"
    "{% if add_generation_prompt %}assistant:{% endif %}"
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """One token per word of the world, one per digit; anything else becomes <unk>."""
    digits = [str(d) for d in range(10)]
    words = [*SPECIAL, "?", ":", *digits, *("▁" + d for d in digits)]
    words += ["▁" + w for w in sorted({*world.words(), "user", "assistant"})]
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(words)}, unk_token="<unk>"))
    core.normalizer = normalizers.Sequence(
        [
            normalizers.Lowercase(),
            normalizers.Replace(
                Regex(r"[,.!;]"), ""
            ),  # typed questions may carry punctuation that the world does not use
            normalizers.Replace(Regex(r"\s+(?=[?:])"), ""),
            normalizers.Replace(Regex(r"\s+"), " "),
            normalizers.Strip(),
        ]
    )
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Metaspace(prepend_scheme="always"),
            pre_tokenizers.Split(Regex(r"▁?[0-9]"), "isolated"),
            pre_tokenizers.Split(Regex(r"[?:]"), "isolated"),
        ]
    )
    core.decoder = decoders.Metaspace(prepend_scheme="always")
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    return PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )


def build_processor(size: int = 336) -> LlavaProcessor:
    images = CLIPImageProcessorPil(
        size={"shortest_edge": size}, crop_size={"height": size, "width": size}, do_center_crop=True
    )
    return LlavaProcessor(
        image_processor=images,
        tokenizer=build_tokenizer(),
        patch_size=14,
        vision_feature_select_strategy="default",
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=CHAT_TEMPLATE,
    )


def build_config(vocab: int, width: int = 128, tower_layers: int = 6, llm_layers: int = 8) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=width,
        intermediate_size=4 * width,
        num_hidden_layers=tower_layers,
        num_attention_heads=width // 32,
        image_size=336,
        patch_size=14,
        projection_dim=width,
    )
    text = LlamaConfig(
        vocab_size=vocab,
        hidden_size=width,
        intermediate_size=352 * width // 128,
        num_hidden_layers=llm_layers,
        num_attention_heads=width // 32,
        num_key_value_heads=width // 32,
        max_position_embeddings=2048,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
        tie_word_embeddings=False,
    )
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=SPECIAL.index("<image>"),
        vision_feature_layer=-2,
        vision_feature_select_strategy="default",
        image_seq_length=576,
        tie_word_embeddings=False,
    )


def build_model(processor: LlavaProcessor) -> LlavaForConditionalGeneration:
    model = LlavaForConditionalGeneration(build_config(len(processor.tokenizer)))
    model.generation_config.eos_token_id = 2
    model.generation_config.pad_token_id = 0
    return model


def load(folder: Path) -> LlavaForConditionalGeneration:
    """A saved model in float32, to go on training."""
    if not (Path(folder) / "config.json").is_file():
        raise ValueError(f"no model in {folder}: it holds no config.json")
    return LlavaForConditionalGeneration.from_pretrained(folder, dtype=torch.float32, local_files_only=True)


def save(model: LlavaForConditionalGeneration, processor: LlavaProcessor, folder: Path) -> None:
    """Write the shipped form: half-precision weights (half the size; computed in float32 on a CPU)."""
    half = copy.deepcopy(model).to(torch.float16)
    for part in (half.config.text_config, half.config.vision_config):  # a loaded model carries float32 there
        part.dtype = None
    half.save_pretrained(folder)
    processor.save_pretrained(folder)
