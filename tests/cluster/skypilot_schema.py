"""What a task of SkyPilot may hold, as far as ``cluster/skypilot.yaml`` goes: fields of SkyPilot 0.14, written down by hand."""

from __future__ import annotations

from tests.cluster.rayjob_schema import COUNT, TEXT, TRUTH, fields

_AMOUNT = {"type": ["string", "number"]}  # 8, or 8+ for at least
_VALUES = {"type": "object", "additionalProperties": {"type": ["string", "null"]}}
TASK = fields(
    "name", "resources", "run",
    name=TEXT, workdir=TEXT, num_nodes={"type": "integer", "minimum": 1}, setup=TEXT, run=TEXT, envs=_VALUES, secrets=_VALUES,
    file_mounts={"type": "object"},
    resources=fields(
        infra=TEXT, accelerators={"type": ["string", "object", "array"]}, cpus=_AMOUNT, memory=_AMOUNT, use_spot=TRUTH,
        disk_size={"type": ["integer", "string"]}, image_id=TEXT, any_of={"type": "array"},
        job_recovery=fields(
            strategy={"enum": ["EAGER_NEXT_REGION", "FAILOVER", None]}, max_restarts_on_errors=COUNT,
            recover_on_exit_codes={"type": ["integer", "array"]},
        ),
    ),
)  # fmt: skip
