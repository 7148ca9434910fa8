"""Our own numbers, small, one entry per component and version: what must not move unless the version is raised.

    python -m tests.golden.ledger                  # which components have moved, or have no entry
    python -m tests.golden.ledger record           # enter what has none: a new component, or a raised version
    python -m tests.golden.ledger noise            # how far the figures move with other instructions and threads

The published code's numbers (``tests/golden/recorded``) hold where somebody published one. This holds everywhere: each component
runs on a tiny model, on toy records or on a shipped sample, and a few figures of what comes out are compared with ``ledger.json``.
An entry is never overwritten: equal keys must carry equal numbers, so another number needs another version.

Tolerance: :data:`RELATIVE` of the largest number of a figure, plus :data:`ABSOLUTE`. ``noise`` printed at most a tenth of it: other
processors are no reason to fail, and what changes a method moves more. Hashes (of texts, questions, sampled templates) are equal
or not.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from raysweep.artifact_kinds import VERSIONS as ARTIFACTS
from raysweep.belief import testbed
from raysweep.belief.graph import artifact
from raysweep.belief.lm import pretrain
from raysweep.config.schema import ProtocolSpec
from raysweep.data import DATASETS, texts
from raysweep.editors import EDITORS
from raysweep.editors.wrappers import WRAPPERS
from raysweep.metrics import METRICS
from raysweep.studies import STUDIES
from tests.golden import sketches
from tests.golden.sketches import Figures

FILE = Path(__file__).parent / "ledger.json"
RELATIVE, ABSOLUTE = 5e-4, 1e-6
DIGITS = 6
RECORD = "python -m tests.golden.ledger record"
OTHERS: tuple[Mapping[str, str], ...] = (
    {"ATEN_CPU_CAPABILITY": "default"},
    {"ATEN_CPU_CAPABILITY": "avx2"},
    {"MKL_CBWR": "COMPATIBLE"},
    {"MKL_ENABLE_INSTRUCTIONS": "SSE4_2", "ONEDNN_MAX_CPU_ISA": "SSE41"},
    {"LEDGER_THREADS": "2"},
)
Entries = dict[str, dict[str, Figures]]  # by component and version


@dataclass(frozen=True, slots=True)
class Moved:
    """One figure that is not the recorded one: how far it is, in units of the tolerance (infinite where it must be equal)."""

    figure: str
    recorded: object
    now: object
    far: float


def versions() -> dict[str, int]:
    """Return the version of every component that has one, by its name in ``TrialSpec.versions`` where it is there."""
    found = {f"artifact/{kind}": version for kind, version in ARTIFACTS.items()}
    for kind, table in (("editor", EDITORS), ("wrapper", WRAPPERS), ("dataset", DATASETS), ("study", STUDIES)):
        found |= {f"{kind}/{name}": table.get(name).version for name in table.names()}
    found |= {f"metric/{name}": metric.version for name, metric in METRICS.items()}
    made = {
        "belief/graph": artifact.GRAPH_VERSION,
        "belief/points": testbed.POINTS_VERSION,
        "belief/model": pretrain.VERSION,
    }
    return found | made | {"protocol": ProtocolSpec.version, "texts": texts._VERSION}


def figures(component: str) -> Figures:
    """Return the component's figures as they come out now, rounded as they are stored."""
    torch.set_num_threads(int(os.environ.get("LEDGER_THREADS", "1")))
    with tempfile.TemporaryDirectory() as folder:
        return rounded(sketches.table()[component](Path(folder)))


def rounded(found: Figures) -> Figures:
    """Return *found* with numbers of :data:`DIGITS` digits."""
    return {
        name: value if isinstance(value, str) else [float(f"{v:.{DIGITS}g}") for v in value]
        for name, value in found.items()
    }


def compared(recorded: Figures, now: Figures) -> list[Moved]:
    """Return every figure of both that differs, the farthest first; where no number exceeds the tolerance, ``far`` is at most 1."""
    moved = []
    for name in sorted(recorded.keys() & now.keys()):
        old, new = recorded[name], now[name]
        if isinstance(old, str) or isinstance(new, str) or len(old) != len(new):
            if old != new:
                moved.append(Moved(name, old, new, float("inf")))
            continue
        allowed = ABSOLUTE + RELATIVE * max((abs(v) for v in old), default=0.0)
        far = max((abs(a - b) / allowed for a, b in zip(old, new, strict=True)), default=0.0)
        if far:
            moved.append(Moved(name, old, new, far))
    return sorted(moved, key=lambda m: -m.far)


