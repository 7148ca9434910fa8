"""Answer prompts with what an export wrote, by plain transformers: run by its path, in a process of its own.

It imports nothing of raysweep, so what it reads is what anybody reads. Arguments: a JSON file with a list of requests. Each names
the ``folder`` of a model, perhaps ``tensors`` or the folder of an ``adapter`` to lay over it, the prompts, the ids before each,
precision, device and threads, and the file for the ``answers``: ids and logits of each prompt.
"""

import json
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer


def main(requests: str) -> None:
    """Answer every request of the file *requests*."""
    for request in json.loads(Path(requests).read_text(encoding="utf-8")):
        torch.set_num_threads(request["threads"])
        tokenizer = AutoTokenizer.from_pretrained(request["tokenizer"])
        model = AutoModelForCausalLM.from_pretrained(request["folder"], dtype=getattr(torch, request["dtype"]))
        model = model.to(request["device"]).eval()
        for weight in model.parameters():
            # A file is mapped at any address, and where a matrix begins moves the last bits of its product with one vector.
            weight.data = weight.data.clone()
        if request.get("tensors"):
            unexpected = model.load_state_dict(load_file(request["tensors"]), strict=False).unexpected_keys
            if unexpected:
                raise SystemExit(f"the model has no {', '.join(unexpected)}")
        if request.get("adapter"):
            add_adapter(model, Path(request["adapter"]))
        answers: dict[str, torch.Tensor] = {}
        for number, prompt in enumerate(request["prompts"]):
            ids = torch.tensor([[*request["bos"], *tokenizer(prompt)["input_ids"]]])
            with torch.no_grad():
                logits = model(input_ids=ids.to(request["device"]), use_cache=False).logits
            answers |= {f"ids/{number}": ids[0], f"logits/{number}": logits[0].cpu().contiguous()}
        save_file(answers, request["answers"])


def add_adapter(model: torch.nn.Module, folder: Path) -> None:
    """Let linear maps of *model* put out ``W x + scale * B A x``, which is what PEFT computes of such a folder."""
    config = json.loads((folder / "adapter_config.json").read_text(encoding="utf-8"))
    factors = load_file(folder / "adapter_model.safetensors")
    scale = config["lora_alpha"] / config["r"]
    for name in config["target_modules"]:
        down, up = (factors[f"base_model.model.{name}.lora_{part}.weight"] for part in "AB")

        def add(module, inputs, output, down=down, up=up):  # type: ignore[no-untyped-def]
            entering = inputs[0].to(down.dtype)
            change = entering @ down.to(entering.device).T @ up.to(entering.device).T * scale
            return output + change.to(output.dtype)

        model.get_submodule(name).register_forward_hook(add)


if __name__ == "__main__":
    main(sys.argv[1])
