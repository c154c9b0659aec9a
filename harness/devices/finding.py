"""From torch's device to NVML's: by UUID where CUDA runs, else by what ``CUDA_VISIBLE_DEVICES`` says."""

from __future__ import annotations

import os
from typing import Any

import torch

from harness.devices.border import Library, Nvml
from harness.devices.device import Device, DeviceError, NullDevice
from harness.devices.nvml import NvmlDevice

MASK, ORDER = "CUDA_VISIBLE_DEVICES", "CUDA_DEVICE_ORDER"
NO_CUDA = "no CUDA device in this cell"


def open_device(kind: str, library: Library | None = None) -> Device:
    """The device that this process computes on; a null one with the reason where there is none.

    Args:
        kind: ``cpu`` or ``cuda``.
        library: instead of NVML itself.
    """
    if kind != "cuda":
        return NullDevice(NO_CUDA)
    try:
        library = Nvml() if library is None else library
        if torch.cuda.is_initialized():
            uuid = str(torch.cuda.get_device_properties(torch.cuda.current_device()).uuid)
            return NvmlDevice(library, by_uuid(library, uuid))
        handle = by_mask(library, os.environ.get(MASK), os.environ.get(ORDER))
        return NvmlDevice(library, handle, context=False)
    except DeviceError as error:
        return NullDevice(error.reason)


def by_uuid(library: Library, uuid: str) -> Any:
    """The handle of torch's UUID, which lacks the prefix that tells GPUs from MIG instances.

    Raises:
        DeviceError: NVML knows neither.
    """
    if uuid.startswith(("GPU-", "MIG-")):
        return library.call("nvmlDeviceGetHandleByUUID", uuid)
    try:
        return library.call("nvmlDeviceGetHandleByUUID", f"GPU-{uuid}")
    except DeviceError as refused:
        if refused.code not in (2, 6):
            raise
    return library.call("nvmlDeviceGetHandleByUUID", f"MIG-{uuid}")


def by_mask(library: Library, mask: str | None, order: str | None = None) -> Any:
    """The handle of the first device that a ``CUDA_VISIBLE_DEVICES`` leaves.

    Args:
        library: NVML.
        mask: its value: indices, (abbreviated) ``GPU-`` UUIDs or ``MIG-`` names; None where it is not set.
        order: the value of ``CUDA_DEVICE_ORDER``.

    Raises:
        DeviceError: it leaves none, NVML knows none such, or an index may mean another device to CUDA than to NVML.
    """
    token = "0" if mask is None else mask.split(",")[0].strip()
    if token in ("", "-1", "NoDevFiles"):
        raise DeviceError(f"{MASK} hides all devices from this process")
    if token.startswith("MIG-"):
        return library.call("nvmlDeviceGetHandleByUUID", token)
    handles = [library.call("nvmlDeviceGetHandleByIndex", index) for index in range(library.call("nvmlDeviceGetCount"))]
    handle = _numbered(library, handles, int(token), order) if token.isdigit() else _named(library, handles, token)
    return _instance(library, handle)


def _numbered(library: Library, handles: list[Any], index: int, order: str | None) -> Any:
    if index >= len(handles):
        raise DeviceError(f"{MASK} names device {index}, NVML has {len(handles)}")
    names = {library.call("nvmlDeviceGetName", handle) for handle in handles}
    if len(names) > 1 and order != "PCI_BUS_ID":
        raise DeviceError(f"CUDA numbers unlike GPUs by speed, NVML by slot: set {ORDER}=PCI_BUS_ID or name a UUID")
    return handles[index]


def _named(library: Library, handles: list[Any], token: str) -> Any:
    found = [handle for handle in handles if str(library.call("nvmlDeviceGetUUID", handle)).startswith(token)]
    if len(found) != 1:
        raise DeviceError(f"{MASK} names {token}, which fits {len(found)} of NVML's devices")
    return found[0]


def _instance(library: Library, handle: Any) -> Any:
    """On a GPU that is cut into MIG instances CUDA shows the first one."""
    try:
        current, _ = library.call("nvmlDeviceGetMigMode", handle)
    except DeviceError:
        return handle
    return library.call("nvmlDeviceGetMigDeviceHandleByIndex", handle, 0) if current else handle
