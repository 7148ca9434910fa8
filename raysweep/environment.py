"""Environment variables that move numbers: which are set, so that they can stand in a trial's key.

Threads are not among them: ``threads`` of the trial is what torch is given (``torch.set_num_threads``), whatever
``OMP_NUM_THREADS`` and ``MKL_NUM_THREADS`` say. Nor are OpenBLAS's: nothing here multiplies matrices with numpy.
"""

from __future__ import annotations

import os
from collections.abc import Mapping

from raysweep.errors import SpecError

VARIABLES: Mapping[str, str] = {
    "ATEN_CPU_CAPABILITY": "which of torch's own vector kernels run",
    "CUBLAS_WORKSPACE_CONFIG": "which of cuBLAS's algorithms may run",
    "DISABLE_ADDMM_CUDA_LT": "whether a bias is added inside the product, on a GPU",
    "DNNL_CPU_ISA_HINTS": "older name of ONEDNN_CPU_ISA_HINTS",
    "DNNL_DEFAULT_FPMATH_MODE": "older name of ONEDNN_DEFAULT_FPMATH_MODE",
    "DNNL_MAX_CPU_ISA": "older name of ONEDNN_MAX_CPU_ISA",
    "MKL_CBWR": "which of MKL's code paths run",
    "MKL_DISABLE_FAST_MM": "which of MKL's products run",
    "MKL_ENABLE_INSTRUCTIONS": "which instructions MKL uses",
    "MKL_NUM_STRIPES": "how MKL splits a product among threads",
    "NPY_DISABLE_CPU_FEATURES": "which of numpy's vector kernels run",
    "NPY_ENABLE_CPU_FEATURES": "which of numpy's vector kernels run",
    "NVIDIA_TF32_OVERRIDE": "whether fp32 products are rounded to TF32, on a GPU",
    "OMP_DYNAMIC": "whether OpenMP may use fewer threads than it is given",
    "OMP_THREAD_LIMIT": "most threads OpenMP uses, whatever it is given",
    "ONEDNN_CPU_ISA_HINTS": "which instructions oneDNN prefers",
    "ONEDNN_DEFAULT_FPMATH_MODE": "whether fp32 products are rounded to bf16 or TF32",
    "ONEDNN_MAX_CPU_ISA": "which instructions oneDNN uses",
    "TORCH_ALLOW_TF32_CUBLAS_OVERRIDE": "whether fp32 products are rounded to TF32, on a GPU",
    "TORCH_BLAS_PREFER_CUBLASLT": "which library multiplies, on a GPU",
    "TORCH_LINALG_PREFER_CUSOLVER": "which library solves, on a GPU",
    "TORCH_LINEAR_FLATTEN_3D": "in which shape a linear layer multiplies",
    "TORCH_MKLDNN_MATMUL_MIN_DIM": "from which size on oneDNN multiplies",
    "TRANSFORMERS_SDPA_FORCE_GQA": "whether grouped keys are repeated before attention",
    "USE_HUB_KERNELS": "whether layers run as kernels from the hub",
}


def stated(environ: Mapping[str, str] | None = None) -> dict[str, str]:
    """Return those of :data:`VARIABLES` that are set, by name.

    >>> stated({"MKL_CBWR": "COMPATIBLE", "HOME": "/root"})
    {'MKL_CBWR': 'COMPATIBLE'}
    """
    variables = os.environ if environ is None else environ
    return {name: variables[name] for name in VARIABLES if variables.get(name)}


def check(planned: Mapping[str, str]) -> None:
    """Refuse to compute in another environment than the plan's.

    Raises:
        SpecError: a variable is set here and was not when the key was made, or the other way round.
    """
    here = stated()
    other = [name for name in VARIABLES if here.get(name) != planned.get(name)]
    if other:
        listed = ", ".join(
            f"{n} ({planned.get(n, 'not set')} in the plan, {here.get(n, 'not set')} here)" for n in other
        )
        raise SpecError(
            f"this process has another environment than the plan: {listed}",
            hint="set the variables alike on every node and plan again, or unset them",
        )
