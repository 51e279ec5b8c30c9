"""Waveforms into the image that the backbone sees: log-mel with its deltas as channels.

nnAudio is the definition, and what runs on a GPU. Its STFT is a dense convolution, so on a CPU
a real FFT with the same window and filterbank stands in; a test holds the two together.
"""

from dataclasses import dataclass

import numpy as np
import scipy.fft
import scipy.signal
import scipy.sparse
import torch
import torch.nn.functional as F
from jaxtyping import Float, Float32
from torch import Tensor, nn

from shared.clips import ClipGrid

AMIN = 1e-10
DELTA_CENTRE = 0.5  # a slope of zero is mid-grey, the neutral value of a network for photographs


@dataclass(frozen=True, kw_only=True)
class MelConfig:
    """Section [mel]: the front end. Mel scale and filter norm are Slaney's."""

    n_fft: int = 2048
    hop_length: int = 500
    num_mels: int = 224
    fmin_hz: float = 0.0
    fmax_hz: float = 16_000.0
    top_db: float = 80.0
    channels: str = "deltas"

    def __post_init__(self) -> None:
        if self.channels not in ("deltas", "repeat"):
            raise ValueError(f"mel.channels must be 'deltas' or 'repeat', got {self.channels!r}.")
        if min(self.n_fft, self.hop_length, self.num_mels) < 1 or self.top_db <= 0:
            raise ValueError("n_fft, hop_length, num_mels and top_db must be positive.")
        if not 0 <= self.fmin_hz < self.fmax_hz:
            raise ValueError(f"need 0 <= fmin_hz < fmax_hz, got {self.fmin_hz}, {self.fmax_hz}.")

    def num_frames(self, grid: ClipGrid) -> int:
        """Return N: one mel frame per hop; the extra frame that centring adds is dropped."""
        return grid.clip_samples // self.hop_length


def mel_spectrogram_layer(config: MelConfig, sample_rate_hz: int) -> nn.Module:
    """Return nnAudio's layer (B, S) -> (B, M, N + 1) power, with every setting given."""
    from nnAudio.features.mel import MelSpectrogram

    if config.fmax_hz > sample_rate_hz / 2:
        raise ValueError(
            f"mel.fmax_hz = {config.fmax_hz} lies above half the sample rate ({sample_rate_hz})."
        )
    layer: nn.Module = MelSpectrogram(
        sr=sample_rate_hz,
        n_fft=config.n_fft,
        win_length=config.n_fft,
        hop_length=config.hop_length,
        n_mels=config.num_mels,
        window="hann",
        center=True,
        pad_mode="reflect",
        power=2.0,
        htk=False,
        norm=1,
        fmin=config.fmin_hz,
        fmax=config.fmax_hz,
        verbose=False,
    )
    return layer


class FftMel(nn.Module):
    """The same power mel spectrogram by a real FFT on the CPU, several times faster there."""

    def __init__(self, config: MelConfig, sample_rate_hz: int) -> None:
        super().__init__()
        layer = mel_spectrogram_layer(config, sample_rate_hz)
        self.filterbank = scipy.sparse.csr_array(layer.get_buffer("mel_basis").numpy())
        self.window = scipy.signal.get_window("hann", config.n_fft, fftbins=True).astype(np.float32)
        self.hop_length = config.hop_length

    def forward(self, waveforms: Float32[Tensor, "b s"]) -> Float32[Tensor, "b m n"]:
        """Return power per mel band and frame."""
        return torch.from_numpy(np.stack([self._of_one(waveform) for waveform in waveforms.numpy()]))

    def _of_one(self, waveform: Float32[np.ndarray, " s"]) -> Float32[np.ndarray, "m n"]:
        """One clip at a time stays in the cache; the filterbank is 99 % zeros."""
        padded = np.pad(waveform, len(self.window) // 2, mode="reflect")
        frames = np.lib.stride_tricks.sliding_window_view(padded, len(self.window))[:: self.hop_length]
        spectra = scipy.fft.rfft(frames * self.window, axis=-1)
        squares = spectra.view(np.float32)
        np.square(squares, out=squares)
        power = squares[:, 0::2] + squares[:, 1::2]
        return self.filterbank @ np.ascontiguousarray(power.T)


class LogMelImage(nn.Module):
    """Waveforms (B, S) to images (B, 3, M, N) of about 0..1, always in fp32.

    dB relative to the clip's maximum, cut at -top_db, scaled to 0..1; silence is all zeros.
    The loudness of a clip therefore does not matter, nor does the gain of its int16 samples.

    always_nnaudio: nnAudio's layer on a CPU too, for a graph that others run.
    """

    def __init__(
        self, config: MelConfig, grid: ClipGrid, device: torch.device, *, always_nnaudio: bool = False
    ) -> None:
        super().__init__()
        self.config = config
        self.num_frames = config.num_frames(grid)
        if device.type == "cpu" and not always_nnaudio:
            self.power: nn.Module = FftMel(config, grid.sample_rate_hz)
        else:
            self.power = mel_spectrogram_layer(config, grid.sample_rate_hz).to(device)

    def forward(self, waveforms: Float32[Tensor, "b s"]) -> Float32[Tensor, "b 3 m n"]:
        """Return the stacked image of every waveform."""
        with torch.autocast(waveforms.device.type, enabled=False):
            power = self.power(waveforms)[..., : self.num_frames]
            return stack_channels(scaled_db(power, self.config.top_db), self.config.channels)


def scaled_db(power: Float[Tensor, "b m n"], top_db: float) -> Float[Tensor, "b m n"]:
    """Return dB relative to each clip's maximum, from -top_db..0 scaled to 0..1."""
    peak = power.amax(dim=(1, 2), keepdim=True)
    relative = 10 * torch.log10(power.clamp_min(AMIN) / peak.clamp_min(AMIN))
    return torch.where(peak > AMIN, (relative / top_db + 1).clamp_min(0), 0.0)


def stack_channels(log_mel: Float[Tensor, "b m n"], channels: str) -> Float[Tensor, "b 3 m n"]:
    """Stack the log-mel with its first and second differences, or repeat it three times."""
    match channels:
        case "deltas":
            first = delta(log_mel)
            return torch.stack([log_mel, first + DELTA_CENTRE, delta(first) + DELTA_CENTRE], dim=1)
        case "repeat":
            return log_mel.unsqueeze(1).expand(-1, 3, -1, -1)
    raise ValueError(f"mel.channels must be 'deltas' or 'repeat', got {channels!r}.")


def delta(x: Float[Tensor, "b m n"]) -> Float[Tensor, "b m n"]:
    """Slope along time: least squares over 5 frames, edges replicated (Young et al., HTK book)."""
    padded = F.pad(x, (2, 2), mode="replicate")
    wide = padded[..., 4:] - padded[..., :-4]
    narrow = padded[..., 3:-1] - padded[..., 1:-3]
    return (2 * wide + narrow) / 10
