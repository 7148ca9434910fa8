"""The names of what tables show, apart from how it is computed: a plan checks them without loading numpy."""

from __future__ import annotations

VIEWS: dict[str, tuple[str, str]] = {
    "rel": ("efficacy", "token_match"),
    "gen": ("paraphrase", "token_match"),
    "loc": ("locality", "agreement"),
    "port": ("portability", "token_match"),
    "port_any": ("portability", "any_match"),
    "rel_exact": ("efficacy", "exact_match"),
    "gen_exact": ("paraphrase", "exact_match"),
    "rel_logprob": ("efficacy", "target_logprob"),
    "ppl": ("efficacy", "ppl"),
}
"""View → (probe kind, metric) whose rows it is the mean of."""

DRIFT_VERSION = 1
"""Of the numbers of ``protocol.drift``; in the key of every trial that measures them."""

DERIVED = ("avg", "geo", "ppl_median", "ppl_expmean")
"""Views that are computed from others."""

PHASES = ("retained", "immediate")
"""Of a round after an edit, in the order in which they are looked for."""
