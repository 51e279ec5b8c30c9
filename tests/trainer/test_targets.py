from typing import Any

import numpy as np
import pandas as pd

from shared.metadata import WHOLE
from shared.taxonomy import Taxonomy
from trainer.config import LabelConfig
from trainer.targets import LabelledClips, Targets, make_targets

SECOND = 100


def targets(labels: list[tuple[Any, ...]], config: LabelConfig | None = None) -> Targets:
    """Two recordings of three one-second clips each, species a, b, c."""
    columns = ["recording", "species", "kind", "start", "stop", "value", "weight"]
    tables = LabelledClips(
        num_recordings=2,
        clips=pd.DataFrame({"recording": [0, 0, 0, 1, 1, 1], "start": [0, 100, 200] * 2}),
        labels=pd.DataFrame([(*row, 1.0, 1.0)[:7] for row in labels], columns=columns),
        clip_samples=SECOND,
    )
    return make_targets(tables, Taxonomy(("a", "b", "c")), config or LabelConfig())


def test_a_weak_label_holds_for_every_clip_of_its_recording() -> None:
    made = targets([(0, "a", "primary", WHOLE, WHOLE), (1, "b", "primary", WHOLE, WHOLE)])
    values, weights = made.of(np.arange(6))
    assert values.tolist() == [[1, 0, 0]] * 3 + [[0, 1, 0]] * 3
    assert (weights == 1).all()


def test_secondary_labels_are_masked_or_soft() -> None:
    labels = [(0, "a", "primary", WHOLE, WHOLE), (0, "b", "secondary", WHOLE, WHOLE)]
    values, weights = targets(labels).of(np.array([0]))
    assert weights.tolist() == [[1, 0, 1]]
    values, weights = targets(labels, LabelConfig(secondary="soft", secondary_value=0.25)).of(np.array([0]))
    assert values.tolist() == [[1, 0.25, 0]]
    assert (weights == 1).all()
    values, weights = targets(labels, LabelConfig(secondary="positive")).of(np.array([0]))
    assert values.tolist() == [[1, 1, 0]]
    assert (weights == 1).all()


def test_a_recording_without_a_call_is_a_negative_for_every_species() -> None:
    made = targets([(0, "", "primary", WHOLE, WHOLE), (1, "b", "primary", WHOLE, WHOLE)])
    values, weights = made.of(np.arange(3))
    assert not values.any()
    assert (weights == 1).all()
    assert made.is_known().all()


def test_a_species_outside_the_taxonomy_leaves_a_negative_for_the_others() -> None:
    values, weights = targets([(0, "zzz", "primary", WHOLE, WHOLE)]).of(np.array([0]))
    assert not values.any()
    assert (weights == 1).all()


def test_a_timed_label_holds_for_the_clips_it_overlaps_and_the_rest_is_unknown() -> None:
    made = targets([(0, "a", "primary", 100, 200), (1, "b", "primary", 150, 250)])
    values, weights = made.of(np.arange(6))
    assert values.tolist() == [[0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 0, 0], [0, 1, 0], [0, 1, 0]]
    assert weights.any(axis=1).tolist() == [False, True, False, False, True, True]
    assert made.is_known().tolist() == [False, True, False, False, True, True]


def test_a_whole_and_a_timed_label_add_up() -> None:
    made = targets([(0, "a", "primary", WHOLE, WHOLE), (0, "b", "primary", 0, 100)])
    values, weights = made.of(np.arange(3))
    assert values.tolist() == [[1, 1, 0], [1, 0, 0], [1, 0, 0]]
    assert (weights == 1).all()


def test_a_timed_secondary_label_takes_no_primary_one_away() -> None:
    made = targets([(0, "a", "primary", WHOLE, WHOLE), (0, "a", "secondary", 0, 100)])
    values, weights = made.of(np.arange(3))
    assert values.tolist() == [[1, 0, 0]] * 3
    assert (weights == 1).all()


def test_a_span_without_a_species_is_known_to_be_empty_and_the_rest_unknown() -> None:
    values, weights = targets([(0, "", "primary", 100, 200)]).of(np.arange(3))
    assert not values.any()
    assert weights.any(axis=1).tolist() == [False, True, False]


def test_recordings_are_scored_by_all_their_primary_labels() -> None:
    made = targets(
        [(0, "a", "primary", 0, 100), (0, "b", "primary", 200, 300), (0, "c", "secondary", -1, -1)]
    )
    assert made.recording_truth[0].tolist() == [1, 1, 0]
    assert made.recording_weights[0].tolist() == [1, 1, 0]


def test_a_soft_value_and_weight_of_a_label_are_kept() -> None:
    values, weights = targets([(0, "a", "primary", 0, 100, 0.7, 0.5)]).of(np.array([0]))
    assert np.isclose(values[0, 0], 0.7)
    assert np.isclose(weights[0, 0], 0.5)
