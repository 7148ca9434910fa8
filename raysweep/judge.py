"""A language model as judge, behind one OpenAI-compatible URL: whether an answer says what the target says (docs/protocols.md).

The judge is not trusted: what it answers is a letter or nothing, a failure is tried again and then counted, and neither raises.
"""

from __future__ import annotations

import json
import re
import time
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass
from email.message import Message
from http.client import HTTPException
from typing import IO, NamedTuple
from urllib.error import HTTPError
from urllib.parse import urlsplit

from raysweep.errors import SpecError
from raysweep.hashing import text_digest

PROMPT = """You are grading one answer to a question.

Question: {question}
Correct answer: {target}
Given answer: {answer}

Reply A if the given answer states the correct answer. Other words, another spelling, a shorter or longer form of the same name,
date or amount, and correct additions are all fine.
Reply B if it states something else, contradicts the correct answer, only hints at it, is cut off before it, or is empty.

Reply with the single letter A or B and nothing else."""
_LETTER = re.compile(r"\W*([AB])\b\W*\Z")
LARGEST = 1 << 20  # bytes of a reply
_TOKENS = 16  # a letter, and room for spaces around it
_AGAIN = frozenset({408, 409, 425, 429, 500, 502, 503, 504})  # what another try may cure


class Case(NamedTuple):
    """What is judged: a question, the answer that was wanted, and the answer that was given."""

    question: str
    target: str
    answer: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What came of one case.

    Attributes:
        value: 1 for A, 0 for B; None: the judge gave no letter.
        text: its reply.
        error: why there is no letter; empty if there is one.
    """

    value: float | None
    text: str = ""
    error: str = ""


class _NoRedirect(urllib.request.HTTPRedirectHandler):
    """Follows nothing: the key would be sent on to another host."""

    def redirect_request(
        self, req: urllib.request.Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> None:
        return None


@dataclass(frozen=True, slots=True, kw_only=True)
class Judge:
    """A judge.

    Attributes:
        url: of an OpenAI-compatible server, such as ``http://127.0.0.1:8000/v1``.
        model: which of its models.
        key: sent as bearer token; empty = none.
        timeout (s): of one try.
        tries: per case.
        pause (s): before the second try; doubled before each further one.
    """

    url: str
    model: str
    key: str = ""
    timeout: float = 60.0
    tries: int = 4
    pause: float = 1.0

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not parts.hostname:
            raise SpecError(f"'{self.url}' is no http(s) address of a judge", hint="such as http://127.0.0.1:8000/v1")
        # A server on this machine needs no TLS; anything else would read the key on the way.
        if self.key and parts.scheme == "http" and parts.hostname not in ("localhost", "127.0.0.1", "::1"):
            raise SpecError(
                f"the key would cross the network unencrypted to {parts.hostname}",
                hint="use https, or unset RAYSWEEP_JUDGE_KEY",
            )

    @property
    def prompt_hash(self) -> str:
        """16 hex digits over the prompt."""
        return text_digest(PROMPT)

    def ask(self, case: Case, sleep: Callable[[float], None] = time.sleep) -> Verdict:
        """Return the verdict on *case*; nothing that the judge does raises."""
        # not str.format: an answer may have braces
        filled = re.sub(r"\{(question|target|answer)\}", lambda m: str(getattr(case, m[1])), PROMPT)
        failed = Verdict(None, error="it was not tried")
        # A busy server is the usual fault, so each pause is twice the one before.
        for attempt in range(self.tries):
            if attempt:
                sleep(self.pause * 2 ** (attempt - 1))
            failed, again = self._try(filled)
            if failed.value is not None or not again:
                break
        return failed

    def _try(self, prompt: str) -> tuple[Verdict, bool]:
        """Return what one try gives, and whether another one may give more."""
        body = {"model": self.model, "messages": [{"role": "user", "content": prompt}], "temperature": 0}
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {self.key}"} if self.key else {})
        request = urllib.request.Request(
            f"{self.url.rstrip('/')}/chat/completions",
            data=json.dumps({**body, "max_tokens": _TOKENS}).encode(),
            headers=headers,
        )
        try:
            with urllib.request.build_opener(_NoRedirect).open(request, timeout=self.timeout) as reply:
                # bounded: what answers at that address may be anything
                data = reply.read(LARGEST)
            text = json.loads(data)["choices"][0]["message"]["content"]
        except HTTPError as error:
            return Verdict(None, error=f"HTTP {error.code}"), error.code in _AGAIN
        except (OSError, HTTPException) as error:
            return Verdict(None, error=f"{type(error).__name__}: {error}"), True
        except (ValueError, LookupError, TypeError):
            return Verdict(None, error="the reply is no chat completion"), True
        # The whole reply must be the letter: "A or B" and "Apples" begin with one too.
        letter = _LETTER.match(text) if isinstance(text, str) else None
        if letter is None:
            return Verdict(None, str(text), "the reply is neither A nor B"), True
        return Verdict(float(letter[1] == "A"), text), False
