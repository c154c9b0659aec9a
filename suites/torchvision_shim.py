"""Make torchvision importable on a CPU-only torch.

The torchvision wheel on the package index is built for CUDA. On a CPU build of torch its compiled library does not
load; torchvision itself survives that, but then registers fake kernels for two operators that the library would have
declared, and stops with ``operator torchvision::nms does not exist``. Data sets, transforms and the classification
models that SpikingJelly builds on use no compiled operator, so the two missing schemas are enough.

SpikingJelly's models and tonic import torchvision: code here that needs either calls :func:`ensure_torchvision` first.
"""

from __future__ import annotations

import importlib.util
from pathlib import Path

import torch

# The operators whose fake kernels torchvision registers when it is imported (torchvision/_meta_registrations.py); the
# arguments are those of its C++ declarations (torchvision/csrc/ops/nms.cpp and ops/quantized/cpu/qnms_kernel.cpp).
SCHEMAS = tuple(f"{name}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" for name in ("nms", "qnms"))

_declared: list[torch.library.Library] = []


def ensure_torchvision() -> bool:
    """Declare torchvision's missing operator schemas where its compiled library cannot load; safe to call again.

    Returns:
        True if the schemas are declared by us, False if torchvision brings its own (or torch has CUDA, where a library
        that does not load is a broken installation that the user should hear of).
    """
    if _declared:
        return True
    if torch.version.cuda is not None or _library_loads():
        return False
    library = torch.library.Library("torchvision", "DEF")
    for schema in SCHEMAS:
        library.define(schema)
    _declared.append(library)  # the schemas live as long as this object
    return True


def _library_loads() -> bool:
    """True if torchvision's operators exist, or do after loading its library; torchvision itself is not imported."""
    if hasattr(torch.ops.torchvision, "nms"):
        return True
    spec = importlib.util.find_spec("torchvision")
    folders = spec.submodule_search_locations if spec is not None else None
    libraries = [path for folder in folders or () for path in sorted(Path(folder).glob("_C*"))]
    for path in libraries:
        try:
            torch.ops.load_library(str(path))
        except OSError:  # built for another torch: what this module is for
            return False
    return hasattr(torch.ops.torchvision, "nms")
