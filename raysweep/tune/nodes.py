"""What every node of a joined cluster must have, asked of each node before any trial starts.

A node that lacks the package, sees another file system or holds another copy of a dataset would otherwise be found out trial by
trial, hours into a sweep. :func:`ask` runs one small task on each node that can hold a trial; :func:`faults` compares the answers
with this process, and :func:`table` shows them. Only :func:`ask` imports Ray.
"""

from __future__ import annotations

import logging
import platform
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, TypedDict

from raysweep.config.planned_trial import Plan
from raysweep.config.schema import DataSpec, ModelSpec
from raysweep.errors import NodeError, RaysweepError
from raysweep.lazy import lazy
from raysweep.results.folder import Folder
from raysweep.results.provenance import installed
from raysweep.workspace import Workspace

if TYPE_CHECKING:
    from ray import ObjectRef

log = logging.getLogger(__name__)

PACKAGES = ("raysweep", "ray", "torch", "transformers", "numpy", "pyarrow")
SECONDS = 90.0  # for a node to answer: its first task starts a process and imports pyarrow
SPARE = 1 << 30  # bytes that must be free on a node: snapshots, artifacts and Ray's own files


class Answer(TypedDict):
    """What a node says of itself: plain data, since it may have none of our classes.

    Attributes:
        python: version, as ``3.11.7``.
        packages: version of each of :data:`PACKAGES`; None = not installed.
        free: bytes free below the workspace's root.
        gpus: names and bytes of the accelerators that torch sees; empty unless the node offers some to Ray.
        why_unseen: its torch, its driver and the cure, should it offer more of them; empty unless it offers some.
        problems: what it cannot find or write, in sentences.
    """

    python: str
    packages: dict[str, str | None]
    free: int | None
    gpus: list[tuple[str, int]]
    why_unseen: str
    problems: list[str]


@dataclass(frozen=True, slots=True)
class Node:
    """A node and what it answered.

    Attributes:
        name: its address.
        resources: what it offers to Ray.
        answer: what it said; None = it did not answer.
        error: why it did not.
    """

    name: str
    resources: Mapping[str, float]
    answer: Answer | None = None
    error: str = ""


@dataclass(frozen=True, slots=True)
class Requirements:
    """What a node must have to run trials of a sweep.

    Attributes:
        workspace: where models, data and artifacts are looked for, the same path on every node.
        results: folder or URI of the sweep's results.
        models: every model of the sweep, with its digest.
        data: every dataset of the sweep, with its digest.
        token: name of a file that this process wrote into *results*; a node that sees it shares the storage.
        accelerated: whether trials may be given accelerators, so that what a node offers must be there.
        versions: version of each of :data:`PACKAGES` here.
        python: major and minor version here.
    """

    workspace: Workspace
    results: str
    models: tuple[ModelSpec, ...]
    data: tuple[DataSpec, ...]
    token: str
    accelerated: bool = True
    versions: Mapping[str, str | None] = field(default_factory=lambda: {name: installed(name) for name in PACKAGES})
    python: str = ".".join(platform.python_version_tuple()[:2])


def check(plan: Plan, workspace: Workspace, report: Callable[[Sequence[str]], None]) -> None:
    """Ask every node of the cluster that this process has joined, report them in one table, and refuse those that lack something.

    Args:
        plan: what will be run.
        workspace: where its inputs and results are.
        report: given the lines of the table.

    Raises:
        NodeError: a node lacks something; every fault is a line of the message.
        UnwritableError: the storage cannot be written from here.
    """
    folder = Folder(workspace.results(plan.sweep.name))
    token = f".probe-{uuid.uuid4().hex[:12]}"  # a name that no reader of results ever lists
    folder.write(token, b"raysweep")
    try:
        trials = [planned.trial for planned in plan.trials]
        needed = Requirements(
            workspace,
            workspace.results(plan.sweep.name),
            tuple(dict.fromkeys(trial.model for trial in trials)),
            # By digest: sections that differ in size or order alone need the same file.
            tuple({trial.data.digest: trial.data for trial in trials}.values()),
            token,
            # With 0 the CPU is meant, and what a node says of its GPUs does not matter.
            accelerated=plan.sweep.resources.gpu != 0,
        )
        nodes = ask(needed)
    finally:
        folder.delete(token)
    report(table(nodes))
    lacking = [fault for node in nodes for fault in faults(node, needed)]
    if lacking:
        hint = "mend these nodes, or start the cluster without them; no trial was started"
        raise NodeError("\n    ".join(["nodes of the cluster cannot run this sweep:", *lacking]), hint=hint)


