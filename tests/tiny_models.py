"""Tiny models of current architectures, to be made by transformers or diffusers with random weights.

Each is a row of `MODELS`: a name, the class of the model, settings of its configuration, and the part of it that is asked, if not all. Weights are a few thousand numbers, and
each stack of layers has at least two. Where layers differ (full and sliding attention, dense layers and mixtures of experts), the
settings make them differ within the tokens of `inputs`, so that layers in a wrong order give other outputs.
"""

import inspect

import torch
import transformers

try:
    import diffusers
except ImportError:
    diffusers = None

SIZES = dict(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=4, num_attention_heads=2, num_key_value_heads=2,
    max_position_embeddings=32, pad_token_id=0, bos_token_id=1, eos_token_id=2,
)
GROUPED = dict(SIZES, num_key_value_heads=1, head_dim=8)
SLIDING = dict(GROUPED, sliding_window=3)
TYPES = ["sliding_attention", "full_attention", "sliding_attention", "sliding_attention"]
MIXED = dict(
    GROUPED, num_experts=4, num_local_experts=4, num_experts_per_tok=2, moe_intermediate_size=8, n_routed_experts=4,
    shared_expert_intermediate_size=8, n_shared_experts=1,
)
LATENT = dict(
    MIXED, head_dim=4, num_key_value_heads=2, kv_lora_rank=8, q_lora_rank=8, qk_rope_head_dim=4, qk_nope_head_dim=4, v_head_dim=8, n_group=1, topk_group=1,
    first_k_dense_replace=1,
)
BART = dict(
    vocab_size=64, d_model=16, encoder_layers=3, decoder_layers=4, encoder_ffn_dim=24, decoder_ffn_dim=24, encoder_attention_heads=2,
    decoder_attention_heads=2, max_position_embeddings=32, pad_token_id=1, bos_token_id=0, eos_token_id=2, decoder_start_token_id=2,
    forced_eos_token_id=2,
)
T5 = dict(vocab_size=64, d_model=16, d_kv=8, d_ff=24, num_layers=3, num_decoder_layers=4, num_heads=2, decoder_start_token_id=0)
VISION = dict(hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, image_size=16, patch_size=8)
SPEECH = dict(max_source_positions=10, max_target_positions=32, num_mel_bins=8)
LISTENING = dict(
    vocab_size=64, hidden_size=16, intermediate_size=24, num_hidden_layers=3, num_attention_heads=2, conv_dim=[8, 8], conv_kernel=[4, 4],
    conv_stride=[2, 2], num_feat_extract_layers=2, num_conv_pos_embeddings=4, num_conv_pos_embedding_groups=2, pad_token_id=0,
)
QWEN_VISION = dict(depth=3, embed_dim=16, hidden_size=16, num_heads=2, mlp_ratio=2, patch_size=4, temporal_patch_size=2, spatial_merge_size=2)
STATE = dict(state_size=4, conv_kernel=2, expand=2, num_heads=4, head_dim=8, n_groups=1, chunk_size=4)


def of_qwen(depth_of_text=4, **more):
    text = dict(GROUPED, rope_parameters=dict(rope_type="default", rope_theta=10000.0, mrope_section=[1, 1, 2]), **more)
    text["num_hidden_layers"] = depth_of_text
    return dict(
        text_config=text, image_token_id=60, video_token_id=61, vision_start_token_id=58, vision_end_token_id=59,
    )


