"""Waveform augmentations: batched, on the waveforms' device, pure functions of waveforms and a generator.

Each takes waveforms (B, S) of -1..1 and a generator on their device, draws what it varies for every clip
by itself, uniformly over a range, and returns waveforms of the same shape and type. It computes in
float32 whatever it is given. Silence stays silent. The same generator state gives the same bits.

A clip is taken as a circle: what a shift, a stretch or another speed moves past its end comes in at its
beginning, so no silence appears that was not there. `tiled` makes circles of clips that are shorter.
"""

import math
from collections.abc import Callable
from typing import Any

import scipy.fft
import torch
from jaxtyping import Float, Int64
from torch import Generator, Tensor

Waveforms = Float[Tensor, "b s"]
Range = tuple[float, float]
Transform = Callable[..., Tensor]

TRANSFORMS_VERSION = 2  # to be raised when a transform makes something else of the same draw
SILENT_POWER = 1e-14  # of full scale: far below one step of an int16 sample
STRETCH_FFT, STRETCH_HOP = 2048, 512
SILENT_BIN = 1e-20  # of a spectrum: it has no phase
OVERSAMPLING = 2  # ahead of cubic interpolation
CPU_CHUNK = 4  # clips
POSITION_BITS = 20  # of a position between two samples


def uniform(waveforms: Tensor, rng: Generator, bounds: Range) -> Float[Tensor, "b 1"]:
    """Return one number per clip, uniform between the bounds."""
    low, high = bounds
    drawn = torch.rand(len(waveforms), 1, generator=rng, device=waveforms.device)
    return low + (high - low) * drawn


def power(waveforms: Waveforms) -> Float[Tensor, "b 1"]:
    """Return the mean square of every clip."""
    return waveforms.square().mean(dim=1, keepdim=True)


def tiled(waveforms: Waveforms, valid_samples: Int64[Tensor, " b"]) -> Waveforms:
    """Repeat each clip's first `valid_samples` until it is full; a clip without any stays as it is."""
    num_samples = waveforms.shape[1]
    if bool((valid_samples >= num_samples).all()):
        return waveforms
    place = torch.arange(num_samples, device=waveforms.device).unsqueeze(0)
    period = torch.where(valid_samples > 0, valid_samples, num_samples).unsqueeze(1)
    return waveforms.gather(1, place % period)


def gaussian_noise(waveforms: Waveforms, rng: Generator, *, snr_db: Range = (5.0, 30.0)) -> Waveforms:
    """Add white noise at a signal-to-noise ratio, of powers, drawn in dB."""
    return coloured_noise(waveforms, rng, snr_db=snr_db, exponent=(0.0, 0.0))


def pink_noise(waveforms: Waveforms, rng: Generator, *, snr_db: Range = (5.0, 30.0)) -> Waveforms:
    """Add noise whose power falls by 10 dB per decade of frequency, as wind's and traffic's does."""
    return coloured_noise(waveforms, rng, snr_db=snr_db, exponent=(1.0, 1.0))


def coloured_noise(
    waveforms: Waveforms, rng: Generator, *, snr_db: Range = (5.0, 30.0), exponent: Range = (0.0, 2.0)
) -> Waveforms:
    """Add noise of a power density 1 / f ** exponent: 0 is white, 1 pink, 2 brown.

    Source: Timmer and Koenig 1995, Astronomy and Astrophysics 300, 707 (shaping a random spectrum).
    """
    found = waveforms.float()
    wanted = uniform(found, rng, snr_db)
    slope = uniform(found, rng, exponent)
    noise = torch.randn(found.shape, generator=rng, device=found.device)
    if exponent != (0.0, 0.0):
        spectrum = torch.fft.rfft(noise)
        frequency = torch.arange(spectrum.shape[1], device=found.device, dtype=torch.float32)
        shape = frequency.clamp_min(1) ** (-slope / 2)
        noise = _waveforms(spectrum * (shape * (frequency > 0)), found.shape[1])
    return at_snr(found, noise, wanted).to(waveforms.dtype)


def at_snr(signal: Waveforms, noise: Waveforms, snr_db: Float[Tensor, "b 1"]) -> Waveforms:
    """Add noise scaled to a ratio of powers in dB; silence gets none, and silent noise adds none."""
    heard, added = power(signal), power(noise)
    scale = torch.sqrt(heard / (added.clamp_min(SILENT_POWER) * 10 ** (snr_db / 10)))
    return signal + noise * torch.where((heard > SILENT_POWER) & (added > SILENT_POWER), scale, 0.0)


def noise_injection(waveforms: Waveforms, rng: Generator, *, level_db: Range = (-70.0, -40.0)) -> Waveforms:
    """Add white noise of an absolute level, in dB of full scale (a mean square of 1): a recorder's own."""
    found = waveforms.float()
    level = 10 ** (uniform(found, rng, level_db) / 20)
    noise = torch.randn(found.shape, generator=rng, device=found.device) * level
    return (found + noise * (power(found) > SILENT_POWER)).to(waveforms.dtype)


