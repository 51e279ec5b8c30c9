"""Recordings into mono clips at one sample rate, streamed, with every defect named."""

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import soundfile
import soxr
from jaxtyping import Float32, Int16

from shared.clips import ClipGrid

BLOCK_FRAMES = 1 << 18
RESCUE_FRAMES = 1 << 10
INT16_MAX = 32767
OGG_HEADER_BYTES, OGG_PAGE_MAX_BYTES = 27, 65_307

# By severity; a recording that several shards decode keeps the worst.
STATUSES = ("ok", "short", "damaged", "unreadable")
FULL_SCALE = 32768  # of int16 samples
AUDIO_SUFFIXES = (".flac", ".m4a", ".mp3", ".oga", ".ogg", ".opus", ".wav", ".aiff", ".aif")


@dataclass(frozen=True)
class AudioHeader:
    """What a file declares about itself, before anything is decoded."""

    num_frames: int
    sample_rate_hz: int


@dataclass(frozen=True)
class Clip:
    """One clip: samples (S,) float32, of which the first `valid_samples` are audio."""

    samples: Float32[np.ndarray, " s"]
    valid_samples: int


def read_header(path: Path) -> AudioHeader:
    """Read frames and rate from the header.

    Raises:
        ValueError: with the reason, where the file is missing, empty or no audio.
    """
    if not path.is_file():
        raise ValueError("no such file")
    if path.stat().st_size == 0:
        raise ValueError("the file is empty (0 bytes)")
    try:
        info = soundfile.info(str(path))
    except soundfile.LibsndfileError as error:
        raise ValueError(f"libsndfile cannot read it: {error.error_string}") from error
    except TypeError as error:  # soundfile's answer to a headerless format, as in x.raw
        raise ValueError(f"it has no header to read it by: {error}") from error
    if info.frames <= 0:
        raise ValueError("it holds no samples")
    return AudioHeader(int(info.frames), int(info.samplerate))


@dataclass(frozen=True)
class Finding:
    """One of STATUSES, and the reasons."""

    status: str
    reasons: tuple[str, ...] = ()

    def joined(self, other: "Finding") -> "Finding":
        """Return the worse status, and the reasons of both, each once."""
        status = max(self.status, other.status, key=STATUSES.index)
        return Finding(status, tuple(dict.fromkeys(self.reasons + other.reasons)))


@dataclass
class ClipDecoder:
    """All clips of one recording in order, decoded once from front to back in blocks.

    Yields exactly the clips that the declared frames promise, so that a plan made from the
    header stays true: what cannot be decoded is zeros with valid_samples = 0. After the last
    clip, `problems` says what was found: libsndfile returns short reads without an error for
    truncated ogg and mp3, so frames read are compared with frames declared.

    hop_samples: how far the next clip is from the one that was yielded last; the grid's, and may be
    changed in between.
    """

    path: Path
    header: AudioHeader
    grid: ClipGrid
    problems: list[str] = field(default_factory=list)
    num_decoded: int = 0

    def __post_init__(self) -> None:
        self.hop_samples = self.grid.hop_samples

    @property
    def finding(self) -> "Finding":
        """What was found, valid after the last clip."""
        if self.problems:
            status = "damaged" if self.num_decoded else "unreadable"
        else:
            status = "short" if self._num_samples < self.grid.clip_samples else "ok"
        return Finding(status, tuple(self.problems))

    @property
    def _num_samples(self) -> int:
        return self.grid.resampled_length(self.header.num_frames, self.header.sample_rate_hz)

    def __iter__(self) -> Iterator[Clip]:
        clip_samples, num_samples = self.grid.clip_samples, self._num_samples
        blocks = self._resampled_blocks()
        held = np.zeros(0, np.float32)
        ended, start = False, 0 if num_samples > 0 else None
        while start is not None:
            wanted = min(clip_samples, num_samples - start)
            while len(held) < wanted and not ended:
                block = next(blocks, None)
                ended = block is None
                if block is not None:
                    held = np.concatenate([held, block])
            valid = min(wanted, len(held))
            samples = np.zeros(clip_samples, np.float32)
            samples[:valid] = held[:valid]
            yield Clip(samples, self._without_rounding(valid, wanted))
            held = held[self.hop_samples :]
            start = self.grid.next_start(start, num_samples, self.hop_samples)
        for _ in blocks:  # read to the end, so that frames can be compared with the header
            pass

    def _without_rounding(self, valid: int, wanted: int) -> int:
        """Count a sample or two that the resampler rounded away at the end as audio."""
        return wanted if valid and wanted - valid <= 2 else valid

    def _resampled_blocks(self) -> Iterator[Float32[np.ndarray, " n"]]:
        rate, target = self.header.sample_rate_hz, self.grid.sample_rate_hz
        if rate == target:
            yield from self._mono_blocks()
            return
        stream = soxr.ResampleStream(rate, target, 1, dtype="float32", quality="HQ")
        for block in self._mono_blocks():
            yield stream.resample_chunk(block)
        yield stream.resample_chunk(np.zeros(0, np.float32), last=True)

    def _frames(self) -> Iterator[Float32[np.ndarray, "n ch"]]:
        """Decode in blocks; where one fails, go on in small ones to what can still be had."""
        error: Exception | None = None
        for block_frames in (BLOCK_FRAMES, RESCUE_FRAMES):
            try:
                for frames in _read_from(self.path, self.num_decoded, block_frames):
                    frames = frames[: self.header.num_frames - self.num_decoded]
                    self.num_decoded += len(frames)
                    yield frames
                break
            except (soundfile.LibsndfileError, OSError) as problem:
                error = problem
        if error:
            self.problems.append(f"decoding stopped: {error}")

    def _mono_blocks(self) -> Iterator[Float32[np.ndarray, " n"]]:
        """Decode block by block; on the way out, note what was wrong."""
        not_finite = 0
        for frames in self._frames():
            mono = frames[:, 0] if frames.shape[1] == 1 else frames.mean(axis=1, dtype=np.float32)
            bad = ~np.isfinite(mono)
            not_finite += int(bad.sum())
            mono[bad] = 0
            yield mono
        if self.num_decoded < self.header.num_frames:
            self.problems.append(
                f"{self.num_decoded} of {self.header.num_frames} declared frames could be decoded"
            )
        if self.num_decoded and self.path.is_file() and is_cut_off(self.path):
            self.problems.append("the file is cut off: its own sizes or end marks say so")
        if not_finite:
            self.problems.append(f"{not_finite} samples were NaN or infinite and are set to 0")


