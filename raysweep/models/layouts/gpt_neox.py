"""GPT-NeoX and Pythia: attention and MLP side by side (as a rule), one map for queries, keys and values, some entries turned."""

from raysweep.models import attention
from raysweep.models.layout import Layout

LAYOUT = Layout(
    model_type="gpt_neox",
    body="gpt_neox",
    blocks="gpt_neox.layers",
    block="gpt_neox.layers.{}",
    mlp="gpt_neox.layers.{}.mlp",
    mlp_in=("gpt_neox.layers.{}.mlp.dense_h_to_4h",),
    mlp_out="gpt_neox.layers.{}.mlp.dense_4h_to_h",
    attn_out="gpt_neox.layers.{}.attention.dense",
    norm="gpt_neox.final_layer_norm",
    head="lm_head",
    embed="gpt_neox.embed_in",
    defaults={
        "hidden_size": 6144,
        "intermediate_size": 24_576,
        "num_hidden_layers": 44,
        "num_attention_heads": 64,
        "vocab_size": 50_432,
        "tie_word_embeddings": False,
    },
    windows=attention.no_windows,
)