def ask(needed: Requirements) -> list[Node]:
    """Return every living node that offers processors, with its answer, ordered by address.

    A head that offers none (``num-cpus: "0"``) runs no trial and is not asked.
    """
    import ray
    from ray import cloudpickle
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    alive = [node for node in ray.nodes() if node["Alive"] and node["Resources"].get("CPU")]
    # A task without processors starts on a node that is full, too.
    remote = ray.remote(num_cpus=0, max_retries=0)(probe_function())
    tasks: dict[ObjectRef[Answer], Node] = {}
    payload = cloudpickle.dumps(needed)
    for node in alive:
        # Not soft: the answer must be this node's or none, never that of another.
        here = NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
        accelerated = needed.accelerated and bool(node["Resources"].get("GPU"))
        reference = remote.options(scheduling_strategy=here).remote(payload, accelerated)
        tasks[reference] = Node(str(node["NodeManagerAddress"]), node["Resources"])
    ready, late = ray.wait(list(tasks), num_returns=len(tasks), timeout=SECONDS) if tasks else ([], [])
    nodes = [
        Node(tasks[task].name, tasks[task].resources, error=f"did not answer within {SECONDS:.0f} s") for task in late
    ]
    node_ids = dict(zip(tasks, (node["NodeID"] for node in alive), strict=True))
    for task in ready:
        node = tasks[task]
        try:
            nodes.append(Node(node.name, node.resources, ray.get(task)))
        except Exception as error:  # whatever the node raised, the sentence must name the node
            # One that was taken away meanwhile lacks nothing; the sweep runs on those that are left.
            if len(alive) > 1 and node_ids[task] in {one["NodeID"] for one in ray.nodes() if not one["Alive"]}:
                log.warning("node %s went away while it was examined", node.name)
                continue
            # Ray's text is a remote traceback, whose last line is the error.
            last = str(error).strip().splitlines()[-1:] or [type(error).__name__]
            nodes.append(Node(node.name, node.resources, error=f"cannot run a task: {last[0][:200]}"))
    return sorted(nodes, key=lambda node: node.name)


def probe_function() -> Callable[[bytes, bool], Answer]:
    """Return the task that a node runs.

    It is made here, inside a function, so that Ray sends its code and not its name, and it is given the requirements as bytes: a
    node without raysweep, which could unpack neither, can still answer that it has none.
    """
    # A local name travels with the code; a global one would have to be imported over there.
    packages = PACKAGES

    def probe(payload: bytes, accelerated: bool) -> Answer:
        import pickle
        import platform
        from importlib.metadata import PackageNotFoundError, version

        found: dict[str, str | None] = {}
        for name in packages:
            try:
                found[name] = version(name)
            except PackageNotFoundError:
                found[name] = None
        answer: Answer = {
            "python": platform.python_version(), "packages": found, "free": None, "gpus": [], "why_unseen": "", "problems": [],
        }  # fmt: skip
        if found["raysweep"] is None:
            return answer
        from raysweep.tune import nodes

        return nodes.examine(pickle.loads(payload), answer, accelerated=accelerated)

    return probe


