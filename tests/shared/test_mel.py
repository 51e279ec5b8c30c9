import dataclasses
import math
from pathlib import Path

import librosa
import numpy as np
import pytest
import soundfile
import torch

from shared.clips import ClipConfig
from shared.mel import FftMel, LogMelImage, MelConfig, delta, mel_spectrogram_layer, scaled_db

CONFIG = MelConfig()
GRID = ClipConfig().grid()
CPU = torch.device("cpu")


def chirps(num: int = 3) -> torch.Tensor:
    time = torch.arange(GRID.clip_samples) / GRID.sample_rate_hz
    rising = [torch.sin(2 * math.pi * (500 + 900 * n * time) * time) for n in range(1, num + 1)]
    return torch.stack(rising) + 1e-3 * torch.randn(num, len(time), generator=torch.manual_seed(0))


def decibels(power: torch.Tensor) -> torch.Tensor:
    db = 10 * torch.log10(power.clamp_min(1e-10))
    return torch.maximum(db, db.amax(dim=(1, 2), keepdim=True) - CONFIG.top_db)


def assert_engines_agree(waveforms: torch.Tensor) -> None:
    fft = FftMel(CONFIG, 32_000)(waveforms)
    convolution = mel_spectrogram_layer(CONFIG, 32_000)(waveforms)
    assert (decibels(fft) - decibels(convolution)).abs().max() < 0.01


def test_fft_and_nnaudio_agree_to_a_hundredth_of_a_decibel() -> None:
    assert_engines_agree(chirps())


def test_fft_and_nnaudio_agree_on_real_clips(data_folder: Path) -> None:
    files = sorted((data_folder / "birdclef2024-sample" / "train_audio").glob("*/*.ogg"))[:6]
    clips = [soundfile.read(f, frames=160_000, dtype="float32")[0] for f in files]
    assert_engines_agree(torch.stack([torch.tensor(c) for c in clips if len(c) == 160_000]))


def test_log_mel_agrees_with_librosa() -> None:
    waveforms = chirps(1)
    ours = decibels(FftMel(CONFIG, 32_000)(waveforms))[0].numpy()
    theirs = librosa.feature.melspectrogram(
        y=waveforms[0].numpy(), sr=32_000, n_fft=2048, hop_length=500, n_mels=224, fmin=0.0,
        fmax=16_000.0, center=True, pad_mode="reflect", power=2.0, htk=False, norm="slaney",
    )  # fmt: skip
    assert np.abs(ours - librosa.power_to_db(theirs, ref=1.0, top_db=80)).max() < 0.05


def test_a_clip_is_320_frames_of_3_channels_between_0_and_1() -> None:
    image = LogMelImage(dataclasses.replace(CONFIG, channels="repeat"), GRID, CPU)(chirps())
    assert image.shape == (3, 3, 224, 320)
    assert image.min() == 0
    assert image.amax(dim=(1, 2, 3)).tolist() == [1, 1, 1]


def test_silence_is_all_zeros_and_finite() -> None:
    image = LogMelImage(CONFIG, GRID, CPU)(torch.zeros(1, GRID.clip_samples))
    assert not image[:, 0].any()
    assert torch.isfinite(image).all()


def test_loudness_does_not_matter() -> None:
    image = LogMelImage(CONFIG, GRID, CPU)
    assert torch.allclose(image(chirps()), image(0.01 * chirps()), atol=1e-4)


def test_a_click_at_two_seconds_is_in_the_frame_at_two_seconds() -> None:
    waveform = 1e-4 * torch.randn(1, GRID.clip_samples, generator=torch.manual_seed(0))
    waveform[0, 2 * 32_000] += 1.0
    image = LogMelImage(CONFIG, GRID, CPU)(waveform)
    assert image[0, 0].sum(dim=0).argmax() == 2 * 32_000 // CONFIG.hop_length


def test_the_deltas_are_slope_and_change_of_slope_around_mid_grey() -> None:
    image = LogMelImage(CONFIG, GRID, CPU)(chirps())
    log_mel, first, second = image.unbind(dim=1)
    assert torch.allclose(first, delta(log_mel) + 0.5)
    assert torch.allclose(second, delta(delta(log_mel)) + 0.5)


def test_the_delta_of_a_ramp_is_its_slope_and_of_a_constant_zero() -> None:
    ramp = torch.arange(20.0).expand(1, 2, 20) * 0.25
    assert torch.allclose(delta(ramp)[..., 2:-2], torch.tensor(0.25))
    assert not delta(torch.ones(1, 2, 20)).any()


def test_delta_agrees_with_librosa_inside_the_edges() -> None:
    x = np.random.default_rng(0).random((4, 30)).astype(np.float32)
    theirs = librosa.feature.delta(x, width=5, order=1, mode="nearest")
    ours = delta(torch.from_numpy(x)[None])[0].numpy()
    assert np.abs(ours - theirs).max() < 1e-5


def test_top_db_cuts_what_is_quieter() -> None:
    power = torch.tensor([[[1.0, 1e-4, 1e-12]]])
    assert torch.allclose(scaled_db(power, 80.0), torch.tensor([[[1.0, 0.5, 0.0]]]))


def test_a_band_above_half_the_sample_rate_is_refused() -> None:
    with pytest.raises(ValueError, match="fmax_hz = 16000.0 lies above half the sample rate"):
        FftMel(CONFIG, 22_050)
