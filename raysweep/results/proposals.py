"""Proposals that several edit groups of a sweep share, a file per record; gone when the last of those groups is done."""

from __future__ import annotations

import hashlib
import json

from raysweep import pytree
from raysweep.editors.base import Proposal
from raysweep.hashing import text_digest
from raysweep.lazy import lazy
from raysweep.results.folder import Folder

PROPOSALS = "_proposals"
# A file is 32 hex digits, the hash of its body; 8 bytes, the size of the JSON; and the body: that JSON, then
# safetensors.
_HASH = 32
torch = lazy("torch")


class ProposalFolder:
    """The proposals of one editor on one model for one dataset (``PlannedTrial.proposal_cache_key``), below a sweep's results.

    Whoever computes one first keeps it; two who compute the same one write the same bytes. A damaged file counts as none.
    """

    def __init__(self, folder: Folder, cache_key: str) -> None:
        self.folder, self.cache_key = folder, cache_key

    def get(self, record: str) -> Proposal | None:
        """Return what is kept of *record*, on the CPU."""
        from safetensors.torch import load

        try:
            data = self.folder.read(self._file(record))
        except FileNotFoundError:
            return None
        sealed, size, body = (
            data[:_HASH].decode(errors="replace"),
            int.from_bytes(data[_HASH : _HASH + 8]),
            data[_HASH + 8 :],
        )
        # A torn or altered file costs no more than the proposal, which is computed again.
        if _hash(body) != sealed:
            return None
        proposal: Proposal = pytree.unflatten("p", load(body[size:]), json.loads(body[:size]), torch.device("cpu"))
        return proposal

    def put(self, record: str, proposal: Proposal) -> None:
        """Keep the proposal of *record*."""
        from safetensors.torch import save

        tensors, plain = pytree.flatten("p", proposal)
        head = json.dumps(plain).encode()
        body = head + save({k: v.cpu().contiguous() for k, v in tensors.items()})
        self.folder.write(self._file(record), _hash(body).encode() + len(head).to_bytes(8) + body)

    def forget(self) -> None:
        """Delete everything that is kept."""
        self.folder.delete_folder(f"{PROPOSALS}/{self.cache_key}")

    def _file(self, record: str) -> str:
        return f"{PROPOSALS}/{self.cache_key}/{text_digest(record)}"


def _hash(data: bytes) -> str:
    return hashlib.blake2b(data).hexdigest()[:_HASH]
