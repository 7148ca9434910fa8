"""Where things are: the only code that knows folder names.

Looked-up things (search spaces, hyper-parameters, data, models) are found in the workspace root first, then in the
*share*: what travels with the package (``raysweep/_share`` in a wheel, the repository's top level in a checkout).
Written things (results, artifacts, models, fetched data) go below the root.
"""

from __future__ import annotations

import difflib
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from unicodedata import normalize


def package_share() -> Path:
    """Return the folder whose sub-folders travel with the package."""
    package = Path(__file__).resolve().parent
    wheel = package / "_share"
    return wheel if wheel.is_dir() else package.parent


VARIABLES = ("RAYSWEEP_ROOT", "RAYSWEEP_STORAGE", "RAYSWEEP_JUDGE_KEY")
"""Every environment variable that is read."""


def resolve_from_cwd(path: str | Path, *, shipped: bool = False) -> str:
    """Return a path that somebody stated on the command line as an absolute one; a URI stays as it is.

    It counts from the current folder. With *shipped*, what is not there but came with the package is meant
    (``data/ZsRE/sample.json``).
    """
    if "://" in str(path):
        return str(path)
    stated = Path(path).expanduser()
    # Not resolve(): a link is left as it was named.
    own = Path(os.path.abspath(stated))
    came_along = package_share() / stated
    use_shipped = shipped and not stated.is_absolute() and not own.exists() and came_along.exists()
    return str(came_along if use_shipped else own)


def join_location(location: str, *names: str) -> str:
    """Return the folder *names* below *location*, a folder or URI; the query of a URI stays at its end.

    >>> join_location("s3://bucket/prefix?scheme=http", "demo")
    's3://bucket/prefix/demo?scheme=http'
    >>> join_location("/scratch/results/", "demo")
    '/scratch/results/demo'
    """
    # Only a URI has a query; a local folder may be called anything.
    path, mark, query = location.partition("?") if "://" in location else (location, "", "")
    return "/".join([path.rstrip("/"), *names]) + mark + query


def unknown_variables() -> list[str]:
    """Return the environment variables that look like ours and are not."""
    return sorted(name for name in os.environ if name.startswith("RAYSWEEP_") and name not in VARIABLES)


def near_names(path: Path, *, count: int = 3) -> str:
    """Return what lies beside the missing *path* under a like name, for a hint; empty if nothing does.

    A name may also be there in another Unicode form: ``é`` is one character or two, and most file systems tell them apart.
    """
    try:
        names = sorted(entry.name for entry in path.parent.iterdir())
    except (OSError, ValueError):
        return ""
    same = [name for name in names if normalize("NFC", name) == normalize("NFC", path.name)]
    if same:
        return f"'{same[0]}' is there, the same name in another Unicode form: copy it from the folder's listing"
    close = difflib.get_close_matches(path.name, names, n=count)
    return f"did you mean: {', '.join(close)}?" if close else ""


@dataclass(frozen=True, slots=True)
class Workspace:
    """One root folder and its fixed layout.

    Attributes:
        root: folder below which results, artifacts, models and data live.
        share: folder of what came with the package; looked up after *root*.
        storage: folder or URI (``s3://bucket/prefix``) for results; empty = ``root/results``.
    """

    root: Path
    share: Path = field(default_factory=package_share)
    storage: str = ""

    @staticmethod
    def here(root: Path | str | None = None) -> Workspace:
        """Return the workspace at *root*, else ``$RAYSWEEP_ROOT``, else the current folder; ``$RAYSWEEP_STORAGE`` has results."""
        chosen = Path(root or os.environ.get("RAYSWEEP_ROOT") or Path.cwd())
        storage = os.environ.get("RAYSWEEP_STORAGE", "")
        return Workspace(chosen.expanduser().resolve(), storage=resolve_from_cwd(storage) if storage else "")

    @property
    def artifacts(self) -> Path:
        """The folder of the artifact store."""
        return self.root / "artifacts"

    @property
    def models(self) -> Path:
        """The folder into which models are fetched or built."""
        return self.root / "models"

    @property
    def data(self) -> Path:
        """The folder into which data are fetched."""
        return self.root / "data"

    @property
    def results_root(self) -> str:
        """The folder or URI that holds one folder per sweep."""
        return join_location(self.storage) if self.storage else str(self.root / "results")

    def logs(self, sweep: str) -> Path:
        """Return the folder into which loggers of *sweep* write, on this machine wherever results go."""
        return self.root / "logs" / sweep

    def results(self, sweep: str) -> str:
        """Return the folder or URI of one sweep's results."""
        return join_location(self.results_root, sweep)

    def find(self, *parts: str) -> Path | None:
        """Return ``root/parts`` if it exists, else ``share/parts`` if that does, else None."""
        return next((p for p in (base.joinpath(*parts) for base in self._bases()) if self.holds(str(p))), None)

    def find_space(self, name: str) -> Path | None:
        """Return the search space called *name* (``demo`` → ``search_spaces/demo.yaml``), or None."""
        return self.find("search_spaces", f"{name}.yaml")

    def find_hparams(self, component: str, model: str) -> Path | None:
        """Return ``hparams/<component>/<model>.yaml``, or None."""
        return self.find("hparams", component, f"{model}.yaml")

    def spaces(self) -> Mapping[str, Path]:
        """Return every search space by name."""
        return self.listing("search_spaces")

    def hparams(self, component: str) -> Mapping[str, Path]:
        """Return the hyper-parameter files of an editor or wrapper by model."""
        return self.listing(f"hparams/{component}")

    def listing(self, folder: str, suffix: str = ".yaml") -> Mapping[str, Path]:
        """Return the files of *folder* by stem, sorted; the root's hide the share's."""
        names = {
            path.name.removesuffix(suffix): path
            # The root comes last, so its files replace the package's of the same name.
            for base in reversed(self._bases())
            if (base / folder).is_dir()
            for path in (base / folder).iterdir()
            if path.name.endswith(suffix)
        }
        return dict(sorted(names.items()))

    def resolve(self, path: str) -> Path:
        """Return *path*, which a file names, as an absolute path; a relative one counts from the root."""
        # A path in a file means the same whoever runs it, from whatever folder.
        named = Path(path).expanduser()
        return named if named.is_absolute() else (self.root / named).resolve()

    def holds(self, path: str) -> bool:
        """Tell whether something is at *path* (relative paths count from the root); no where there can be nothing."""
        try:
            return bool(path) and self.resolve(path).exists()
        except (OSError, ValueError, RuntimeError):  # a name too long, a NUL, the home of a user who is not
            return False

    def _bases(self) -> tuple[Path, ...]:
        return (self.root,) if self.root == self.share else (self.root, self.share)
