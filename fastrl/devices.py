"""Devices of torch by name, looked for before anything is built on them."""

from __future__ import annotations

import torch

from fastrl.errors import ConfigError


def existing_device(device: torch.device | str, key: str = "") -> torch.device:
    """Return a device that torch finds here.

    Args:
        device: The device, or its name.
        key: Of the configuration, that names it.

    Raises:
        ConfigError: It is no device, or this machine does not have it.
    """
    where = f"{key}: " if key else ""
    try:
        found = torch.device(device)
    except (RuntimeError, TypeError):
        raise ConfigError(f"{where}no device '{device}': write 'cpu', 'cuda' or 'cuda:0'") from None
    count = torch.cuda.device_count() if found.type == "cuda" else 0
    if found.type == "cuda" and (found.index or 0) >= count:
        raise ConfigError(
            f"{where}no device '{found}': torch finds {count} CUDA devices; use 'cpu'"
        )
    return found