CAUSAL = [
    ("llama", "LlamaForCausalLM", GROUPED),
    ("mistral", "MistralForCausalLM", SLIDING),
    ("qwen2", "Qwen2ForCausalLM", dict(SIZES, use_sliding_window=True, max_window_layers=2, sliding_window=3)),
    ("qwen3", "Qwen3ForCausalLM", dict(SLIDING, use_sliding_window=True, max_window_layers=2)),
    ("gemma", "GemmaForCausalLM", GROUPED),
    ("gemma2", "Gemma2ForCausalLM", SLIDING),
    ("gemma3_text", "Gemma3ForCausalLM", dict(SLIDING, layer_types=TYPES)),
    ("phi3", "Phi3ForCausalLM", GROUPED),
    ("olmo2", "Olmo2ForCausalLM", SIZES),
    ("olmo3", "Olmo3ForCausalLM", dict(SLIDING, layer_types=TYPES)),
    ("granite", "GraniteForCausalLM", SIZES),
    ("cohere2", "Cohere2ForCausalLM", dict(SLIDING, layer_types=TYPES)),
    ("smollm3", "SmolLM3ForCausalLM", dict(GROUPED, no_rope_layers=[1, 1, 0, 1])),
    ("glm4", "Glm4ForCausalLM", GROUPED),
    ("starcoder2", "Starcoder2ForCausalLM", GROUPED),
    ("stablelm", "StableLmForCausalLM", SIZES),
    ("exaone4", "Exaone4ForCausalLM", dict(SLIDING, layer_types=TYPES)),
    ("seed_oss", "SeedOssForCausalLM", GROUPED),
    ("apertus", "ApertusForCausalLM", GROUPED),
    ("falcon", "FalconForCausalLM", dict(vocab_size=64, hidden_size=16, num_hidden_layers=4, num_attention_heads=2)),
    ("gpt2", "GPT2LMHeadModel", dict(vocab_size=64, n_embd=16, n_layer=4, n_head=2, n_positions=32)),
    (
        "gpt_neo", "GPTNeoForCausalLM",
        dict(vocab_size=64, hidden_size=16, num_layers=4, num_heads=2, attention_types=[[["global", "local"], 2]], window_size=3, max_position_embeddings=32),
    ),
    ("gpt_neox", "GPTNeoXForCausalLM", SIZES),
    ("opt", "OPTForCausalLM", dict(SIZES, ffn_dim=24, word_embed_proj_dim=16)),
    ("bloom", "BloomForCausalLM", dict(vocab_size=64, hidden_size=16, n_layer=4, n_head=2)),
]
MIXTURES = [
    ("mixtral", "MixtralForCausalLM", MIXED),
    ("qwen2_moe", "Qwen2MoeForCausalLM", MIXED),
    ("qwen3_moe", "Qwen3MoeForCausalLM", dict(MIXED, mlp_only_layers=[1])),
    ("olmoe", "OlmoeForCausalLM", MIXED),
    ("granitemoe", "GraniteMoeForCausalLM", MIXED),
    ("gpt_oss", "GptOssForCausalLM", dict(MIXED, sliding_window=3, layer_types=TYPES)),
    ("deepseek_v3", "DeepseekV3ForCausalLM", LATENT),
    ("glm4_moe", "Glm4MoeForCausalLM", dict(MIXED, first_k_dense_replace=1, n_group=1, topk_group=1)),
    ("phimoe", "PhimoeForCausalLM", MIXED),
]
HYBRIDS = [
    ("lfm2", "Lfm2ForCausalLM", dict(GROUPED, layer_types=["conv", "full_attention", "conv", "full_attention"], block_ff_dim=24, block_auto_adjust_ff_dim=False)),
    (
        "qwen3_next", "Qwen3NextForCausalLM",
        dict(
            MIXED, layer_types=["linear_attention", "full_attention", "linear_attention", "linear_attention"], linear_num_value_heads=2,
            linear_num_key_heads=2, linear_key_head_dim=4, linear_value_head_dim=4, linear_conv_kernel_dim=2,
        ),
    ),
    ("mamba2", "Mamba2ForCausalLM", dict(vocab_size=64, hidden_size=16, num_hidden_layers=3, **STATE)),
    (
        "granitemoehybrid", "GraniteMoeHybridForCausalLM",
        dict(
            SIZES, layer_types=["mamba", "attention", "mamba", "attention"], num_local_experts=2, num_experts_per_tok=1, shared_intermediate_size=8,
            mamba_n_heads=4, mamba_d_head=8, mamba_d_state=4, mamba_d_conv=2, mamba_expand=2, mamba_n_groups=1, mamba_chunk_size=4,
        ),
    ),
]
ENCODERS = [
    ("bert", "BertForMaskedLM", SIZES),
    ("roberta", "RobertaForMaskedLM", SIZES),
    ("xlm_roberta", "XLMRobertaModel", SIZES),
    ("distilbert", "DistilBertForMaskedLM", dict(vocab_size=64, dim=16, hidden_dim=24, n_layers=4, n_heads=2, max_position_embeddings=32)),
    ("modernbert", "ModernBertForMaskedLM", dict(SIZES, local_attention=4, layer_types=TYPES)),
    ("electra", "ElectraForMaskedLM", dict(SIZES, embedding_size=16)),
    ("mpnet", "MPNetModel", SIZES),
    ("deberta_v2", "DebertaV2ForMaskedLM", SIZES),
    ("qwen3_embedding", "Qwen3Model", GROUPED),
]
SEQUENCES = [
    ("t5", "T5ForConditionalGeneration", dict(T5, feed_forward_proj="gated-gelu")),
    ("mt5", "MT5ForConditionalGeneration", T5),
    ("bart", "BartForConditionalGeneration", BART),
    ("mbart", "MBartForConditionalGeneration", BART),
    ("pegasus", "PegasusForConditionalGeneration", BART),
    ("marian", "MarianMTModel", BART),
    ("m2m_100", "M2M100ForConditionalGeneration", BART),
    ("blenderbot", "BlenderbotForConditionalGeneration", BART),
]
PICTURES = [
    ("vit", "ViTModel", VISION),
    ("dinov2", "Dinov2Model", VISION),
    ("clip", "CLIPModel", dict(text_config=dict(SIZES), vision_config=dict(VISION), projection_dim=16)),
    ("siglip", "SiglipModel", dict(text_config=dict(SIZES), vision_config=dict(VISION))),
]
VISION_LANGUAGE = [
    (
        "llava", "LlavaForConditionalGeneration",
        dict(text_config=dict(GROUPED, model_type="llama"), vision_config=dict(VISION, model_type="clip_vision_model"), image_token_id=60),
    ),
    ("qwen2_vl", "Qwen2VLForConditionalGeneration", dict(of_qwen(), vision_config=QWEN_VISION)),
    (
        "qwen2_5_vl", "Qwen2_5_VLForConditionalGeneration",
        dict(of_qwen(), vision_config=dict(QWEN_VISION, out_hidden_size=16, intermediate_size=24, fullatt_block_indexes=[1], window_size=8)),
    ),
    (
        "qwen3_vl", "Qwen3VLForConditionalGeneration",
        dict(
            of_qwen(),
            vision_config=dict(QWEN_VISION, out_hidden_size=16, intermediate_size=24, num_position_embeddings=16, deepstack_visual_indexes=[0, 1, 2]),
        ),
    ),
    (
        "gemma3", "Gemma3ForConditionalGeneration",
        dict(
            text_config=dict(SLIDING, layer_types=TYPES), vision_config=dict(VISION, model_type="siglip_vision_model", vision_use_head=False), mm_tokens_per_image=4,
            image_token_index=60, boi_token_index=58, eoi_token_index=59,
        ),
    ),
    (
        "mistral3", "Mistral3ForConditionalGeneration",
        dict(
            text_config=dict(GROUPED, model_type="mistral"),
            vision_config=dict(VISION, model_type="pixtral", head_dim=8), image_token_index=60, spatial_merge_size=2,
        ),
    ),
    (
        "internvl", "InternVLForConditionalGeneration",
        dict(
            text_config=dict(GROUPED, model_type="qwen2"), vision_config=dict(VISION, image_size=[16, 16], patch_size=[4, 4]), image_token_id=60,
        ),
    ),
    (
        "smolvlm", "SmolVLMForConditionalGeneration",
        dict(text_config=dict(GROUPED, model_type="llama"), vision_config=dict(VISION), image_token_id=60, scale_factor=2),
    ),
    (
        "paligemma", "PaliGemmaForConditionalGeneration",
        dict(
            text_config=dict(GROUPED, model_type="gemma"), vision_config=dict(VISION, projection_dim=16, model_type="siglip_vision_model"),
            projection_dim=16, image_token_index=60,
        ),
    ),
    (
        "llama4", "Llama4ForConditionalGeneration",
        dict(
            text_config=dict(GROUPED, intermediate_size_mlp=24, num_local_experts=2, interleave_moe_layer_step=2, attention_chunk_size=4, no_rope_layers=[1, 1, 1, 0]),
            vision_config=dict(VISION, intermediate_size=64, projector_input_dim=16, projector_output_dim=16, vision_output_dim=16, pixel_shuffle_ratio=0.5),
            image_token_index=60,
        ),
        # The whole class asks for a picture.
        "language_model",
    ),
]
LISTENERS = [
    (
        "whisper", "WhisperForConditionalGeneration",
        dict(BART, num_mel_bins=8, max_source_positions=10, max_target_positions=32, begin_suppress_tokens=None, suppress_tokens=None),
    ),
    ("wav2vec2", "Wav2Vec2ForCTC", LISTENING),
    ("hubert", "HubertModel", LISTENING),
    ("speech_to_text", "Speech2TextForConditionalGeneration", dict(BART, input_feat_per_channel=8, conv_channels=8, max_source_positions=64, max_target_positions=32)),
]
# The text encoders of diffusion pipelines.
PARTS = [
    ("clip_text", "CLIPTextModelWithProjection", dict(SIZES, projection_dim=16)),
    ("t5_encoder", "T5EncoderModel", T5),
]
# What paints, of diffusers: a net over latents, what makes pictures of them, and transformers with stacks of one and of two kinds.
CHANNELS = dict(block_out_channels=[8, 16], layers_per_block=1, norm_num_groups=4)
PAINTERS = [
    (
        "unet", "UNet2DConditionModel",
        dict(
            CHANNELS, sample_size=8, in_channels=4, out_channels=4, cross_attention_dim=8, attention_head_dim=4,
            down_block_types=["DownBlock2D", "CrossAttnDownBlock2D"], up_block_types=["CrossAttnUpBlock2D", "UpBlock2D"],
        ),
    ),
    (
        "vae", "AutoencoderKL",
        dict(CHANNELS, sample_size=16, down_block_types=["DownEncoderBlock2D"] * 2, up_block_types=["UpDecoderBlock2D"] * 2),
    ),
    (
        "sd3", "SD3Transformer2DModel",
        dict(
            sample_size=8, in_channels=4, out_channels=4, num_layers=3, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
            caption_projection_dim=16, pooled_projection_dim=8, pos_embed_max_size=8,
        ),
    ),
    (
        "flux", "FluxTransformer2DModel",
        dict(
            in_channels=4, num_layers=3, num_single_layers=4, attention_head_dim=8, num_attention_heads=2, joint_attention_dim=8,
            pooled_projection_dim=8, axes_dims_rope=[2, 2, 4], guidance_embeds=False,
        ),
    ),
]

