"""Sounds and pictures inside a page, in formats that every browser has."""

import io

import numpy as np
import soundfile
import soxr
from jaxtyping import Float, Float32

from shared.page import data_uri

# At this rate the file says how much silence the encoder put before the sound, and players leave it out; at
# others of so low a bit rate they begin 23 to 70 ms late.
MP3_RATE_HZ = 32_000
MP3_QUALITY = 0.9  # of libsndfile, 0 the largest: 57 kbit/s
JPEG_QUALITY = 70


def mp3(samples: Float32[np.ndarray, " s"], sample_rate_hz: int) -> str:
    """Return mono samples (-1..1) as an mp3 of constant bit rate, in which players seek exactly."""
    if sample_rate_hz != MP3_RATE_HZ:
        samples = soxr.resample(samples, sample_rate_hz, MP3_RATE_HZ).astype(np.float32)
    file = io.BytesIO()
    soundfile.write(
        file, samples.clip(-1, 1), MP3_RATE_HZ, format="MP3", subtype="MPEG_LAYER_III",
        bitrate_mode="CONSTANT", compression_level=MP3_QUALITY,
    )  # fmt: skip
    return data_uri(file.getvalue(), "audio/mpeg")


def grey_picture(values: Float[np.ndarray, "m n"]) -> str:
    """Return values 0..1, the first row at the bottom, as a grey picture, one pixel each; 1 is white."""
    from PIL import Image

    pixels = np.round(255 * np.clip(values[::-1], 0, 1)).astype(np.uint8)
    file = io.BytesIO()
    Image.fromarray(pixels).save(file, "JPEG", quality=JPEG_QUALITY, optimize=True)
    return data_uri(file.getvalue(), "image/jpeg")