def gain(waveforms: Waveforms, rng: Generator, *, gain_db: Range = (-12.0, 12.0)) -> Waveforms:
    """Make louder or softer; the front end undoes it, another transform's absolute level does not."""
    found = waveforms.float()
    return (found * 10 ** (uniform(found, rng, gain_db) / 20)).to(waveforms.dtype)


def peak_normalise(waveforms: Waveforms, rng: Generator, *, peak_db: Range = (0.0, 0.0)) -> Waveforms:
    """Scale every clip so that its largest sample is at a level, in dB of full scale."""
    found = waveforms.float()
    peak = found.abs().amax(dim=1, keepdim=True)
    wanted = 10 ** (uniform(found, rng, peak_db) / 20)
    return (found * torch.where(peak > 0, wanted / peak.clamp_min(1e-9), 1.0)).to(waveforms.dtype)


def circular_shift(waveforms: Waveforms, rng: Generator, *, share: Range = (0.0, 1.0)) -> Waveforms:
    """Begin later in the clip, by a share of its length; its beginning follows its end."""
    num_samples = waveforms.shape[1]
    offset = (uniform(waveforms, rng, share) * num_samples).long()
    if waveforms.device.type == "cpu":  # two copies a clip; a GPU would wait for every number
        turned = [
            clip.roll(-number) for clip, number in zip(waveforms, offset.flatten().tolist(), strict=True)
        ]
        return torch.stack(turned)
    place = torch.arange(num_samples, device=waveforms.device).unsqueeze(0)
    return waveforms.gather(1, (place + offset) % num_samples)


def playback_speed(waveforms: Waveforms, rng: Generator, *, rate: Range = (0.9, 1.1)) -> Waveforms:
    """Play faster (above 1) or slower: times shrink and frequencies rise by the rate."""
    found = waveforms.float()
    drawn = uniform(found, rng, rate)
    return _chunked(_played, found, drawn, found.shape[1]).to(waveforms.dtype)


def time_stretch(waveforms: Waveforms, rng: Generator, *, rate: Range = (0.8, 1.25)) -> Waveforms:
    """Play faster (above 1) or slower at the same pitch.

    Source: the phase vocoder of Flanagan and Golden 1966, Bell System Technical Journal 45, 1493.
    """
    found = waveforms.float()
    drawn = uniform(found, rng, rate)
    return _chunked(_stretched, found, drawn, found.shape[1]).to(waveforms.dtype)


def pitch_shift(waveforms: Waveforms, rng: Generator, *, semitones: Range = (-2.0, 2.0)) -> Waveforms:
    """Raise or lower the pitch and keep the times: stretch, then play at another speed."""
    found = waveforms.float()
    ratio = 2 ** (uniform(found, rng, semitones) / 12)
    longest = math.ceil(found.shape[1] * max(1.0, 2 ** (max(semitones) / 12)))
    stretched = _chunked(_stretched, found, 1 / ratio, scipy.fft.next_fast_len(longest, real=True))
    return _chunked(_played, stretched, ratio, found.shape[1]).to(waveforms.dtype)


def _chunked(
    work: Callable[[Tensor, Tensor, int], Tensor],
    waveforms: Waveforms,
    rate: Float[Tensor, "b 1"],
    num_samples: int,
) -> Float[Tensor, "b n"]:
    """Work on a few clips at once on a CPU, where they stay in its cache; on all of them on a GPU."""
    size = CPU_CHUNK if waveforms.device.type == "cpu" else len(waveforms)
    pieces = zip(torch.split(waveforms, size), torch.split(rate, size), strict=True)
    return torch.cat([work(piece, some, num_samples) for piece, some in pieces])


def _played(waveforms: Waveforms, rate: Float[Tensor, "b 1"], num_samples: int) -> Float[Tensor, "b n"]:
    """Return samples at multiples of `rate`, without what would lie above half the sample rate.

    Oversampled by its spectrum, then cubic (Catmull-Rom) between the four samples around.
    """
    length = waveforms.shape[1]
    spectrum = torch.fft.rfft(waveforms)
    number = torch.arange(spectrum.shape[1], device=waveforms.device)
    spectrum = spectrum * (number < (length / 2) / rate.clamp_min(1.0))
    fine = _waveforms(spectrum, OVERSAMPLING * length) * OVERSAMPLING
    # Fixed point: a float32 does not hold a place among 320,000 and the fraction between two.
    step = (rate.double() * (OVERSAMPLING << POSITION_BITS)).round().long()
    position = torch.arange(num_samples, device=waveforms.device) * step
    place = (position >> POSITION_BITS) % fine.shape[1]
    part = (position & ((1 << POSITION_BITS) - 1)).float() / (1 << POSITION_BITS)
    before, here, after, beyond = (fine.gather(1, (place + k) % fine.shape[1]) for k in (-1, 0, 1, 2))
    slope, next_slope = (after - before) / 2, (beyond - here) / 2
    rise = here - after
    cubic = 2 * rise + slope + next_slope
    square = -3 * rise - 2 * slope - next_slope
    return ((cubic * part + square) * part + slope) * part + here