MODELS = [(*row, None)[:4] for row in CAUSAL + MIXTURES + HYBRIDS + ENCODERS + SEQUENCES + PICTURES + VISION_LANGUAGE + LISTENERS + PARTS + PAINTERS]


def class_of(name):
    """The class of a model, and the file that its weights are saved in; `None` where its library does not have it."""
    if hasattr(transformers, name):
        return getattr(transformers, name), "model.safetensors"
    return getattr(diffusers, name, None), "diffusion_pytorch_model.safetensors"


def make(kind, settings, seed):
    """A model with weights that depend on the seed."""
    torch.manual_seed(seed)
    model = (kind(kind.config_class(**settings)) if hasattr(kind, "config_class") else kind(**settings)).eval()
    with torch.no_grad():
        for value in model.parameters():
            value.add_(0.05 * torch.randn_like(value))
    return model


def inputs(model):
    """What the model is asked: one batch of everything simple that it may take."""
    torch.manual_seed(0)
    ids = torch.randint(3, 50, (2, 7))
    ids[:, -1] = 2
    config = model.config
    names = set(inspect.signature(model.forward).parameters)
    given = {}
    if "input_ids" in names:
        given["input_ids"] = ids
    if "decoder_input_ids" in names:
        given["decoder_input_ids"] = ids[:, :5]
    if "input_features" in names:
        n_frames = 20 if "num_mel_bins" in config.to_dict() else 32
        features = torch.randn(2, 8, n_frames)
        given["input_features"] = features if n_frames == 20 else features.transpose(1, 2)
        given.pop("input_ids", None)
    if "input_values" in names:
        given["input_values"] = torch.randn(2, 120)
    # Models that write are asked for text alone: where pictures go is a matter of their processors.
    if "pixel_values" in names and not hasattr(model, "lm_head") and not hasattr(config, "image_token_id"):
        size = getattr(config, "vision_config", config).image_size
        given["pixel_values"] = torch.rand(2, 3, size, size)
    return given


