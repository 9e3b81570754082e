"""Random models of many of transformers' classes, a few thousand weights each."""

from collections.abc import Callable, Generator
from contextlib import contextmanager
from typing import Any

import torch
import transformers
from transformers import PreTrainedModel

VOCAB, LAYERS, WIDTH = 61, 3, 16
_SPECIAL = {"pad_token_id": 0, "bos_token_id": 1, "eos_token_id": 2}
_PLAIN = {"vocab_size": VOCAB, "num_hidden_layers": LAYERS, "hidden_size": WIDTH} | _SPECIAL
_USUAL = _PLAIN | {"intermediate_size": 24, "num_attention_heads": 2, "max_position_embeddings": 128}
_GROUPED = _USUAL | {"num_key_value_heads": 1, "head_dim": 8}
_IMAGES = {"hidden_size": 16, "intermediate_size": 16, "num_hidden_layers": 1, "num_attention_heads": 2}
_IMAGES |= {"image_size": 28, "patch_size": 14}

KINDS: dict[str, tuple[str, dict[str, Any]]] = {
    "Llama": ("LlamaForCausalLM", _USUAL),
    "Gemma2": ("Gemma2ForCausalLM", _GROUPED | {"sliding_window": 8}),
    "Gemma3, with images": ("Gemma3ForConditionalGeneration", {"text_config": _GROUPED, "vision_config": _IMAGES}),
    "Gemma3n": (
        "Gemma3nForCausalLM",
        _GROUPED
        | {"layer_types": ["sliding_attention", "full_attention"] * 2, "num_hidden_layers": 4, "laurel_rank": 4}
        | {"num_kv_shared_layers": 0, "hidden_size_per_layer_input": 8, "vocab_size_per_layer_input": VOCAB}
        | {"activation_sparsity_pattern": [0.0] * 4, "altup_num_inputs": 2},
    ),
    "GPT2": ("GPT2LMHeadModel", {"vocab_size": VOCAB, "n_embd": WIDTH, "n_layer": LAYERS, "n_head": 2} | _SPECIAL),
    "GPTNeoX": ("GPTNeoXForCausalLM", _USUAL),
    "Qwen3": ("Qwen3ForCausalLM", _GROUPED),
    "OPT": ("OPTForCausalLM", _USUAL | {"ffn_dim": 24, "word_embed_proj_dim": WIDTH}),
    "OPT, whose head reads a projection": ("OPTForCausalLM", _USUAL | {"ffn_dim": 24, "word_embed_proj_dim": 8}),
    "OPT, without a final norm": (
        "OPTForCausalLM",
        _USUAL | {"ffn_dim": 24, "word_embed_proj_dim": WIDTH, "do_layer_norm_before": False},
    ),
    "MPT": ("MptForCausalLM", {"vocab_size": VOCAB, "d_model": WIDTH, "n_layers": LAYERS, "n_heads": 2} | _SPECIAL),
    "Cohere, which scales its logits": ("CohereForCausalLM", _USUAL | {"logit_scale": 0.5}),
    "Granite, which scales its logits": ("GraniteForCausalLM", _USUAL | {"logits_scaling": 3.0}),
    "MiniCPM3, which scales what its head reads": (
        "MiniCPM3ForCausalLM",
        _USUAL
        | {"q_lora_rank": 8, "kv_lora_rank": 8, "qk_nope_head_dim": 4, "qk_rope_head_dim": 4, "v_head_dim": 8}
        | {"num_key_value_heads": 2, "dim_model_base": 4, "head_dim": 4},
    ),
    "Llama4": (
        "Llama4ForCausalLM",
        _GROUPED | {"num_local_experts": 2, "num_experts_per_tok": 1, "intermediate_size_mlp": 24},
    ),
    "Mllama": (
        "MllamaForCausalLM",
        _USUAL | {"num_key_value_heads": 1, "cross_attention_layers": [1], "num_hidden_layers": LAYERS},
    ),
    "Lfm2": (
        "Lfm2ForCausalLM",
        _USUAL | {"num_key_value_heads": 1, "layer_types": ["conv", "full_attention", "conv"], "block_ff_dim": 24},
    ),
    "NemotronH": (
        "NemotronHForCausalLM",
        _GROUPED
        | {"layers_block_type": ["mamba", "attention", "mlp"], "ssm_state_size": 4, "mamba_num_heads": 2}
        | {"mamba_head_dim": 16, "n_groups": 1, "chunk_size": 8},
    ),
    "Bamba": (
        "BambaForCausalLM",
        _USUAL
        | {"num_key_value_heads": 1, "attn_layer_indices": [1], "mamba_n_heads": 2, "mamba_d_head": 16}
        | {"mamba_d_state": 4, "mamba_n_groups": 1, "mamba_chunk_size": 8},
    ),
    "Mamba": ("MambaForCausalLM", _PLAIN | {"state_size": 4}),
    "RecurrentGemma": ("RecurrentGemmaForCausalLM", _USUAL | {"num_key_value_heads": 1, "lru_width": WIDTH}),
    "RWKV": ("RwkvForCausalLM", _PLAIN | {"attention_hidden_size": WIDTH, "intermediate_size": 24}),
    "xLSTM": ("xLSTMForCausalLM", _PLAIN | {"hidden_size": 32, "num_blocks": LAYERS, "num_heads": 2}),
    "ModernBert, a decoder": (
        "ModernBertDecoderForCausalLM",
        _USUAL | {"cls_token_id": 1, "sep_token_id": 2, "local_attention": 8},
    ),
    "Bert": ("BertLMHeadModel", _USUAL),
    "Roberta": ("RobertaForCausalLM", _USUAL),
    "Phi3, LongRoPE": (
        "Phi3ForCausalLM",
        _USUAL
        | {"num_key_value_heads": 2, "original_max_position_embeddings": 32}
        | {
            "rope_parameters": {
                "rope_type": "longrope",
                "rope_theta": 10_000.0,
                "short_factor": [1.0, 1.0, 1.0, 1.0],
                "long_factor": [4.0, 8.0, 16.0, 32.0],
                "original_max_position_embeddings": 32,
            }
        },
    ),
    "Llama, dynamic RoPE": (
        "LlamaForCausalLM",
        _USUAL | {"rope_parameters": {"rope_type": "dynamic", "rope_theta": 10_000.0, "factor": 4.0}},
    ),
}


