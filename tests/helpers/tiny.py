"""A LLaVA with random weights and a word tokenizer, small enough to run hundreds of passes."""

import torch
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors
from transformers import (
    CLIPImageProcessorPil,
    CLIPVisionConfig,
    LlamaConfig,
    LlavaConfig,
    LlavaForConditionalGeneration,
    LlavaProcessor,
    PreTrainedTokenizerFast,
)

from vtc_demo.models import VLM
from vtc_demo.models.families.llava import LlavaAdapter

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>"]
WORDS = [
    "?",
    ":",
    "user",
    "assistant",
    *["what", "is", "the", "a", "red", "blue", "heart", "star", "key", "left", "of", "how", "many", "there"],
]
# A word before the image and several after it, so that both text spans are in play.
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : "
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}<image> {% else %}{{ p['text'] }}{% endif %}{% endfor %}"
    "{% endfor %}{% if add_generation_prompt %} assistant :{% endif %}"
)
QUESTION = "what is left of the red heart ?"


def processor(side: int, strategy: str = "default") -> LlavaProcessor:
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(SPECIAL + WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        pad_token="<pad>",
        bos_token="<s>",
        eos_token="</s>",
        unk_token="<unk>",
        extra_special_tokens={"image_token": "<image>"},
    )
    images = CLIPImageProcessorPil(size={"shortest_edge": side}, crop_size={"height": side, "width": side})
    return LlavaProcessor(
        image_processor=images,
        tokenizer=tokenizer,
        patch_size=14,
        vision_feature_select_strategy=strategy,
        num_additional_image_tokens=1,
        image_token="<image>",
        chat_template=TEMPLATE,
    )


def config(side: int = 84, kv_heads: int = 4, strategy: str = "default", layers: int = 4) -> LlavaConfig:
    vision = CLIPVisionConfig(
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=4,
        num_attention_heads=4,
        image_size=side,
        patch_size=14,
        projection_dim=32,
    )
    text = LlamaConfig(
        vocab_size=len(SPECIAL + WORDS),
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=kv_heads,
        max_position_embeddings=512,
        pad_token_id=0,
        bos_token_id=1,
        eos_token_id=2,
        tie_word_embeddings=False,
    )
    grid = (side // 14) ** 2
    return LlavaConfig(
        vision_config=vision,
        text_config=text,
        image_token_id=4,
        vision_feature_layer=-2,
        vision_feature_select_strategy=strategy,
        image_seq_length=grid + (strategy == "full"),
        tie_word_embeddings=False,
    )


def vlm(seed: int = 0, side: int = 84, kv_heads: int = 4, strategy: str = "default", eos: bool = True) -> VLM:
    """6 x 6 = 36 visual tokens by default, 4 encoder and 4 decoder layers. Weights are large enough that attention is
    far from uniform and the answer depends on the image."""
    torch.manual_seed(seed)
    model = LlavaForConditionalGeneration(config(side, kv_heads, strategy)).eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if weight.dim() == 2 and ("proj" in name or "fc" in name or "linear" in name or "lm_head" in name):
                weight.normal_(0, 1.5 / weight.shape[1] ** 0.5)
            elif "position_embedding" in name or "class_embedding" in name or "embed_tokens" in name:
                weight.normal_(0, 0.5)
            elif "patch_embedding" in name:
                weight.normal_(0, 0.1)
    model.generation_config.eos_token_id = 2 if eos else None
    model.generation_config.pad_token_id = 0
    return VLM(model, processor(side, strategy), LlavaAdapter(), "tiny")


def image(seed: int = 0, side: int = 84):
    from PIL import Image

    values = torch.randint(0, 256, (side, side, 3), generator=torch.Generator().manual_seed(seed), dtype=torch.uint8)
    return Image.fromarray(values.numpy())
