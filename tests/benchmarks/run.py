"""Side-by-side measurements; medians and ratios, since machines are noisy and small.

`make bench` runs all sections, `make bench ONLY=mel` one. Prints a table and writes bench.json, one
flat object of numbers. All but the section precision runs on made-up audio and needs nothing but
the installed package.
"""

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from functools import partial
from pathlib import Path

import numpy as np
import torch
from augments import augment
from builds import builds
from measuring import Numbers, median_seconds, peak_anonymous_mb, show
from precision import precision
from predicts import predict_memory, predicts
from reads import reads
from views import views

BACKBONE = "tf_efficientnet_lite0"
OUTPUT = Path("bench.json")


def mel() -> Numbers:
    """Log-mel of 16 clips on the CPU: nnAudio's convolution against the FFT."""
    from shared.clips import ClipConfig
    from shared.mel import FftMel, MelConfig, mel_spectrogram_layer

    config, rate = MelConfig(), ClipConfig().sample_rate_hz
    waveforms = torch.randn(16, ClipConfig().grid().clip_samples)
    layers = {"nnAudio": mel_spectrogram_layer(config, rate), "FFT": FftMel(config, rate)}
    with torch.inference_mode():
        seconds = median_seconds({name: partial(layer, waveforms) for name, layer in layers.items()})
    ms = {name: value / 16e-3 for name, value in seconds.items()}
    rows = [[name, f"{value:.2f}", f"{ms['nnAudio'] / value:.1f}"] for name, value in ms.items()]
    show("Mel spectrogram, CPU", ["engine", "ms per clip", "x nnAudio"], rows)
    return {"mel.fft_over_nnaudio": ms["nnAudio"] / ms["FFT"]}


def forward() -> Numbers:
    """The frozen backbone on 16 images of 224x320: as timm makes it, folded, and compiled."""
    from torch._inductor import config as inductor_config

    from shared.backbone import BackboneConfig, load_backbone
    from shared.timm_door import import_timm

    model = import_timm().create_model(BACKBONE, pretrained=False).eval()
    eager = torch.nn.Sequential(model.conv_stem, model.bn1, model.blocks)
    folded = load_backbone(BackboneConfig(name=BACKBONE, weights="random"), torch.device("cpu"))
    images = torch.rand(16, 3, 224, 320)
    variants: dict[str, Callable[[torch.Tensor], torch.Tensor]] = {"eager": eager, "folded": folded}
    start = time.perf_counter()
    inductor_config.freezing = True
    variants["folded, compiled"] = torch.compile(folded, dynamic=False)
    with torch.inference_mode():
        variants["folded, compiled"](images)
        compile_seconds = time.perf_counter() - start
        seconds = median_seconds({name: partial(run, images) for name, run in variants.items()})
    rate = {name: 16 / value for name, value in seconds.items()}
    rows = [[name, f"{value:.1f}", f"{value / rate['eager']:.2f}"] for name, value in rate.items()]
    show(f"{BACKBONE} to its last block, CPU fp32", ["engine", "clips/s", "x eager"], rows)
    print(f"compiling took {compile_seconds:.0f} s")
    return {
        "forward.folded_over_eager": rate["folded"] / rate["eager"],
        "forward.compiled_over_folded": rate["folded, compiled"] / rate["folded"],
        "forward.compile_seconds": compile_seconds,
    }


def write_recordings(folder: Path, num: int, seconds: float) -> None:
    """Write noise recordings of two species and their metadata."""
    import soundfile

    (folder / "audio").mkdir(parents=True)
    rng = np.random.default_rng(0)
    samples = (0.1 * rng.standard_normal(int(seconds * 32_000))).astype(np.float32)
    lines = ["filename,primary_label"]
    for number in range(num):
        samples[:8] = rng.standard_normal(8) * 0.1
        with soundfile.SoundFile(
            folder / "audio" / f"{number}.ogg", "w", 32_000, 1, "VORBIS", format="OGG"
        ) as f:
            for first in range(0, len(samples), 32_000):
                f.write(samples[first : first + 32_000])
        lines.append(f"{number}.ogg,{'ab'[number % 2]}")
    (folder / "meta.csv").write_text("\n".join(lines) + "\n")


def program(*arguments: object) -> float:
    """Run a program of ours in a process of its own; return its wall seconds."""
    start = time.perf_counter()
    code = f"from {arguments[0]}.cli import main; main()"
    command = [sys.executable, "-c", code, *(str(argument) for argument in arguments[1:])]
    subprocess.run(command, check=True, capture_output=True)
    return time.perf_counter() - start


def build_store(folder: Path, *more: object) -> Path:
    """Build a folder of write_recordings into a store of the demo's config."""
    out = folder / "s.zarr"
    program("featurestore", "build", "--config", "configs/demo.toml", "--metadata", folder / "meta.csv",
            "--audio", folder / "audio", "--out", out, *more)  # fmt: skip
    return out


