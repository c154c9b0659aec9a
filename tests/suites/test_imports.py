import subprocess
import sys

HEAVY = ("sklearn", "scipy", "pandas", "tonic", "torchvision", "h5py", "spikingjelly.activation_based.model")


def fresh(code):
    """Standard output of ``code`` in a fresh interpreter."""
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_the_plugins_imports_no_heavy_library():
    code = f"""
import sys
import suites.models.convnet, suites.models.mlp, suites.models.vgg, suites.models.zoo
import suites.datasets.delayed_recall, suites.datasets.digits, suites.datasets.digit_events, suites.datasets.shape
import suites.datasets.cifar, suites.datasets.mnist, suites.datasets.folders, suites.datasets.event_sets
import suites.datasets.shd, suites.datasets.braille
print([name for name in {HEAVY} if name in sys.modules])
"""
    assert fresh(code) == "[]"


def test_torchvision_and_what_builds_on_it_import_after_the_shim():
    code = """
from suites.torchvision_shim import ensure_torchvision
first, second = ensure_torchvision(), ensure_torchvision()
assert first is second
import torchvision.datasets, torchvision.transforms, tonic
from spikingjelly.activation_based.model import sew_resnet, spiking_vgg
assert ensure_torchvision() is first
import torch
operators = [getattr(torch.ops.torchvision, name, None) for name in ("nms", "qnms")]
print(first, *(found.default._schema for found in operators if found))
"""
    declared, *schemas = fresh(code).split("torchvision::")
    found = [schema.split("(")[0] for schema in schemas]
    assert found in (["nms"], ["nms", "qnms"])  # torchvision 0.26 has no qnms; the shim declares both
    assert len(found) == 2 or declared.strip() == "False"
    assert all("(Tensor dets, Tensor scores, float iou_threshold) -> Tensor" in schema for schema in schemas)


def test_the_shim_leaves_a_working_torchvision_alone():
    code = """
import torch
library = torch.library.Library("torchvision", "DEF")
library.define("nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
from suites.torchvision_shim import ensure_torchvision
print(ensure_torchvision())
"""
    assert fresh(code) == "False"


def test_the_shim_hides_no_broken_installation_on_a_cuda_torch():
    code = """
import torch
torch.version.cuda = "13.0"
from suites.torchvision_shim import ensure_torchvision
print(ensure_torchvision(), hasattr(torch.ops.torchvision, "nms"))
"""
    assert fresh(code) == "False False"
