"""Test signals."""

import numpy as np

TINY_RATE_HZ = 8000


def tone(frequency_hz: float, seconds: float, rate_hz: int = TINY_RATE_HZ) -> np.ndarray:
    """Return a sine of amplitude one half, float32."""
    time = np.arange(round(seconds * rate_hz)) / rate_hz
    return (0.5 * np.sin(2 * np.pi * frequency_hz * time)).astype(np.float32)
