"""Which device hot experts live on: the one that was named, else the GPU with most free memory.

It decides among devices that it is given; it asks none.
"""

from __future__ import annotations

from collections.abc import Sequence

from dotscli.engine.devices import Device
from dotscli.engine.options import HotOptions
from dotscli.errors import DotsError, ExitStatus


def gpus(devices: Sequence[Device]) -> list[Device]:
    """Those with a memory of their own."""
    return [device for device in devices if device.type == "GPU"]


def hot_device(hot: HotOptions, devices: Sequence[Device]) -> Device | None:
    """The device for hot experts; None where there is no GPU and none was named.

    Raises:
        DotsError: a name that no device has, or no size for a device without memory of its own
            (exit status 2).
    """
    if not hot.device:
        return max(gpus(devices), key=lambda gpu: gpu.free_bytes, default=None)
    known = {device.name: device for device in devices if device.type != "ACCEL"}
    device = known.get(hot.device)
    if device is None:
        raise DotsError(
            f"--hot-device {hot.device!r}: no such device",
            hint=f"this machine has {', '.join(known)}",
            exit_status=ExitStatus.USAGE,
        )
    if hot.nbytes is None and device.type not in ("GPU", "IGPU"):
        raise DotsError(
            f"--hot-device {device.name} has no memory of its own, so --hot needs a size",
            hint="for example: --hot 1G",
            exit_status=ExitStatus.USAGE,
        )
    return device
