"""GPT-J: GPT-2's parts under other names; attention and MLP side by side in a block, untied head with a bias."""

from dataclasses import replace

from raysweep.models.layouts.gpt2 import LAYOUT as GPT2

LAYOUT = replace(
    GPT2,
    model_type="gptj",
    mlp_in=("transformer.h.{}.mlp.fc_in",),
    mlp_out="transformer.h.{}.mlp.fc_out",
    attn_out="transformer.h.{}.attn.out_proj",
    defaults={
        "n_embd": 4096,
        "n_layer": 28,
        "n_head": 16,
        "vocab_size": 50_400,
        "n_positions": 2048,
        "rotary_dim": 64,
        "tie_word_embeddings": False,
    },
)
