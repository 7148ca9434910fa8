"""What the published belief-revision code does otherwise, switch by switch; all off = as corrected."""

from __future__ import annotations

from raysweep.config.schema import Spec


class ParitySpec(Spec):
    """Behaviour of the published code (Hase et al. 2024, commit 2a90e9b) that ours corrects.

    Attributes:
        and_evidence_stale: (A1) an ``and`` sentence repeats evidence gathered earlier for its subject, not its own.
        partners_from_seen: (A5) partner facts of connectives come from subjects written so far.
        double_child_update: (B1) an update of a child fact changes the pooled conditionals twice.
        pi_by_items: (B3) a subject's evidence is split over upstream objects by the number of items that mention
            them, denials included; otherwise by the positive mass on them.
        float_ceil: (B12) counts and percentages that ``min_true_prob`` asks for are rounded up in binary floating point:
            ⌈100 · .55⌉ = 56, and one observation too many at .8 and .9.
        third_object_prob: (B8) an object that a pair distribution never produces has the distractor's probability.
        mgtp1_additive: (B9) with ``min_true_prob`` 1 a conditional's mode gets one more observation, not all mass.
        mult_label_prob: (C1) the multiplication check multiplies with A's label probability, not with p(A is true).
        labels_of_first_point: (C2) every point of a batch is scored with the labels of the batch's first point; a batch is
            ``protocol.eval_batch`` points in the trial's order (published: 64 in the order of the ids).
        edit_mass_pooled: an edit of a lifelong run counts with its whole mass in what one subject says about others too, as the
            published single update does; otherwise it counts there as one observation at most.
        unfiltered_downstream_request: (D1) an update meant to change the downstream answer may not change it.
        n1000_weight_one: (D2) the update named ``n=1000`` has weight 1.
    """

    and_evidence_stale: bool = False
    partners_from_seen: bool = False
    double_child_update: bool = False
    pi_by_items: bool = False
    float_ceil: bool = False
    third_object_prob: bool = False
    mgtp1_additive: bool = False
    mult_label_prob: bool = False
    labels_of_first_point: bool = False
    edit_mass_pooled: bool = False
    unfiltered_downstream_request: bool = False
    n1000_weight_one: bool = False