def examine(needed: Requirements, answer: Answer, *, accelerated: bool) -> Answer:
    """Return *answer* with what this node finds of *needed*; run on the node.

    Args:
        needed: what the sweep needs.
        answer: what is known so far.
        accelerated: whether the node offers accelerators to Ray, and trials may be given them.
    """
    import shutil

    workspace, problems = needed.workspace, answer["problems"]
    try:
        workspace.artifacts.mkdir(parents=True, exist_ok=True)
        Folder(workspace.artifacts).check_writable()
        answer["free"] = shutil.disk_usage(workspace.root).free
    except (OSError, RaysweepError) as error:
        problems.append(f"cannot write below {workspace.root}: {_sentence(error)}")
    problems += _storage_problems(needed)
    for model in needed.models:
        with _noted(problems):
            lazy("raysweep.models.sources.catalogue").locate(model, workspace)
    for data in needed.data:
        with _noted(problems):
            lazy("raysweep.data").check_digest(data, workspace)
    if accelerated:
        # It takes seconds to import, so only nodes that offer accelerators do.
        import torch

        from raysweep.runtime import visible_gpus, why_unseen

        cards = [torch.cuda.get_device_properties(index) for index in range(visible_gpus())]
        answer["gpus"] = [(card.name, int(card.total_memory)) for card in cards]
        answer["why_unseen"] = why_unseen()
    return answer


def _storage_problems(needed: Requirements) -> list[str]:
    """Return why this node cannot read, write or delete where results go."""
    try:
        folder = Folder(needed.results)
        if not folder.exists(needed.token):
            shared = "use --storage with a folder that all nodes share, or s3://…"
            return [f"{needed.results} is another folder there than here; {shared}"]
        folder.check_writable()
    except (OSError, RaysweepError) as error:
        return [f"cannot write {needed.results}: {_sentence(error)}"]
    return []


@contextmanager
def _noted(problems: list[str]) -> Iterator[None]:
    """Turn an error of ours, or of the file system, into a sentence among *problems*."""
    try:
        yield
    except (OSError, RaysweepError) as error:
        problems.append(_sentence(error))


def _sentence(error: Exception) -> str:
    return error.message if isinstance(error, RaysweepError) else str(error)


def faults(node: Node, needed: Requirements) -> list[str]:
    """Return what *node* lacks, one sentence for each fault."""
    answer = node.answer
    if answer is None:
        return [f"{node.name}: {node.error}"]
    lacking = []
    if not answer["python"].startswith(f"{needed.python}."):
        lacking.append(f"python {answer['python']}, here {needed.python}")
    for name, here in needed.versions.items():
        there = answer["packages"][name]
        if there is None:
            lacking.append(f"{name} is not installed: pip install {name}=={here}")
        elif there != here:
            # Numbers of one table must come from one version of everything that computes them.
            lacking.append(f"{name} {there}, here {here}: pip install {name}=={here}")
    lacking += answer["problems"]
    offered = node.resources.get("GPU", 0)
    # A node without raysweep never looked at its cards, and is named for that already.
    if needed.accelerated and answer["packages"]["raysweep"] and offered > len(answer["gpus"]):
        lacking.append(f"offers {offered:g} GPU to Ray, but torch sees {len(answer['gpus'])}: {answer['why_unseen']}")
    if answer["free"] is not None and answer["free"] < SPARE:
        lacking.append(f"{answer['free'] / 2**30:.1f} GiB free below {needed.workspace.root}, {SPARE >> 30} needed")
    return [f"{node.name}: {fault}" for fault in lacking]


def table(nodes: Iterable[Node]) -> list[str]:
    """Return the nodes as lines of text under a heading."""
    rows = [("node", "cpu", "gpu", "GPU memory", "free disk", "python", "raysweep", "torch")]
    for node in nodes:
        cpu, gpu = (f"{node.resources.get(name, 0):g}" for name in ("CPU", "GPU"))
        if node.answer is None:
            rows.append((node.name, cpu, gpu, "", "", "", "", node.error))
            continue
        cards = [memory for _, memory in node.answer["gpus"]]
        free, packages = node.answer["free"], node.answer["packages"]
        rows.append((
            node.name, cpu, gpu,
            # A trial may be given any of the cards, so the smallest one counts.
            f"{min(cards) / 2**30:.0f} GiB" if cards else "–",
            "–" if free is None else f"{free / 2**30:.0f} GiB",
            node.answer["python"], packages["raysweep"] or "–", packages["torch"] or "–",
        ))  # fmt: skip
    widths = [max(len(row[column]) for row in rows) for column in range(len(rows[0]))]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]
