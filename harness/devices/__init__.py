"""The GPU as NVML and torch's allocator see it: one abstract device; a real one, a null one, a replayed one."""

from harness.devices.device import Device, DeviceError, Foreign, NullDevice, State, disturbances
from harness.devices.finding import open_device
from harness.devices.nvml import NvmlDevice

__all__ = ["Device", "DeviceError", "Foreign", "NullDevice", "NvmlDevice", "State", "disturbances", "open_device"]
