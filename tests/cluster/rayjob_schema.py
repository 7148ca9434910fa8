"""What a RayJob may hold, as far as ``cluster/kuberay.yaml`` goes: fields and types of KubeRay 1.7's CRD, written down by hand.

Everything that is not named is refused, so that a slip of the pen is; a field that the manifest begins to use is added here, after
a look into the CRD (``ray-operator/config/crd/bases/ray.io_rayjobs.yaml``).
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import TypeAlias

Schema: TypeAlias = Mapping[str, object]

TEXT: Schema = {"type": "string"}
COUNT: Schema = {"type": "integer", "minimum": 0}
TRUTH: Schema = {"type": "boolean"}
TEXTS: Schema = {"type": "object", "additionalProperties": TEXT}


def fields(*required: str, **of: Schema) -> Schema:
    """Return an object with these fields and no others."""
    return {"type": "object", "properties": of, "required": list(required), "additionalProperties": False}


def listed(item: Schema) -> Schema:
    return {"type": "array", "items": item, "minItems": 1}


def one_of(*values: str) -> Schema:
    return {"enum": list(values)}


# Kubernetes' own.
_QUANTITIES: Schema = {
    "type": "object",
    "additionalProperties": {"type": "string", "pattern": r"^[0-9]+(\.[0-9]+)?(m|[kMGTP]i?)?$"},
}
_CONTAINER = fields(
    "name", "image", name=TEXT, image=TEXT, resources=fields(requests=_QUANTITIES, limits=_QUANTITIES),
    securityContext=fields(
        allowPrivilegeEscalation=TRUTH, capabilities=fields(add=listed(TEXT), drop=listed(TEXT)), runAsNonRoot=TRUTH
    ),
    env=listed(fields("name", name=TEXT, value=TEXT)),
    volumeMounts=listed(fields("name", "mountPath", name=TEXT, mountPath=TEXT, readOnly=TRUTH)),
)  # fmt: skip
_TOLERATION = fields(
    key=TEXT, operator=one_of("Equal", "Exists"), value=TEXT, effect=one_of("NoSchedule", "PreferNoSchedule", "NoExecute")
)  # fmt: skip
_POD = fields(
    "spec", metadata=fields(labels=TEXTS, annotations=TEXTS),
    spec=fields(
        "containers", containers=listed(_CONTAINER), restartPolicy=one_of("Never", "OnFailure", "Always"),
        securityContext=fields(
            runAsNonRoot=TRUTH, runAsUser=COUNT, runAsGroup=COUNT, fsGroup=COUNT,
            seccompProfile=fields("type", type=one_of("RuntimeDefault", "Unconfined", "Localhost")),
        ),
        nodeSelector=TEXTS, tolerations=listed(_TOLERATION), terminationGracePeriodSeconds=COUNT, serviceAccountName=TEXT,
        volumes=listed(fields("name", name=TEXT, persistentVolumeClaim=fields("claimName", claimName=TEXT))),
    ),
)  # fmt: skip

# KubeRay's.
_CLUSTER = fields(
    "headGroupSpec",
    rayVersion=TEXT,
    authOptions=fields(mode=one_of("disabled", "token"), secretName=TEXT, enableK8sTokenAuth=TRUTH),
    enableInTreeAutoscaling=TRUTH,
    autoscalerOptions=fields(
        version=one_of("v1", "v2"), idleTimeoutSeconds=COUNT, upscalingMode=one_of("Default", "Aggressive", "Conservative")
    ),
    headGroupSpec=fields("template", rayStartParams=TEXTS, labels=TEXTS, resources=TEXTS, template=_POD),
    workerGroupSpecs=listed(
        fields(
            "groupName", "minReplicas", "maxReplicas", "template", groupName=TEXT, replicas=COUNT, minReplicas=COUNT,
            maxReplicas=COUNT, numOfHosts=COUNT, idleTimeoutSeconds=COUNT, priority=COUNT, suspend=TRUTH,
            rayStartParams=TEXTS, labels=TEXTS, resources=TEXTS, template=_POD,
        )
    ),
)  # fmt: skip
RAYJOB = fields(
    "apiVersion", "kind", "metadata", "spec",
    apiVersion=one_of("ray.io/v1"),
    kind=one_of("RayJob"),
    metadata=fields(name=TEXT, generateName=TEXT, namespace=TEXT, labels=TEXTS, annotations=TEXTS),
    spec=fields(
        "entrypoint", "rayClusterSpec", entrypoint=TEXT, rayClusterSpec=_CLUSTER, runtimeEnvYAML=TEXT, metadata=TEXTS,
        submissionMode=one_of("K8sJobMode", "HTTPMode", "SidecarMode", "InteractiveMode"),
        backoffLimit=COUNT, activeDeadlineSeconds=COUNT, preRunningDeadlineSeconds=COUNT, shutdownAfterJobFinishes=TRUTH,
        ttlSecondsAfterFinished=COUNT, suspend=TRUTH, entrypointNumCpus={"type": "number"}, entrypointNumGpus={"type": "number"},
    ),
)  # fmt: skip
