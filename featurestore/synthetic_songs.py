"""Songs of made-up species: each has a grammar of its own, each individual its own voice."""

from dataclasses import dataclass

import numpy as np
import scipy.signal

RATE_HZ = 32_000
KINDS = ("whistle", "trill", "sweep", "harmonic", "buzz")
FIRST_NAMES = (
    "Amber", "Bronze", "Crimson", "Dusky", "Emerald", "Golden", "Hooded", "Ivory", "Jade", "Lilac",
    "Marbled", "Ochre", "Pale", "Russet", "Sooty", "Tawny", "Umber", "Violet", "White", "Yellow",
)  # fmt: skip
LAST_NAMES = {
    "whistle": "Whistler",
    "trill": "Triller",
    "sweep": "Warbler",
    "harmonic": "Crier",
    "buzz": "Buzzer",
}


@dataclass(frozen=True)
class Element:
    """One note: its kind, centre frequency, bandwidth, length, and the pause after it."""

    kind: str
    frequency_hz: float
    bandwidth_hz: float
    seconds: float
    pause_seconds: float
    rate_hz: float


@dataclass(frozen=True)
class Species:
    """A made-up species: its code, names, and the notes of its song in order."""

    code: str
    common_name: str
    scientific_name: str
    elements: tuple[Element, ...]


def make_species(number: int, rng: np.random.Generator) -> Species:
    """Return species `number`: kinds go round, so that few species already cover all five."""
    kind = KINDS[number % len(KINDS)]
    first = FIRST_NAMES[number % len(FIRST_NAMES)]
    round_number = 1 + number // len(FIRST_NAMES)
    name = f"{first} {LAST_NAMES[kind]}" + (f" {round_number}" if round_number > 1 else "")
    code = f"{first[:3]}{LAST_NAMES[kind][:3]}{round_number}".lower()
    kinds = [kind, *rng.choice(KINDS, size=rng.integers(0, 2))]
    note = [_make_element(str(chosen), rng) for chosen in kinds]
    repeats = int(rng.integers(2, 5))
    return Species(code, name, f"Synthavis {first.lower()}{number}", tuple(note * repeats))


def _make_element(kind: str, rng: np.random.Generator) -> Element:
    low, high = {"harmonic": (700, 2200), "buzz": (2500, 7000)}.get(kind, (1800, 8000))
    frequency = float(np.exp(rng.uniform(np.log(low), np.log(high))))
    return Element(
        kind=kind,
        frequency_hz=frequency,
        bandwidth_hz=frequency * float(rng.uniform(0.1, 0.5)),
        seconds=float(rng.uniform(0.08, 0.45)),
        pause_seconds=float(rng.uniform(0.03, 0.2)),
        rate_hz=float(rng.uniform(12, 45)),
    )


def sing(species: Species, rng: np.random.Generator) -> np.ndarray:
    """Return one song of one individual: pitch, tempo and number of notes vary; peak 1."""
    pitch, tempo = rng.uniform(0.94, 1.06), rng.uniform(0.85, 1.2)
    num_notes = int(rng.integers(max(1, len(species.elements) // 2), len(species.elements) + 1))
    parts = []
    for element in species.elements[:num_notes]:
        seconds = element.seconds * tempo * rng.uniform(0.92, 1.08)
        note = _note(element, pitch * rng.uniform(0.99, 1.01), seconds, rng)
        pause = np.zeros(round(element.pause_seconds * tempo * RATE_HZ))
        parts += [note * rng.uniform(0.6, 1.0), pause]
    song = np.concatenate(parts)
    return np.asarray(song / np.abs(song).max())


def _note(element: Element, pitch: float, seconds: float, rng: np.random.Generator) -> np.ndarray:
    time = np.arange(round(seconds * RATE_HZ)) / RATE_HZ
    centre, width = element.frequency_hz * pitch, element.bandwidth_hz * pitch
    shape = scipy.signal.windows.tukey(len(time), 0.3)
    place = time / seconds
    match element.kind:
        case "whistle":
            return np.asarray(shape * _tone(centre + 0.1 * width * np.sin(np.pi * place)))
        case "trill":
            beat = 0.5 + 0.5 * np.sin(2 * np.pi * element.rate_hz * time)
            return np.asarray(shape * beat * _tone(np.full(len(time), centre)))
        case "sweep":
            return np.asarray(shape * _tone(centre + width * (place - 0.5)))
        case "harmonic":
            bend = centre * (1 + 0.08 * np.sin(np.pi * place))
            tones = [_tone(n * bend) / n for n in range(1, 6) if n * centre < 14_000]
            return np.asarray(shape * np.sum(tones, axis=0))
        case "buzz":
            noise = rng.standard_normal(len(time))
            edges = [max(200, centre - width / 2), min(15_500, centre + width / 2)]
            band = scipy.signal.sosfilt(
                scipy.signal.butter(4, edges, "bandpass", fs=RATE_HZ, output="sos"), noise
            )
            pulse = 0.5 + 0.5 * scipy.signal.square(2 * np.pi * element.rate_hz * 2 * time)
            return np.asarray(shape * pulse * band / np.abs(band).max())
    raise ValueError(f"kind must be one of {', '.join(KINDS)}; got {element.kind!r}.")


def _tone(frequency_hz: np.ndarray) -> np.ndarray:
    return np.sin(2 * np.pi * np.cumsum(frequency_hz) / RATE_HZ)
