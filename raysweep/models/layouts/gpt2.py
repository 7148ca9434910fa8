"""GPT-2: ``Conv1D`` weights stored as ``[d_in, d_out]``, tied head."""

from raysweep.models import attention
from raysweep.models.layout import Layout

LAYOUT = Layout(
    model_type="gpt2",
    body="transformer",
    blocks="transformer.h",
    block="transformer.h.{}",
    mlp="transformer.h.{}.mlp",
    mlp_in=("transformer.h.{}.mlp.c_fc",),
    mlp_out="transformer.h.{}.mlp.c_proj",
    attn_out="transformer.h.{}.attn.c_proj",
    norm="transformer.ln_f",
    head="lm_head",
    embed="transformer.wte",
    defaults={
        "n_embd": 768,
        "n_layer": 12,
        "n_head": 12,
        "vocab_size": 50_257,
        "n_positions": 1024,
        "tie_word_embeddings": True,
    },
    positions_end=True,
    windows=attention.no_windows,
)
