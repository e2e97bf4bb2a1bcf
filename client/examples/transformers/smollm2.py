"""SmolLM2 out of its GGUF as a transformers model in float32, and its tokenizer."""
import torch
from gguf import GGUFReader, dequantize
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM

_NAMES = {"attn_norm": "input_layernorm", "attn_q": "self_attn.q_proj", "attn_k": "self_attn.k_proj", "attn_v": "self_attn.v_proj",
          "attn_output": "self_attn.o_proj", "ffn_norm": "post_attention_layernorm", "ffn_gate": "mlp.gate_proj", "ffn_up": "mlp.up_proj",
          "ffn_down": "mlp.down_proj"}


def _name(gguf_name):
    part = gguf_name.split(".")
    if part[0] == "blk":
        return f"model.layers.{part[1]}.{_NAMES[part[2]]}.weight"
    return {"token_embd": "model.embed_tokens.weight", "output_norm": "model.norm.weight", "output": "lm_head.weight"}[part[0]]


def _halves(weight, heads):
    """GGUF keeps the rows of queries and keys with rotary pairs side by side, transformers in halves."""
    rows, columns = weight.shape
    return weight.reshape(heads, rows // heads // 2, 2, columns).swapaxes(1, 2).reshape(rows, columns)


def load(path):
    """(model, tokenizer)"""
    reader = GGUFReader(path)

    def field(name):
        entry = reader.fields[name]
        kinds = [kind.name for kind in entry.types]
        if kinds[0] == "ARRAY":
            return [bytes(entry.parts[i]).decode() if kinds[1] == "STRING" else entry.parts[i][0] for i in entry.data]
        return bytes(entry.parts[-1]).decode() if kinds[0] == "STRING" else entry.parts[-1][0].item()

    heads, kv_heads = field("llama.attention.head_count"), field("llama.attention.head_count_kv")
    words = field("tokenizer.ggml.tokens")
    config = LlamaConfig(
        vocab_size=len(words), hidden_size=field("llama.embedding_length"), intermediate_size=field("llama.feed_forward_length"),
        num_hidden_layers=field("llama.block_count"), num_attention_heads=heads, num_key_value_heads=kv_heads,
        rms_norm_eps=field("llama.attention.layer_norm_rms_epsilon"), rope_theta=field("llama.rope.freq_base"),
        max_position_embeddings=field("llama.context_length"), tie_word_embeddings=True, name_or_path="SmolLM2-135M-Instruct")
    weights = {}
    for tensor in reader.tensors:
        weight = dequantize(tensor.data, tensor.tensor_type).astype("float32")
        if ".attn_q." in tensor.name or ".attn_k." in tensor.name:
            weight = _halves(weight, heads if ".attn_q." in tensor.name else kv_heads)
        weights[_name(tensor.name)] = torch.from_numpy(weight.copy())
    model = LlamaForCausalLM(config)
    missing, unexpected = model.load_state_dict(weights, strict=False)
    if unexpected or [name for name in missing if name != "lm_head.weight"]:
        raise ValueError(f"{path}: missing {missing}, unexpected {unexpected}")
    model.tie_weights()

    merges = [tuple(merge.split(" ")) for merge in field("tokenizer.ggml.merges")]
    tokenizer = Tokenizer(models.BPE({word: i for i, word in enumerate(words)}, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence([pre_tokenizers.Digits(individual_digits=True),
                                                       pre_tokenizers.ByteLevel(add_prefix_space=False)])
    tokenizer.decoder = decoders.ByteLevel()
    return model.eval(), tokenizer
