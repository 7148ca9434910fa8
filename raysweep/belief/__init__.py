"""The belief-revision testbed of Hase et al. 2024 (arXiv 2406.19354): what should a rational mind believe after an edit?

One setting (``spec.py``) goes through the packages in this order; each imports those before it only, except that ``lm`` and
``points`` share the metrics of ``report``.

* ``graph``: facts, and which relation depends on which.
* ``corpus``: a generative model of the facts, the sentences that are written about them, and what evidence each sentence is.
* ``agent``: the ideal Bayesian agent that has read the corpus; what it believes, and what it would believe after an update.
* ``points``: evaluation points, each a fact with questions, a requested update and four watched facts.
* ``lm``: a small language model trained on the same corpus, and how it is asked the same questions.
* ``report``: how far the model is from the truth, from the agent and from itself; tables, and the published files.

``testbed.py`` holds it all together. Equations: docs/methods/belief.md; how to run it: docs/belief.md.
"""
