"""ms per clip of audiomentations' transforms, as JSON; run by the section augment in its own environment."""

import json
import statistics
import time

import audiomentations as am
import numpy as np

RATE_HZ, NUM_SAMPLES, BATCH, REPEATS = 32_000, 160_000, 32, 3

SAME = {
    "gaussian_noise": am.AddGaussianSNR(5.0, 30.0, p=1.0),
    "pink_noise": am.AddColorNoise(5.0, 30.0, min_f_decay=-3.01, max_f_decay=-3.01, p=1.0),
    "coloured_noise": am.AddColorNoise(5.0, 30.0, min_f_decay=-6.02, max_f_decay=0.0, p=1.0),
    "noise_injection": am.AddGaussianNoise(0.0003, 0.01, p=1.0),
    "gain": am.Gain(-12.0, 12.0, p=1.0),
    "peak_normalise": am.Normalize(p=1.0),
    "circular_shift": am.Shift(0.0, 1.0, shift_unit="fraction", rollover=True, p=1.0),
    "time_stretch": am.TimeStretch(0.8, 1.25, leave_length_unchanged=True, p=1.0),
    "pitch_shift": am.PitchShift(-2.0, 2.0, p=1.0),
    "time_mask": am.TimeMask(0.0, 0.1, p=1.0),
    "frequency_mask": am.BandStopFilter(100.0, 15_000.0, p=1.0),
    "low_pass": am.LowPassFilter(3000.0, 12_000.0, min_rolloff=12, max_rolloff=12, p=1.0),
}


def main() -> None:
    """Time every transform on the same noise."""
    clips = (np.random.default_rng(0).standard_normal((BATCH, NUM_SAMPLES)) * 0.1).astype(np.float32)
    found = {}
    for name, transform in SAME.items():
        seconds = []
        for repeat in range(REPEATS + 1):
            start = time.perf_counter()
            for clip in clips:
                transform(samples=clip, sample_rate=RATE_HZ)
            if repeat:
                seconds.append(time.perf_counter() - start)
        found[name] = statistics.median(seconds) / BATCH * 1e3
    print(json.dumps(found))


main()
