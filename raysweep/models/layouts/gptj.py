"""GPT-J: attention and MLP side by side in a block, untied head with a bias."""

from raysweep.models.layout import Layout

LAYOUT = Layout(
    model_type="gptj",
    body="transformer",
    blocks="transformer.h",
    block="transformer.h.{}",
    mlp="transformer.h.{}.mlp",
    mlp_in=("transformer.h.{}.mlp.fc_in",),
    mlp_out="transformer.h.{}.mlp.fc_out",
    attn_out="transformer.h.{}.attn.out_proj",
    norm="transformer.ln_f",
    head="lm_head",
    embed="transformer.wte",
)
