"""The one place that calls NVML: whatever goes wrong there comes back as a :class:`DeviceError` with a reason."""

from __future__ import annotations

from typing import Any, Protocol

from harness.devices.device import DeviceError

TEXTS = {
    2: "NVML takes the question for an invalid one",
    3: "this device does not support it",
    4: "no permission: the administrator has restricted it",
    6: "not found",
    8: "the GPU's power cables are not attached properly",
    9: "the NVIDIA driver is not loaded",
    10: "the driver did not answer in time",
    12: "libnvidia-ml is not installed: no NVIDIA driver here",
    13: "the driver is too old to answer this",
    15: "the GPU is lost: it has fallen off the bus, and only a reboot brings it back",
    16: "the GPU needs a reset",
    17: "the operating system has blocked NVML (a cgroup of a container, mostly)",
    18: "the driver and its library are of different versions: reboot after the update",
    20: "NVML ran out of memory",
    21: "the driver has no data yet",
}
"""NVML's return codes (nvml.h, ``nvmlReturn_t``) in words; others keep NVML's own."""


class Library(Protocol):
    """NVML by function name."""

    def call(self, function: str, *args: Any) -> Any:
        """The reply of one of NVML's functions.

        Raises:
            DeviceError: NVML refuses.
        """


def refusal(code: int, function: str, text: str | None = None) -> DeviceError:
    """The error for a return code of NVML."""
    return DeviceError(f"NVML: {TEXTS.get(code, text or f'error {code}')} ({function})", code)


class Nvml:
    """NVML itself, through nvidia-ml-py, initialised.

    Raises:
        DeviceError: no driver, or no nvidia-ml-py.
    """

    def __init__(self) -> None:
        try:
            import pynvml
        except ImportError as error:
            raise DeviceError(f"nvidia-ml-py is not installed: {error}") from None
        self._module: Any = pynvml
        self.call("nvmlInit")

    def close(self) -> None:
        """Take back this object's initialisation; NVML counts them."""
        self.call("nvmlShutdown")

    def call(self, function: str, *args: Any) -> Any:
        """See :meth:`Library.call`."""
        target = getattr(self._module, function, None)
        if target is None:
            raise DeviceError(f"the installed nvidia-ml-py has no {function}")
        try:
            return target(*args)
        except self._module.NVMLError as error:
            raise refusal(int(error.value), function, str(error)) from None
