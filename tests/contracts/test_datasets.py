"""Every dataset of the table sits the dataset contract, on committed samples and on real files where they are."""

from __future__ import annotations

from pathlib import Path

import pytest

from raysweep.data import DATASETS
from raysweep.testing.dataset_contract import check_dataset_contract
from raysweep.workspace import package_share

SAMPLES = {
    "zsre": ["ZsRE/sample.json"],
    "counterfact": ["counterfact/sample.json", "counterfact/sample.original.json"],
    "hallucination": ["hallucination/sample.json"],
    "qaedit": ["qaedit.json"],
    "hallueditbench": ["hallueditbench", "hallueditbench/art.csv"],
    "mquake": ["mquake.json"],
    "wikibigedit": ["wikibigedit.json"],
    "knowedit": ["knowedit.json", "knowedit.wikibio.json"],
    "rippleedits": ["rippleedits.json"],
    "uniedit": ["uniedit.json"],
    "ultraeditbench": ["ultraeditbench.json"],
    "zsre_rledit": ["zsre_rledit.json"],
    "fever": ["fever.json"],
    "belief": [None],
    "world": [None],
}
OWN = Path(__file__).with_name("samples")  # of the sets that come without one in the package
REAL = Path(__file__).resolve().parents[3] / "shared" / "data"
REAL_FILES = {
    "zsre": ("ZsRE/zsre_mend_edit.json", 300),
    "counterfact": ("counterfact/counterfact-edit.json", 500),
    "hallucination": ("hallucination/hallucination-edit.json", 120),
    "qaedit": ("QAEdit/QAEdit_inter_1k.json", 1000),
    "hallueditbench": ("HalluEditBench/meta_llama_3_8b_instruct/event_film.csv", 42),
}


def sample_path(sample: str | None) -> Path | None:
    """Return where *sample* is; None for a dataset without a file."""
    if sample is None:
        return None
    return OWN / sample if (OWN / sample).exists() else package_share() / "data" / sample


def test_every_dataset_has_a_sample() -> None:
    assert set(SAMPLES) == set(DATASETS.names())


@pytest.mark.parametrize(("name", "sample"), [(n, s) for n, samples in SAMPLES.items() for s in samples])
def test_dataset_keeps_its_promises(name: str, sample: str | None) -> None:
    check_dataset_contract(DATASETS.get(name), sample_path(sample))


@pytest.mark.skipif(not REAL.is_dir(), reason="real data files are not here")
@pytest.mark.parametrize("name", REAL_FILES)
def test_real_files_keep_the_promises(name: str) -> None:
    file, rows = REAL_FILES[name]
    check_dataset_contract(DATASETS.get(name), REAL / file)
    assert DATASETS.get(name)().count(REAL / file) == rows