def painted(model):
    """What a model of diffusers gives of noise."""
    torch.manual_seed(0)
    names = set(inspect.signature(model.forward).parameters)
    given = {}
    if "img_ids" in names:
        given["hidden_states"] = torch.randn(2, 4, 4)
        given["img_ids"] = torch.stack((torch.zeros(4), torch.arange(4) // 2, torch.arange(4) % 2), 1)
        given["txt_ids"] = torch.zeros(3, 3)
    else:
        channels = model.config.in_channels
        size = model.config.sample_size
        given["hidden_states" if "hidden_states" in names else "sample"] = torch.randn(2, channels, size, size)
    if "encoder_hidden_states" in names:
        given["encoder_hidden_states"] = torch.randn(2, 3, 8)
        given["timestep"] = torch.tensor([0.3, 0.7]) if "pooled_projections" in names else torch.tensor([3, 7])
    if "pooled_projections" in names:
        given["pooled_projections"] = torch.randn(2, 8)
    with torch.no_grad():
        return model.eval()(**given).sample


def outputs(model, part=None):
    """Logits, or what the model or a part of it gives in their place."""
    model = getattr(model, part) if part else model
    if diffusers and isinstance(model, diffusers.ModelMixin):
        return painted(model)
    for module in model.modules():
        # A cache is told by the number of a layer, which layers that were moved have twice.
        if hasattr(getattr(module, "config", None), "use_cache"):
            module.config.use_cache = False
    with torch.no_grad():
        given = model.eval()(**inputs(model))
    for name in ("logits", "logits_per_image", "text_embeds", "last_hidden_state"):
        if getattr(given, name, None) is not None:
            return getattr(given, name)
    raise RuntimeError("no logits")