def fit() -> Numbers:
    """Training a head: data in a step, an epoch against everything on the fly, memory.

    On the fly, a prefetching DataLoader decodes; nnAudio's log-mel and the frozen backbone as timm
    makes it run in front of the head for every clip: what training without a store does. The other
    row gives that side our own fast front end. Clips of each are drawn alike.
    """
    import fits

    from shared.store import FeatureStore
    from trainer.config import HeadConfig

    heads = {
        "attention_rows": HeadConfig(),
        "chrononet_mean": HeadConfig(name="chrononet", frequency="mean"),
        "chrononet_rows": HeadConfig(name="chrononet"),
        "linear_mean": HeadConfig(name="linear", frequency="mean"),
    }
    numbers: Numbers = {}
    with tempfile.TemporaryDirectory() as name:
        write_recordings(Path(name), 64, 20.0)
        path = build_store(Path(name))
        rows = []
        for head, config in heads.items():
            real, constant, alone = fits.data_efficiency(path, config)
            row = [head, f"{real:.1f}", f"{constant:.1f}", f"{real / constant:.3f}"]
            rows.append([*row, f"{alone:.0f}", f"{constant / alone:.3f}"])
            numbers[f"fit.data_efficiency_{head}"] = real / constant
            numbers[f"fit.data_share_{head}"] = constant / alone
        header = ["head", "steps/s", "with one constant batch", "ratio", "data alone", "its share of a step"]
        show("Training steps of 64 clips", header, rows)
        store, audio, default = FeatureStore(path), Path(name) / "audio", heads["attention_rows"]
        stored = {head: fits.stored_seconds_per_clip(path, config) for head, config in heads.items()}
        plain = fits.on_the_fly_seconds_per_clip(store, audio, default, fast=False)
        fast = fits.on_the_fly_seconds_per_clip(store, audio, default, fast=True)
        small, large, size = fits.anonymous_memory(path, Path(name))
    base = stored["attention_rows"]
    found = {"on the fly, nnAudio + timm": plain, "on the fly, our front end": fast} | {
        f"cached, {head}": seconds for head, seconds in stored.items()
    }
    rows = [
        [name, f"{wall * 1e3:.2f}", f"{cpu * 1e3:.2f}", f"{plain[0] / wall:.0f}", f"{plain[1] / cpu:.0f}"]
        for name, (wall, cpu) in found.items()
    ]
    header = ["an epoch of a head", "ms per clip", "CPU ms per clip", "x wall", "x CPU"]
    show(f"Training a head, {BACKBONE} features; on the fly with attention_rows", header, rows)
    print(f"peak anonymous memory of training: {small:.0f} MB; of a store of {size:.0f} GB {large:.0f} MB")
    return numbers | {
        "fit.data_efficiency": numbers["fit.data_efficiency_attention_rows"],
        "fit.on_the_fly_over_cached": plain[0] / base[0],
        "fit.on_the_fly_over_cached_cpu": plain[1] / base[1],
        "fit.fast_on_the_fly_over_cached": fast[0] / base[0],
        "fit.fast_on_the_fly_over_cached_cpu": fast[1] / base[1],
        "fit.on_the_fly_over_cached_chrononet_mean": plain[0] / stored["chrononet_mean"][0],
        "fit.on_the_fly_over_cached_chrononet_rows": plain[0] / stored["chrononet_rows"][0],
        "fit.anonymous_large_over_small": large / small,
    }


def memory() -> Numbers:
    """Peak anonymous memory of building one recording of an hour, 200 of five seconds, and 4,000."""
    peaks = {}
    kinds = (("1 recording of 60 minutes", 1, 3600.0), ("200 of 5 s", 200, 5.0), ("4,000 of 5 s", 4000, 5.0))
    for title, num, seconds in kinds:
        with tempfile.TemporaryDirectory() as name:
            write_recordings(Path(name), num, seconds)
            arguments = ["build", "--config", "configs/demo.toml", "--metadata", f"{name}/meta.csv",
                         "--audio", f"{name}/audio", "--out", f"{name}/s.zarr"]  # fmt: skip
            code = "from featurestore.cli import main; main()"
            peaks[title] = peak_anonymous_mb([sys.executable, "-c", code, *arguments])
    show(
        "Peak anonymous memory of a build", ["recordings", "MB"], [[k, f"{v:.0f}"] for k, v in peaks.items()]
    )
    hour, few, many = peaks.values()
    return {
        "memory.hour_mb": hour,
        "memory.few_mb": few,
        "memory.many_mb": many,
        "memory.many_over_few": many / few,
    }


def day() -> Numbers:
    """Peak memory of a prediction of ten minutes and of a day."""

    def store_in(folder: Path) -> Path:
        write_recordings(folder, 8, 10.0)
        return build_store(folder)

    return predict_memory(program, store_in)


def pages() -> Numbers:
    """Time and size of every kind of page, and how fast a browser redraws one."""
    from pages import pages

    return pages(program, build_store, write_recordings)


SECTIONS = {
    "mel": mel,
    "forward": forward,
    "reads": reads,
    "build": builds,
    "precision": precision,
    "fit": fit,
    "augment": augment,
    "views": views,
    "memory": memory,
    "predict": predicts,
    "day": day,
    "pages": pages,
}


def run_apart(names: Iterable[str]) -> Numbers:
    """Run each section in a process of its own, so that none inherits another's memory and threads."""
    numbers: Numbers = {}
    for name in names:
        subprocess.run([sys.executable, __file__, "--only", name], check=True)
        numbers |= json.loads(OUTPUT.read_text())
    return numbers


def main() -> None:
    """Run the sections and write bench.json."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--only", choices=SECTIONS)
    only = parser.parse_args().only
    torch.manual_seed(0)
    numbers = SECTIONS[only]() if only else run_apart(SECTIONS)
    OUTPUT.write_text(json.dumps({name: round(value, 3) for name, value in numbers.items()}, indent=2) + "\n")
    print(f"\n{OUTPUT}: {len(numbers)} numbers; peak of this process "
          f"{resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1000:.0f} MB")  # fmt: skip


if __name__ == "__main__":
    main()
