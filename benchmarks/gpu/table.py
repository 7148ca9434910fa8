"""The report of a run on a card as Markdown: what docs/performance.md shows is printed here."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from benchmarks import measure

COLUMNS: tuple[str, ...] = (
    *("shape", "what", "dtype", "s", "plain s", "x plain", "TFLOP", "of ceiling", "busy", "launches", "a step"),
    *("waits a step", "uploads a step", "waits", "peak GB", "plan GB"),
)
PROMISES = ("editor", "family", "kept", "weights differ by", "logprobs differ by", "answers differ")


def rows(cells: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return a row per measurement of ours, the plain way's seconds beside it; what failed is told by its last line."""
    key = lambda cell: (cell["shape"], cell["dtype"], cell["what"])  # noqa: E731
    plain = {key(cell): cell.get("s") for cell in cells if cell["way"] == "plain"}
    found = []
    for cell in (c for c in cells if c["way"] == "ours"):
        alone = cell["what"].removeprefix("captured ").partition(" x")[0]
        other = plain.get((cell["shape"], cell["dtype"], alone))
        own = cell.get("s")
        found.append(
            {
                **{name: cell.get(name) for name in ("shape", "what", "dtype", "s", "of ceiling", "launches", "waits")},
                "plain s": other,
                "x plain": other / own if other and own else None,
                "TFLOP": cell["flop"] / 1e12 if "flop" in cell else None,
                "busy": cell["busy s"] / own if cell.get("busy s") and own else None,
                "a step": cell.get("step launches"),
                "waits a step": cell.get("step waits"),
                "uploads a step": cell.get("step uploads"),
                "peak GB": cell.get("peak GB"),
                "plan GB": cell.get("plan GB"),
            }
        )
    return found


def show(report: Mapping[str, Any]) -> str:
    """Print and return the tables of *report*, and what failed."""
    about, cells = report["machine"], report.get("cells", [])
    texts = [measure.show(report["benchmark"], about, COLUMNS, rows(cells))]
    ceiling = ", ".join(f"{name} {value:.4g}" for name, value in report.get("ceiling", {}).items())
    texts.append(f"\nIn the same process: {ceiling} (TFLOP/s but for the copy).\n")
    for asked, how in (("repeats", "as in a trial"), ("repeats unasked", "where nobody asks for it")):
        others = [name for name, same in report.get(asked, {}).items() if not same]
        texts.append(f"What does not repeat to the bit, {how}: {', '.join(others) or 'nothing'}.\n")
        print(texts[-1])
    exams = [
        {**row, "kept": f"{row['promises'] - len(row['broken'])} of {row['promises']}"}
        for row in report.get("promises", [])
    ]
    texts.append(measure.show("The editor contract on this device", about, PROMISES, exams))
    failed = [f"{c['shape']} {c['dtype']} {c['way']} {c['what']}: {c['failed'][-1]}" for c in cells if "failed" in c]
    failed += [f"{e['editor']} {e['family']}: {name}: {tail[-1]}" for e in exams for name, tail in e["broken"].items()]
    failed += [f"{e['editor']} {e['family']}: {e['failed'][-1]}" for e in exams if "failed" in e]
    texts += [f"- failed: {line}" for line in failed]
    print("\n".join(texts[4:]), flush=True)
    return "\n".join(texts)
