"""GGUF files → an ordinary model and tokenizer: the weights by transformers' reader, the rest as the file states it.

transformers (``from_pretrained(gguf_file=…)``, which needs ``gguf`` and ``accelerate``) unpacks the blocks, names the tensors and
undoes llama.cpp's permutations. Its configuration is not taken: it leaves out the width of a head (Qwen 3), the number of positions
(GPT-2) and llama.cpp's defaults. Anything this reader does not know (another architecture, SentencePiece, scaled rotary embeddings,
a hyper-parameter or tensor it has never met) is refused before a weight is read.
"""

from __future__ import annotations

import contextlib
import io
import json
import mmap
import shutil
import tempfile
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

from raysweep.atomic import write_folder
from raysweep.errors import MissingExtraError, ModelError
from raysweep.models.sources import gguf_header, gguf_tokenizer
from raysweep.models.sources.gguf_check import check_header, config_values

if TYPE_CHECKING:
    from transformers import PretrainedConfig, PreTrainedModel, PreTrainedTokenizerBase

_AGAIN = "fetch or download it again"


def read(path: Path) -> tuple[PreTrainedModel, PreTrainedTokenizerBase]:
    """Return the model (fp32, eval mode) and the tokenizer held in the GGUF file *path*.

    Raises:
        MissingExtraError: the ``gguf`` or the ``accelerate`` package is not installed.
        ModelError: the file is not GGUF, is truncated, or is of a kind this reader does not know.
    """
    from transformers import AutoConfig

    header = gguf_header.read_header(path)
    check_header(header, path)
    if find_spec("accelerate") is None:
        raise MissingExtraError(
            "reading GGUF files needs the 'accelerate' package", hint="pip install 'raysweep[gguf]'"
        )
    # what can be refused is refused by the header alone, before gigabytes are unpacked
    values = config_values(header, path)
    config = AutoConfig.for_model(values.pop("model_type"), **values)
    _check_tensors(header, config, path)
    return _model(header, config, path), _tokenizer(header, path)


def read_tokenizer(path: Path) -> PreTrainedTokenizerBase:
    """Return the tokenizer held in the GGUF file *path*; its weights are not read.

    Raises:
        MissingExtraError, ModelError: see :func:`read`.
    """
    header = gguf_header.read_header(path)
    check_header(header, path)
    return _tokenizer(header, path)


def convert(path: Path, out: Path, *, source: Mapping[str, str] | None = None) -> Path:
    """Write the GGUF file *path* as an ordinary fp32 Hugging Face folder *out*, whole or not at all.

    Args:
        path: the GGUF file.
        out: the folder to make; replaced if it exists.
        source: where the file came from, kept as ``source.json``.
    """
    model, tokenizer = read(path)
    with write_folder(out) as draft:
        _save(model, draft)
        tokenizer.save_pretrained(draft)
        (draft / "source.json").write_text(json.dumps(dict(source or {}), indent=1, sort_keys=True) + "\n")
    return out


def _save(model: PreTrainedModel, folder: Path) -> None:
    """Write config and weights (``save_pretrained`` would draw a progress bar)."""
    from safetensors.torch import save_file

    model.config.architectures = [type(model).__name__]
    model.config.save_pretrained(folder)
    # a tied head would be stored twice, and safetensors refuses tensors that share memory
    tied = {"lm_head.weight"} if model.config.tie_word_embeddings else set()
    state = {name: value.contiguous() for name, value in model.state_dict().items() if name not in tied}
    save_file(state, folder / "model.safetensors", metadata={"format": "pt"})
    (folder / "model.safetensors").chmod(0o644)


