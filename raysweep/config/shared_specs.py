"""What the configurations of several components hold: texts, files, context templates, second moments.

A plan looks for these parts wherever they stand in a configuration: it takes digests of texts and files, and tells from context
templates and rows of text how long a row of the model becomes.
"""

from __future__ import annotations

from typing import Annotated, ClassVar

from pydantic import Field

from raysweep.config.values import Count, GrownSpec, Natural, NonNegative, Spec


class TextSpec(Spec):
    """Text from which second moments of keys are taken.

    Attributes:
        name: ``dataset`` (the dataset's own texts), ``brown`` (``raysweep data fetch brown``), ``wikipedia`` or
            ``wikitext`` (extra ``[datasets]``, needs a network), or any label when ``path`` is given.
        path: a text, JSONL or Parquet file, or a folder of them; not part of the key (``digest`` is).
        tokens (tokens): stop after this many tokens; 0 = everything.
        digest: hash of the text, filled in by the plan.
    """

    name: str = "dataset"
    path: str = ""
    tokens: Natural = 100_000
    digest: str = ""


class FileSpec(Spec):
    """A file a component reads.

    Attributes:
        path: where it lies; empty = there is none; not part of the key (``digest`` is).
        digest: hash of its content, filled in by the plan.
    """

    path: str = ""
    digest: str = ""


class ContextSpec(Spec):
    """Which context templates to put before a prompt (docs/methods/rome.md).

    Attributes:
        lengths (tokens, texts): pairs (tokens per text, number of texts) to sample; ROME uses ``[[5, 10], [10,
            10]]``, MEMIT ``[[10, 5]]``.
        seed: of the sampling.
        templates: use these instead of sampling (``{}`` is always first).
    """

    lengths: tuple[tuple[int, int], ...] = ((5, 10), (10, 10))
    seed: int = 0
    templates: tuple[str, ...] | None = None

    @property
    def count(self) -> int:
        """How many texts a prompt is put behind, the empty one among them."""
        if self.templates is not None:
            # `{}` is always among them: it is the 1, and is not counted again where it is written out.
            return 1 + sum(template != "{}" for template in self.templates)
        return 1 + sum(texts for _, texts in self.lengths)

    @property
    def longest(self) -> int:
        """About how many tokens the longest of them has: of given templates, the words."""
        if self.templates is not None:
            # Words stand for tokens here, since a plan may have no tokenizer at hand.
            return max((len(template.replace("{}", "").split()) for template in self.templates), default=0)
        return max((tokens for tokens, _ in self.lengths), default=0)


class MomentSpec(GrownSpec):
    """How to estimate second moments of keys (docs/methods/rome.md).

    Attributes:
        text: where the tokens come from, and how many.
        width (tokens): longest row in tokens; longer texts are cut.
        skip (tokens): leading tokens of each row to leave out (1 for models whose position 0 is an attention sink; 0 = published).
        damping (mean diagonal of C): added to the diagonal, in units of its mean, before factoring (0 = published).
        ref_fp32: add the products up in fp32, as published (quirk Q10).
        files: second moments that other programs computed (ROME's and EasyEdit's ``….npz``), one for each edited block, told by
            the module that the file's name begins with; then no text is read.
    """

    # Without files a trial has the key it had before other programs' moments could be read.
    added: ClassVar[frozenset[str]] = frozenset({"files"})

    text: TextSpec = TextSpec()
    width: Count = 512
    skip: Annotated[int, Field(ge=0)] = 0
    damping: NonNegative = 0.0
    ref_fp32: bool = False
    files: tuple[FileSpec, ...] = ()

    def idle_fields(self) -> frozenset[str]:
        """Return the text where files take its place."""
        return frozenset({"text"}) if self.files else frozenset()
