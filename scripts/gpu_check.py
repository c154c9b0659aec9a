"""Can this machine run the GPU cells? Exit code 2 and one line where it cannot; used by ``gpu_run.sh``.

Also writes into SITE the suites of the run, and the metadata folder through which entry points are found in a checkout
that is not installed; that needs neither a network nor a build tool.

    python scripts/gpu_check.py SITE [cuda|cpu]
"""

import importlib.metadata
import importlib.util
import json
import sys
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[1]
CARRIED = {
    "spikingjelly": "spikingjelly", "loguru": "loguru", "tonic": "tonic", "importRosbag": "importRosbag",
    "pydantic": "pydantic", "pydantic-core": "pydantic_core", "annotated-types": "annotated_types",
    "typing-inspection": "typing_inspection",
}  # fmt: skip
"""Package and module: what cells need and a machine with PyTorch and the usual packages for science mostly lacks. Fewer
than the packages declare: no cell imports tonic's librosa and expelliarmus (which has no wheel for Python 3.12), nor
SpikingJelly's tensorboard and SciencePlots."""
USUAL = {
    "torchvision": "torchvision", "numpy": "numpy", "scipy": "scipy", "h5py": "h5py", "pandas": "pandas",
    "pyarrow": "pyarrow", "scikit-learn": "sklearn", "requests": "requests", "tqdm": "tqdm", "click": "click",
    "rich": "rich", "nvidia-ml-py": "pynvml",
}  # fmt: skip
"""The usual ones that cells need beside torch; what these require came with them."""
SUITES = ("gpu-memory", "gpu-versus", "gpu-train")
"""Suites beside this file; dashes in their names are underscores in their files'."""


def problem(device: str = "cuda") -> str | None:
    """Why nothing can be measured here, in one line, or None."""
    if importlib.util.find_spec("torch") is None:
        return "torch is not installed"
    import torch

    if device == "cuda" and torch.version.cuda is None:
        return f"torch {torch.__version__} is built without CUDA"
    if device == "cuda" and not torch.cuda.is_available():
        return f"torch {torch.__version__} sees no CUDA device (driver missing, or CUDA_VISIBLE_DEVICES hides it)"
    missing = [name for name, module in (CARRIED | USUAL).items() if importlib.util.find_spec(module) is None]
    if missing:
        return f"not installed: {' '.join(missing)} (docs/gpu.md says how to bring them with --wheels DIR)"
    return None


def installed() -> bool:
    """Whether entry points of this project are known already."""
    try:
        importlib.metadata.version("snnbench")
    except importlib.metadata.PackageNotFoundError:
        return False
    return True


def write_metadata(site: Path) -> None:
    """Name, version and entry points, from ``pyproject.toml``."""
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    folder = site / f"{project['name']}-{project['version']}.dist-info"
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    groups = {"console_scripts": project["scripts"], **project["entry-points"]}
    lines = [f"[{group}]\n" + "".join(f"{k} = {v}\n" for k, v in names.items()) for group, names in groups.items()]
    (folder / "entry_points.txt").write_text("\n".join(lines))


def write_suites(site: Path) -> None:
    """The suites, ``EVERY`` replaced by the names of all methods, those of plugins too."""
    sys.path.insert(0, str(site))
    names = sorted({entry.name for entry in importlib.metadata.entry_points(group="snnbench.methods")})
    for suite in SUITES:
        text = (ROOT / "scripts" / f"{suite.replace('-', '_')}.toml").read_text()
        (site / f"{suite}.toml").write_text(text.replace('"EVERY"', json.dumps(names)))


def main(site: str, device: str = "cuda") -> int:
    """Check, and write what the run needs into the folder ``site``."""
    reason = problem(device)
    if reason is not None:
        print(f"gpu_run: no GPU cell can run here: {reason}", file=sys.stderr)
        return 2
    prepare(Path(site))
    return 0


def prepare(site: Path) -> None:
    """Metadata where the project is not installed, and the suites."""
    site.mkdir(parents=True, exist_ok=True)
    if not installed():
        write_metadata(site)
    write_suites(site)


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