def _stretched(waveforms: Waveforms, rate: Float[Tensor, "b 1"], num_samples: int) -> Float[Tensor, "b n"]:
    """Return `num_samples` of every clip at `rate` times its tempo, beginning anew behind its end."""
    window = torch.hann_window(STRETCH_FFT, device=waveforms.device)
    spectra = torch.stft(
        waveforms, STRETCH_FFT, STRETCH_HOP, window=window, center=True, pad_mode="reflect",
        return_complex=True,
    )  # fmt: skip
    spectra = spectra.transpose(1, 2)  # (B, N, bins): a frame is one piece of memory
    num_frames = num_samples // STRETCH_HOP + 1
    position = torch.arange(num_frames, device=waveforms.device) * rate % (spectra.shape[1] - 1)
    before = position.long().clamp_max(spectra.shape[1] - 2)
    part = (position - before).unsqueeze(2)
    clip = torch.arange(len(waveforms), device=waveforms.device).unsqueeze(1)
    size = spectra.abs()
    phasor = torch.where(size > SILENT_BIN, spectra / size.clamp_min(SILENT_BIN), 1.0)
    # With one hop in and out, a bin turns from frame to frame as it does in the recording. Products of
    # phasors in place of sums of angles: no arc tangents and no sines.
    turn = phasor[:, 1:] * phasor[:, :-1].conj()
    phase = torch.cat([phasor[:, :1], turn[clip, before[:, :-1]]], dim=1).cumprod(dim=1)
    size = torch.lerp(size[clip, before], size[clip, before + 1], part)
    stretched: Tensor = torch.istft(
        (phase * size).transpose(1, 2),
        STRETCH_FFT,
        STRETCH_HOP,
        window=window,
        center=True,
        length=num_samples,
    )
    return stretched


def time_mask(waveforms: Waveforms, rng: Generator, *, share: Range = (0.0, 0.1)) -> Waveforms:
    """Silence a stretch anywhere in the clip, of a share of its length."""
    num_samples = waveforms.shape[1]
    length = uniform(waveforms, rng, share) * num_samples
    begin = uniform(waveforms, rng, (0.0, 1.0)) * (num_samples - length)
    place = torch.arange(num_samples, device=waveforms.device)
    return waveforms * ~((place >= begin) & (place < begin + length))


def frequency_mask(
    waveforms: Waveforms, rng: Generator, *, sample_rate_hz: int, width_hz: Range = (0.0, 2000.0)
) -> Waveforms:
    """Remove a band of frequencies anywhere up to half the sample rate."""
    found = waveforms.float()
    width = uniform(found, rng, width_hz)
    begin = uniform(found, rng, (0.0, 1.0)) * (sample_rate_hz / 2 - width).clamp_min(0)
    spectrum, frequency = _spectrum(found, sample_rate_hz)
    kept = ~((frequency >= begin) & (frequency < begin + width))
    return _waveforms(spectrum * kept, found.shape[1]).to(waveforms.dtype)


def low_pass(
    waveforms: Waveforms, rng: Generator, *, sample_rate_hz: int, cutoff_hz: Range = (3000.0, 12_000.0)
) -> Waveforms:
    """Take away high frequencies, 3 dB at the cutoff and 12 dB per octave beyond, as distance does.

    The magnitude of Butterworth's filter of order 2, without its delay.
    """
    found = waveforms.float()
    cutoff = uniform(found, rng, cutoff_hz)
    spectrum, frequency = _spectrum(found, sample_rate_hz)
    size = 1 / torch.sqrt(1 + (frequency / cutoff) ** 4)
    return _waveforms(spectrum * size, found.shape[1]).to(waveforms.dtype)


def _spectrum(waveforms: Waveforms, sample_rate_hz: int) -> tuple[Tensor, Tensor]:
    """Return the spectra, and the frequency of each of their values in Hz."""
    spectrum = torch.fft.rfft(waveforms)
    number = torch.arange(spectrum.shape[1], device=waveforms.device)
    return spectrum, number * (sample_rate_hz / waveforms.shape[1])


def _waveforms(spectra: Tensor, num_samples: int) -> Float[Tensor, "b n"]:
    waveforms: Tensor = torch.fft.irfft(spectra, n=num_samples)
    return waveforms


TRANSFORMS: dict[str, Callable[..., Any]] = {
    transform.__name__: transform
    for transform in (
        gaussian_noise, pink_noise, coloured_noise, noise_injection, gain, peak_normalise, circular_shift,
        playback_speed, time_stretch, pitch_shift, time_mask, frequency_mask, low_pass,
    )
}  # fmt: skip