def complaint(component: str, version: int, entries: Entries, now: Figures) -> str:
    """Return what is wrong with *component*, or an empty text."""
    entry = entries.get(component, {}).get(str(version))
    if entry is None:
        known = ", ".join(entries.get(component, {})) or "none"
        return f"{component} version {version} has no entry in {FILE.name} (versions there: {known}).\n    Record it: {RECORD}"
    moved = [m for m in compared(entry, now) if m.far > 1]
    if moved:
        first = moved[0]
        return (
            f"{component} has moved under version {version}: {len(moved)} of {len(entry)} figures, first {first.figure}\n"
            f"    recorded {first.recorded}\n    now      {first.now}\n"
            f"    Equal keys must carry equal numbers: raise {where(component)}, "
            f"add a line under 'Numbers changed' in CHANGELOG.md, and record again with {RECORD}"
        )
    lost, new = sorted(entry.keys() - now.keys()), sorted(now.keys() - entry.keys())
    if lost:
        return f"{component} version {version}: {', '.join(lost)} are recorded, but no longer made; take them out of {FILE.name}"
    return (
        f"{component} version {version}: {', '.join(new)} are not recorded.\n    Record them: {RECORD}" if new else ""
    )


def where(component: str) -> str:
    """Return where the version of *component* is written."""
    kind, _, name = component.partition("/")
    tables = {"editor": EDITORS, "wrapper": WRAPPERS, "dataset": DATASETS, "study": STUDIES}
    if kind in tables:
        return f"{tables[kind].origin(name).replace(':', '.')}.version"
    own = {
        "belief/points": "raysweep.belief.testbed.POINTS_VERSION",
        "belief/model": "raysweep.belief.lm.pretrain.VERSION",
    }
    own |= {"belief/graph": "raysweep.belief.graph.artifact.GRAPH_VERSION"}
    own |= {"protocol": "raysweep.config.schema.ProtocolSpec.version", "texts": "raysweep.data.texts._VERSION"}
    listed = {
        "artifact": f"raysweep.artifacts.VERSIONS['{name}']",
        "metric": f"the version of raysweep.metrics.{name}",
    }
    return own.get(component) or listed[kind]


def read(file: Path = FILE) -> Entries:
    """Return what is recorded."""
    found: Entries = json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {}
    return found


def record(entries: Entries, component: str, version: int, now: Figures) -> bool:
    """Enter *now*; return whether there was anything to enter. Figures that an entry lacks are added; none is replaced.

    Raises:
        ValueError: the entry of this version has other figures.
    """
    entry = entries.setdefault(component, {}).setdefault(str(version), {})
    wrong = complaint(component, version, entries, now) if [m for m in compared(entry, now) if m.far > 1] else ""
    if wrong:
        raise ValueError(wrong)
    new = {name: value for name, value in now.items() if name not in entry}
    entry |= new
    return bool(new)


def write(entries: Entries, file: Path = FILE) -> None:
    """Write *entries*, a line per figure."""
    lines = []
    for component, by_version in sorted(entries.items()):
        parts = []
        for version, found in sorted(by_version.items(), key=lambda item: int(item[0])):
            inner = ",\n".join(f"   {json.dumps(name)}: {json.dumps(value)}" for name, value in sorted(found.items()))
            parts.append(f'  "{version}": {{\n{inner}\n  }}')
        lines.append(f" {json.dumps(component)}: {{\n" + ",\n".join(parts) + "\n }")
    file.write_text("{\n" + ",\n".join(lines) + "\n}\n", encoding="utf-8")


def main(argv: list[str]) -> int:
    """Check, record, or measure the noise; exit code 1 if anything is wrong."""
    entries, current = read(), versions()
    wrong = []
    if argv == ["noise"]:
        return _noise(sorted(current))
    for component, version in sorted(current.items()):
        now = figures(component)
        if argv == ["record"]:
            try:
                if record(entries, component, version, now):
                    print(f"recorded {component} version {version}")
            except ValueError as error:
                wrong.append(str(error))
        else:
            wrong += [complaint(component, version, entries, now)]
    if argv == ["record"]:
        write(entries)
    wrong = [text for text in wrong if text]
    print("\n".join(wrong) or "nothing has moved")
    return int(bool(wrong))


def _noise(components: Iterable[str]) -> int:
    """Print, for each other way to compute, the largest distance to the recorded figures in units of the tolerance."""
    code = (
        "import json, sys; from tests.golden import ledger as l; e = l.read()\n"
        "for c, v in sorted(l.versions().items()):\n"
        "    far = [m for m in l.compared(e[c][str(v)], l.figures(c))][:1]\n"
        "    print(json.dumps([c, far[0].far if far else 0.0, far[0].figure if far else '']))"
    )
    for other in OTHERS:
        done = subprocess.run(
            [sys.executable, "-c", code], env={**os.environ, **other}, capture_output=True, text=True, check=True
        )
        rows = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("[")]
        assert len(rows) == len(list(components))
        worst = sorted(rows, key=lambda row: -row[1])[:3]
        print(", ".join(f"{k}={v}" for k, v in other.items()), "  ".join(f"{c} {far:.2g} ({f})" for c, far, f in worst))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
