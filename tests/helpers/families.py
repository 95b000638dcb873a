"""One tiny model per family, of transformers' own class, with random weights and a word tokenizer."""

import tiny
import torch
import transformers as tf
from tokenizers import AddedToken, Tokenizer, models, pre_tokenizers, processors

from vtc_demo.models import FAMILIES, VLM
from vtc_demo.models.parts import Parts

SPECIAL = ["<pad>", "<s>", "</s>", "<unk>", "<image>", "<fake_token_around_image>", "<global-img>", "<img>", "</img>"]
SPECIAL += [f"<row_{r}_col_{c}>" for r in (1, 2, 3) for c in (1, 2, 3)]
WORDS = SPECIAL + tiny.WORDS
VOCAB = len(WORDS)
IMAGE = 4
TEMPLATE = (
    "{% for m in messages %}{{ m['role'] }} : {% if m['content'] is string %}{{ m['content'] }}{% else %}"
    "{% for p in m['content'] %}{% if p['type'] == 'image' %}the <image> {% else %}{{ p['text'] }}{% endif %}"
    "{% endfor %}"
    "{% endif %}{% if m['role'] == 'assistant' %} </s>{% endif %} {% endfor %}"
    "{% if add_generation_prompt %}assistant :{% endif %}"
)


def tokenizer():
    core = Tokenizer(models.WordLevel({w: i for i, w in enumerate(WORDS)}, unk_token="<unk>"))
    core.pre_tokenizer = pre_tokenizers.Whitespace()
    core.add_special_tokens([AddedToken(t, normalized=False, special=True) for t in SPECIAL])
    core.post_processor = processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", 1)])
    image = {"image_token": "<image>", "start_image_token": "<img>", "end_image_token": "</img>"}
    names = {"pad_token": "<pad>", "bos_token": "<s>", "eos_token": "</s>", "unk_token": "<unk>"}
    return tf.PreTrainedTokenizerFast(tokenizer_object=core, **names, extra_special_tokens=image)


TEXT = dict(
    vocab_size=VOCAB,
    hidden_size=32,
    intermediate_size=48,
    num_hidden_layers=4,
    num_attention_heads=4,
    num_key_value_heads=2,
    max_position_embeddings=2048,
    pad_token_id=0,
    bos_token_id=1,
    eos_token_id=2,
    tie_word_embeddings=False,
)
TOWER = dict(hidden_size=32, intermediate_size=64, num_hidden_layers=4, num_attention_heads=4, patch_size=7)
PINS = [[28, 56], [56, 28], [56, 56], [28, 84], [84, 28]]
SHARED = dict(image_token_id=IMAGE, tie_word_embeddings=False)


def llava():
    config = tf.LlavaConfig(
        vision_config=tf.CLIPVisionConfig(**TOWER, image_size=28, projection_dim=32),
        text_config=tf.LlamaConfig(**TEXT),
        vision_feature_layer=-2,
        **SHARED,
    )
    images = tf.CLIPImageProcessorPil(size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28})
    return tf.LlavaForConditionalGeneration, config, images


def llava_next():
    config = tf.LlavaNextConfig(
        vision_config=tf.CLIPVisionConfig(**TOWER, image_size=28, projection_dim=32),
        text_config=tf.MistralConfig(**TEXT, sliding_window=None),
        image_grid_pinpoints=PINS,
        vision_feature_layer=-2,
        **SHARED,
    )
    images = tf.LlavaNextImageProcessorPil(
        size={"shortest_edge": 28}, crop_size={"height": 28, "width": 28}, image_grid_pinpoints=PINS
    )
    return tf.LlavaNextForConditionalGeneration, config, images


def llava_onevision():
    config = tf.LlavaOnevisionConfig(
        vision_config=tf.SiglipVisionConfig(**TOWER, image_size=28),
        text_config=tf.Qwen2Config(**TEXT),
        image_grid_pinpoints=PINS,
        vision_feature_layer=-1,
        vision_feature_select_strategy="full",
        vision_aspect_ratio="anyres_max_3",
        video_token_index=VOCAB - 1,
        **SHARED,
    )
    images = tf.LlavaOnevisionImageProcessorPil(size={"height": 28, "width": 28}, image_grid_pinpoints=PINS)
    return tf.LlavaOnevisionForConditionalGeneration, config, images


QWEN_TEXT = TEXT | dict(rope_parameters={"rope_type": "default", "mrope_section": [1, 1, 2], "rope_theta": 10000.0})
QWEN_TOWER = dict(depth=4, num_heads=4, patch_size=4, spatial_merge_size=2, temporal_patch_size=2)
QWEN = dict(
    image_token_id=IMAGE, vision_start_token_id=VOCAB - 1, video_token_id=VOCAB - 2, vision_end_token_id=VOCAB - 3
)


