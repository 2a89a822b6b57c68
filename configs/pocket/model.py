"""The pocket decoder in PyTorch: Hugging Face Llama conventions (names, rotate-half RoPE, grouped queries, tied head).

`fake_quant=True` runs every linear layer, the embedding and the head on weights rounded to int8 per output row (norm gains
folded in first), with gradients passed straight through.
"""

import torch
import torch.nn.functional as F
from torch import nn

CONFIG = {
    "architectures": ["LlamaForCausalLM"],
    "model_type": "llama",
    "hidden_size": 256,
    "intermediate_size": 768,
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 64,
    "vocab_size": 2048,
    "max_position_embeddings": 1024,
    "hidden_act": "silu",
    "rms_norm_eps": 1e-5,
    "rope_theta": 10000.0,
    "rope_scaling": None,
    "attention_bias": False,
    "mlp_bias": False,
    "attention_dropout": 0.0,
    "initializer_range": 0.02,
    "tie_word_embeddings": True,
    "use_cache": True,
    "bos_token_id": 0,
    "eos_token_id": 1,
    "torch_dtype": "float16",
}


class RoundToInt8(torch.autograd.Function):
    """w·gain rounded to 255 levels per row; the gradient passes as if nothing had been rounded."""

    @staticmethod
    def forward(ctx, folded):
        step = folded.abs().amax(dim=1, keepdim=True).clamp_min(1e-8) / 127
        return torch.round(folded / step) * step

    @staticmethod
    def backward(ctx, grad):
        return grad


def folded(weight, gain, fake_quant):
    full = weight if gain is None else weight * gain
    return RoundToInt8.apply(full) if fake_quant else full


def normalise(x, eps):
    return x * torch.rsqrt(x.pow(2).mean(-1, keepdim=True) + eps)


def rotary(length, head_dim, theta):
    inverse = theta ** (-torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim)
    angle = torch.outer(torch.arange(length, dtype=torch.float32), inverse)
    angle = torch.cat([angle, angle], dim=-1)
    return angle.cos(), angle.sin()


def rotate(x, cos, sin):
    low, high = x.chunk(2, dim=-1)
    return (x * cos + torch.cat([-high, low], dim=-1) * sin).to(x.dtype)


class Weight(nn.Module):
    def __init__(self, *shape, std=None):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(shape) if std is None else torch.randn(shape) * std)


class Attention(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, h, kv, dh, std = c["hidden_size"], c["num_attention_heads"], c["num_key_value_heads"], c["head_dim"], c["initializer_range"]
        self.heads, self.kv_heads, self.head_dim = h, kv, dh
        self.q_proj, self.k_proj, self.v_proj = Weight(h * dh, d, std=std), Weight(kv * dh, d, std=std), Weight(kv * dh, d, std=std)
        self.o_proj = Weight(d, h * dh, std=std / (2 * c["num_hidden_layers"]) ** 0.5)

    def forward(self, u, gain, turn, fq):
        rows, length, _ = u.shape
        project = lambda p, n: F.linear(u, folded(p.weight, gain, fq)).view(rows, length, n, self.head_dim).transpose(1, 2)
        q, k, v = project(self.q_proj, self.heads), project(self.k_proj, self.kv_heads), project(self.v_proj, self.kv_heads)
        q, k = rotate(q, *turn).to(v.dtype), rotate(k, *turn).to(v.dtype)
        share = self.heads // self.kv_heads
        k, v = k.repeat_interleave(share, dim=1), v.repeat_interleave(share, dim=1)
        mix = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return F.linear(mix.transpose(1, 2).reshape(rows, length, -1), folded(self.o_proj.weight, None, fq))


class Mlp(nn.Module):
    def __init__(self, c):
        super().__init__()
        d, f, std = c["hidden_size"], c["intermediate_size"], c["initializer_range"]
        self.gate_proj, self.up_proj = Weight(f, d, std=std), Weight(f, d, std=std)
        self.down_proj = Weight(d, f, std=std / (2 * c["num_hidden_layers"]) ** 0.5)

    def forward(self, u, gain, fq):
        gate, up = F.linear(u, folded(self.gate_proj.weight, gain, fq)), F.linear(u, folded(self.up_proj.weight, gain, fq))
        return F.linear(F.silu(gate) * up, folded(self.down_proj.weight, None, fq))


class Layer(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.eps = c["rms_norm_eps"]
        self.self_attn, self.mlp = Attention(c), Mlp(c)
        self.input_layernorm, self.post_attention_layernorm = Weight(c["hidden_size"]), Weight(c["hidden_size"])

    def forward(self, x, turn, fq):
        x = x + self.self_attn(normalise(x, self.eps), self.input_layernorm.weight, turn, fq)
        return x + self.mlp(normalise(x, self.eps), self.post_attention_layernorm.weight, fq)


class Body(nn.Module):
    def __init__(self, c):
        super().__init__()
        self.embed_tokens = Weight(c["vocab_size"], c["hidden_size"], std=c["initializer_range"])
        self.layers = nn.ModuleList(Layer(c) for _ in range(c["num_hidden_layers"]))
        self.norm = Weight(c["hidden_size"])


class Pocket(nn.Module):
    """Token ids (rows, length) to logits (rows, length, vocabulary)."""

    def __init__(self, config=CONFIG):
        super().__init__()
        self.config, self.model = config, Body(config)
        cos, sin = rotary(config["max_position_embeddings"], config["head_dim"], config["rope_theta"])
        self.register_buffer("cos", cos, persistent=False)
        self.register_buffer("sin", sin, persistent=False)

    def forward(self, ids, fake_quant=False):
        length, body = ids.shape[1], self.model
        turn = self.cos[:length], self.sin[:length]
        x = F.embedding(ids, folded(body.embed_tokens.weight, None, fake_quant))
        for layer in body.layers:
            x = layer(x, turn, fake_quant)
        u = normalise(x, self.config["rms_norm_eps"])
        return F.linear(u, folded(body.embed_tokens.weight, body.norm.weight, fake_quant))

    @torch.no_grad()
    def clip_rows(self, limit):
        """Keeps every folded weight within `limit` root mean squares of its row, so that int8 steps stay fine."""
        for layer in self.model.layers:
            a, m = layer.self_attn, layer.mlp
            first, second = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
            for part, gain in ((a.q_proj, first), (a.k_proj, first), (a.v_proj, first), (m.gate_proj, second), (m.up_proj, second)):
                clip(part.weight, gain, limit)
            clip(a.o_proj.weight, None, limit)
            clip(m.down_proj.weight, None, limit)
        clip(self.model.embed_tokens.weight, None, limit)


def clip(weight, gain, limit):
    full = weight if gain is None else weight * gain
    most = full.pow(2).mean(dim=1, keepdim=True).sqrt() * limit
    full = torch.maximum(torch.minimum(full, most), -most)
    weight.copy_(full if gain is None else full / gain)
