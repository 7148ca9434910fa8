"""What a card gives, in one command of less than eight minutes: ``make gpu-check`` (docs/performance.md, "On a card").

It needs torch, transformers, numpy, safetensors, pydantic, ruamel.yaml and this checkout; Ray and pyarrow are not asked for.

* :mod:`benchmarks.gpu.models`: random weights in published shapes, records, artifacts of the right sizes;
* :mod:`benchmarks.gpu.arms`: an editor, ours or plain, ready to write records;
* :mod:`benchmarks.gpu.counting`: the card's own ceiling, arithmetic, launches and waits, peak memory beside what `plan` says;
* :mod:`benchmarks.gpu.cells`: what is measured, the most important first;
* :mod:`benchmarks.gpu.promises`: the editor contract on the device, and the CPU's numbers beside it;
* :mod:`benchmarks.gpu.table`: the report as Markdown.

The weights are random: seconds, counts and memory mean something, answers do not.
"""