def qwen_images():
    return tf.Qwen2VLImageProcessorPil(
        patch_size=4, merge_size=2, temporal_patch_size=2, size={"shortest_edge": 256, "longest_edge": 2304}
    )


def qwen2_vl():
    tower = QWEN_TOWER | dict(embed_dim=32, hidden_size=32, mlp_ratio=2)
    config = tf.Qwen2VLConfig(vision_config=tower, text_config=QWEN_TEXT, tie_word_embeddings=False, **QWEN)
    return tf.Qwen2VLForConditionalGeneration, config, qwen_images()


def qwen2_5_vl():
    tower = dict(hidden_size=32, out_hidden_size=32, intermediate_size=44, window_size=16, fullatt_block_indexes=[1])
    config = tf.Qwen2_5_VLConfig(
        vision_config=QWEN_TOWER | tower, text_config=QWEN_TEXT, tie_word_embeddings=False, **QWEN
    )
    return tf.Qwen2_5_VLForConditionalGeneration, config, qwen_images()


def qwen3_vl():
    tower = dict(hidden_size=32, out_hidden_size=32, intermediate_size=44, deepstack_visual_indexes=[0, 2])
    config = tf.Qwen3VLConfig(
        vision_config=QWEN_TOWER | tower | dict(num_position_embeddings=64),
        text_config=QWEN_TEXT | dict(head_dim=8),
        tie_word_embeddings=False,
        **QWEN,
    )
    return tf.Qwen3VLForConditionalGeneration, config, qwen_images()


def internvl():
    config = tf.InternVLConfig(
        vision_config=tf.InternVLVisionConfig(**TOWER | {"patch_size": [7, 7]}, image_size=[28, 28], use_qk_norm=True),
        text_config=tf.Qwen3Config(**TEXT, head_dim=8),
        **SHARED,
    )
    images = tf.GotOcr2ImageProcessorPil(size={"height": 28, "width": 28}, max_patches=4, crop_to_patches=True)
    return tf.InternVLForConditionalGeneration, config, images


def idefics3():
    config = tf.Idefics3Config(
        vision_config=tf.Idefics3VisionConfig(**TOWER, image_size=28),
        text_config=tf.LlamaConfig(**TEXT),
        scale_factor=2,
        **SHARED,
    )
    sizes = dict(size={"longest_edge": 56}, max_image_size={"longest_edge": 28})
    return tf.Idefics3ForConditionalGeneration, config, tf.Idefics3ImageProcessorPil(**sizes)


def smolvlm():
    config = tf.SmolVLMConfig(
        vision_config=tf.SmolVLMVisionConfig(**TOWER, image_size=28),
        text_config=tf.LlamaConfig(**TEXT),
        scale_factor=4,
        **SHARED,
    )
    sizes = dict(size={"longest_edge": 84}, max_image_size={"longest_edge": 28})
    return tf.SmolVLMForConditionalGeneration, config, tf.SmolVLMImageProcessorPil(**sizes)


FAMILY = (llava, llava_next, llava_onevision, qwen2_vl, qwen2_5_vl, qwen3_vl, internvl, idefics3, smolvlm)
BUILDERS = {build.__name__: build for build in FAMILY}


SEEDS = {"qwen3_vl": 2, "internvl": 4}  # of which the answers are not one word over and over


def vlm(family: str) -> VLM:
    """Weights are large enough that attention is far from uniform and the answer depends on the picture."""
    model_class, config, images = BUILDERS[family]()
    torch.manual_seed(SEEDS.get(family, 0))
    model = model_class._from_config(config, attn_implementation="sdpa").eval()
    with torch.no_grad():
        for name, weight in model.named_parameters():
            if "patch_embed" in name and weight.dim() > 2:
                weight.normal_(0, 0.1)
            elif weight.dim() == 2 and not any(part in name for part in ("embed_tokens", "pos_embed", "position")):
                weight.normal_(0, 1.5 / weight.shape[1] ** 0.5)
            elif weight.dim() > 1 or "class_embedding" in name or "newline" in name:
                weight.normal_(0, 0.5)
    model.generation_config.eos_token_id = None
    model.generation_config.pad_token_id = 0
    adapter = FAMILIES[config.model_type]
    adapter.check(config)
    return VLM(model, Parts(images, tokenizer(), TEMPLATE), adapter, family)