def _check_tensors(header: gguf_header.Header, config: PretrainedConfig, path: Path) -> None:
    """Refuse a file whose tensors are not those of a model of *config*, or cannot be unpacked; no weight is read.

    transformers leaves out tensors that it does not know, and draws those that are not there.
    """
    import torch
    from gguf import MODEL_ARCH_NAMES, GGMLQuantizationType, dequantize, get_tensor_name_map
    from transformers import AutoModelForCausalLM

    architecture = next(key for key, name in MODEL_ARCH_NAMES.items() if name == config.model_type)
    names = get_tensor_name_map(architecture, config.num_hidden_layers)
    # on the meta device: names and shapes without memory
    with torch.device("meta"):
        module = AutoModelForCausalLM.from_config(config)
    expected = {}
    for name, value in module.state_dict().items():
        if not (config.tie_word_embeddings and name == "lm_head.weight"):
            expected[names.get_name(name, try_suffixes=(".weight", ".bias"))] = tuple(value.shape)
    for name in header.tensors:
        if name not in expected:
            raise ModelError(f"{path}: unexpected tensor '{name}' in a GGUF of architecture '{config.model_type}'")
    for name, shape in expected.items():
        # ggml counts axes from the fastest one; GPT-2 keeps its maps the other way round.
        if name not in header.tensors or header.tensors[name].shape not in (shape, shape[::-1]):
            what = f"'{name}' should be {shape}, and is {getattr(header.tensors.get(name), 'shape', 'not there')}"
            raise ModelError(f"{path}: the tensors do not fit the metadata: {what}", hint=_AGAIN)
    # one tensor of each type stands for all of that type
    for kind, name in {tensor.kind: name for name, tensor in header.tensors.items()}.items():
        try:
            dequantize(gguf_header.empty_block(kind), GGMLQuantizationType(kind))
        except NotImplementedError as error:
            raise ModelError(
                f"{path}: cannot dequantise {GGMLQuantizationType(kind).name} ('{name}')",
                hint="give a file of another quantisation, for example Q8_0 or F16",
            ) from error


def _model(header: gguf_header.Header, config: PretrainedConfig, path: Path) -> PreTrainedModel:
    import torch
    from transformers import AutoModelForCausalLM

    # Alone in a folder, since from_pretrained also reads what lies beside the file (an adapter's configuration, say), which is not
    # in the file's fingerprint. The bar of its reader goes to stderr whatever transformers' own switch says.
    with tempfile.TemporaryDirectory(prefix="raysweep-gguf-") as folder, contextlib.redirect_stderr(io.StringIO()):
        permuted = _place(path, header, Path(folder) / "model.gguf")
        try:
            module = AutoModelForCausalLM.from_pretrained(
                folder, gguf_file="model.gguf", config=config, dtype=torch.float32, local_files_only=True
            )
        except (RuntimeError, ValueError, LookupError, TypeError) as error:
            raise ModelError(f"{path}: not a readable GGUF file: {error}", hint=_AGAIN) from error
    _unmark(module)
    if permuted:
        _unpermute(module, config)
    return module.eval()


def _place(path: Path, header: gguf_header.Header, place: Path) -> bool:
    """Put the file at *place*; return whether transformers will leave the rows of Llama's query and key maps permuted.

    It does so where a number of heads is not stated; and it fails where one is given block by block, so that is hidden from it,
    in a copy, under another name of the same length.
    """
    keys = ("llama.attention.head_count", "llama.attention.head_count_kv")
    hidden_keys = [key.encode() for key in keys if key in header.lengths]
    if not hidden_keys:
        place.symlink_to(path.resolve())
    else:
        shutil.copyfile(path, place)
        with place.open("r+b") as handle, mmap.mmap(handle.fileno(), 0) as content:
            for key in hidden_keys:
                begin = content.find(len(key).to_bytes(8, "little") + key) + 8
                content[begin : begin + len(key)] = b"hidden".ljust(len(key), b".")
    return header.values["general.architecture"] == "llama" and (keys[1] not in header.values or bool(hidden_keys))


def _unmark(module: PreTrainedModel) -> None:
    """Take off the marks of a quantised model: its weights are plain fp32 numbers, to be saved and cast as any other."""
    if hasattr(module.config, "quantization_config"):
        del module.config.quantization_config
    module.config.name_or_path = ""
    for name in {"hf_quantizer", "quantization_method", "is_quantized"} & set(vars(module)):
        delattr(module, name)


def _unpermute(module: PreTrainedModel, config: PretrainedConfig) -> None:
    """Put the rows of query and key maps in Hugging Face's order (halves, not interleaved pairs)."""
    for name, weight in module.named_parameters():
        if name.endswith(("q_proj.weight", "k_proj.weight")):
            heads = config.num_attention_heads if "q_proj" in name else config.num_key_value_heads
            # [heads · e, d] → [heads, e/2, 2, d]: pairs side by side become halves
            rows = weight.data.reshape(heads, weight.shape[0] // heads // 2, 2, weight.shape[1])
            weight.data = rows.swapaxes(1, 2).reshape(weight.shape)


def _tokenizer(header: gguf_header.Header, path: Path) -> PreTrainedTokenizerBase:
    from gguf import GGUFReader

    try:
        meta = {key: field.contents() for key, field in GGUFReader(path).fields.items() if key.startswith("tokenizer.")}
    except Exception as error:
        raise ModelError(f"{path}: not a readable GGUF file: {error}", hint=_AGAIN) from error
    return gguf_tokenizer.build(meta, header.number(f"{header.values['general.architecture']}.context_length"), path)