def tiny_model(kind: str, **changed: Any) -> PreTrainedModel:
    """A random model of one of KINDS whose norms and biases are random too."""
    torch.manual_seed(0)
    name, settings = KINDS[kind]
    model_class: Callable[..., PreTrainedModel] = getattr(transformers, name)
    config_class: Callable[..., Any] = model_class.config_class  # pyright: ignore[reportAttributeAccessIssue]
    model = model_class(config_class(**settings | changed))
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.1 * torch.randn_like(parameter)
    return model.eval().requires_grad_(False)


def deep_gemma() -> PreTrainedModel:
    """Gemma 2 of 26 layers, 64 wide, in bfloat16: deep enough that roundings grow."""
    torch.manual_seed(0)
    config = transformers.Gemma2Config(
        **_SPECIAL,
        vocab_size=512,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=26,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=16,
        query_pre_attn_scalar=16,
        sliding_window=8,
        attn_implementation="eager",  # pyright: ignore[reportCallIssue]
    )
    return transformers.Gemma2ForCausalLM(config).eval().requires_grad_(False).bfloat16()


@contextmanager
def products_of_few_tokens_split(most: int = 10) -> Generator[None]:
    """Within it, products of fewer tokens add two halves, each rounded, as a GPU's libraries do for such shapes."""
    whole = torch.nn.functional.linear

    def linear(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None = None) -> torch.Tensor:
        if x.shape[:-1].numel() >= most:
            return whole(x, weight, bias)
        half = weight.shape[1] // 2
        y = whole(x[..., :half], weight[:, :half]) + whole(x[..., half:], weight[:, half:])
        return y if bias is None else y + bias

    torch.nn.functional.linear = linear
    try:
        yield
    finally:
        torch.nn.functional.linear = whole