def is_cut_off(path: Path) -> bool:
    """Tell whether an Ogg or WAV file lacks its end, which libsndfile takes for a shorter recording.

    Other formats declare their frames, so that decoding shows it: False for them.
    """
    with path.open("rb") as file:
        match file.read(4):
            case b"OggS":
                return _ogg_is_cut_off(path)
            case b"RIFF":
                return _wav_is_cut_off(path)
    return False


def _wav_is_cut_off(path: Path) -> bool:
    """Compare the data chunk's size with the file's; sizes of 0 and 2^32 - 1 mean unknown."""
    size = path.stat().st_size
    with path.open("rb") as file:
        file.seek(12)
        while len(head := file.read(8)) == 8:
            num_bytes = int.from_bytes(head[4:], "little")
            if head[:4] == b"data":
                return num_bytes not in (0, 0xFFFFFFFF) and file.tell() + num_bytes > size
            file.seek(num_bytes + num_bytes % 2, 1)
    return False


def _ogg_is_cut_off(path: Path) -> bool:
    """Look whether the last page is whole and marked as the last (RFC 3533, section 6)."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - OGG_PAGE_MAX_BYTES))
        end = file.read()
    page = end[end.rfind(b"OggS") :]
    if len(page) < OGG_HEADER_BYTES or not page[5] & 0x04:
        return True
    num_segments = page[OGG_HEADER_BYTES - 1]
    table_end = OGG_HEADER_BYTES + num_segments
    return len(page) < table_end + sum(page[OGG_HEADER_BYTES:table_end])


def _read_from(path: Path, first: int, block_frames: int) -> Iterator[Float32[np.ndarray, "n ch"]]:
    with soundfile.SoundFile(str(path)) as file:
        if first:
            file.seek(first)
        while len(frames := file.read(block_frames, dtype="float32", always_2d=True)):
            yield frames


def to_int16(samples: Float32[np.ndarray, " s"]) -> tuple[Int16[np.ndarray, " s"], float]:
    """Return int16 samples and the gain with which `gain * int16` is the waveform again.

    Every clip is scaled to use the whole range: nothing clips (decoders return samples
    beyond 1.0) and a quiet clip keeps 16 bits. Silence has gain 1/32767.
    """
    peak = float(np.abs(samples).max(initial=0.0))
    gain = np.float32((peak or 1.0) / INT16_MAX)
    if gain == 0:  # denormal samples are silence
        return np.zeros(len(samples), np.int16), 1.0 / INT16_MAX
    scaled = np.rint(samples / gain).clip(-INT16_MAX, INT16_MAX)
    return scaled.astype(np.int16), float(gain)
