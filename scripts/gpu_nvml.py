"""Record what NVML answers about the first GPU, as a replay for tests: ``python scripts/gpu_nvml.py OUT.json``."""

import contextlib
import json
import sys
from pathlib import Path

from harness.devices import DeviceError, NvmlDevice
from harness.devices.border import Nvml
from harness.devices.finding import by_mask
from harness.devices.replay import Recorder


def main(out: str) -> int:
    """Ask everything once."""
    try:
        recorder = Recorder(Nvml())
    except DeviceError as error:
        print(f"gpu_nvml: {error.reason}", file=sys.stderr)
        return 1
    with contextlib.suppress(DeviceError):
        device = NvmlDevice(recorder, by_mask(recorder, None), context=False)
        device.state()
        for question in (device.energy_j, device.own_bytes):
            with contextlib.suppress(DeviceError):
                question()
    Path(out).write_text(json.dumps(recorder.entries, indent=1))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1]))
