"""Write reference.json: events, and what sed_eval makes of them. Run in an environment of its own.

python -m venv env && env/bin/pip install sed_eval==0.2.1 && env/bin/python tests/sed_eval/make.py
"""

import json
import random
from pathlib import Path

import sed_eval
from dcase_util.containers import MetaDataContainer

SPECIES = ("a", "b", "c", "d")
RECORDINGS = ("north/one.wav", "two.wav", "three.wav")
SEGMENTS = (1.0, 0.5)
COLLARS = (0.2, 0.5)


def drawn(seed: int) -> tuple[list[dict], list[dict]]:
    """Draw true events, and found ones that are near some of them, twice there, missing, or wrong."""
    rng = random.Random(seed)
    true, found = [], []
    for recording in RECORDINGS:
        for _ in range(rng.randint(3, 12)):
            start = round(rng.uniform(0, 50), 3)
            stop = round(start + rng.choice([0.1, 0.7, 2.0, 5.0]) * rng.uniform(0.5, 1.5), 3)
            species = rng.choice(SPECIES[:3])
            true.append({"filename": recording, "species": species, "start": start, "stop": stop})
            for _ in range(rng.choice([0, 1, 1, 1, 2])):
                moved = [max(0.0, start + rng.gauss(0, 0.25)), stop + rng.gauss(0, 0.4)]
                if moved[1] > moved[0]:
                    name = species if rng.random() < 0.8 else rng.choice(SPECIES)
                    found.append({"filename": recording, "species": name, "start": round(moved[0], 3),
                                  "stop": round(moved[1], 3)})  # fmt: skip
    return true, found


def container(events: list[dict], recording: str) -> MetaDataContainer:
    return MetaDataContainer(
        [{"filename": recording, "event_label": e["species"], "onset": e["start"], "offset": e["stop"]}
         for e in events if e["filename"] == recording]
    )  # fmt: skip


def measured(true: list[dict], found: list[dict]) -> dict[str, float]:
    """Return sed_eval's figures by the names of `trainer score`."""
    metrics = {f"segment_{s:g}s": sed_eval.sound_event.SegmentBasedMetrics(list(SPECIES), time_resolution=s)
               for s in SEGMENTS}  # fmt: skip
    for collar in COLLARS:
        metrics[f"event_{collar:g}s"] = sed_eval.sound_event.EventBasedMetrics(
            list(SPECIES), t_collar=collar, percentage_of_length=0.5, event_matching_type="optimal"
        )
    figures = {}
    for name, metric in metrics.items():
        for recording in RECORDINGS:
            metric.evaluate(container(true, recording), container(found, recording))
        overall = metric.results_overall_metrics()["f_measure"]
        by_class = metric.results_class_wise_metrics()
        there = [
            by_class[code]["f_measure"]["f_measure"] for code in SPECIES if by_class[code]["count"]["Nref"]
        ]
        figures[f"{name}_f1"] = overall["f_measure"]
        figures[f"{name}_precision"], figures[f"{name}_recall"] = overall["precision"], overall["recall"]
        # A class that was never found has no precision; its F1 is 0 (2 TP over all there are).
        figures[f"{name}_f1_macro"] = sum(0.0 if f != f else f for f in there) / len(there)
    return figures


if __name__ == "__main__":
    cases = []
    for seed in range(6):
        true, found = drawn(seed)
        cases.append({"truth": true, "found": found, "figures": measured(true, found)})
    document = {"sed_eval": "0.2.1", "cases": cases}
    Path(__file__).with_name("reference.json").write_text(json.dumps(document, indent=1) + "\n")
