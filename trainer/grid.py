"""Many settings over one store: a file that spells them out, and the table at the end."""

import itertools
import statistics
import tomllib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from shared.command_line import text_table
from shared.config import Sections, parse_config
from trainer.config import TrainConfig
from trainer.metrics import FIGURES

MAX_TRIALS = 10_000
SEED = "fit.seed"


@dataclass(frozen=True)
class Trial:
    """One setting with one seed. settings: what the file says of it, but for the seed."""

    number: int
    settings: dict[str, Any]
    seed: int
    config: TrainConfig

    @property
    def name(self) -> str:
        """Its folder."""
        return f"{self.number:03d}"

    @property
    def title(self) -> str:
        """Its settings as on a command line."""
        return " ".join(f"{key}={value}" for key, value in self.settings.items()) or "as configured"


def read_grid(path: Path, base: Sections, foreign: Sequence[str]) -> list[Trial]:
    """Read a TOML file of `[[try]]` tables; within each, lists are crossed, the last the fastest.

    A list for fit.seed is not a setting of its own: its trials are one setting with a spread.

    Args:
        base: the config that a trial changes.
        foreign: sections that belong to the features.

    Raises:
        ValueError: no TOML, another form, a setting that does not parse, names it; or two alike.
    """
    try:
        document = tomllib.loads(path.read_text(encoding="utf-8"))
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ValueError(f"{path} is not valid TOML: {error}.") from error
    tables: Any = document.get("try")
    is_list = isinstance(tables, list) and tables and all(isinstance(table, dict) for table in tables)
    if {*document} != {"try"} or not is_list:
        raise ValueError(
            f'{path} must hold [[try]] tables, as in: [[try]] head.name = ["linear", "attention"].'
        )
    trials: list[Trial] = []
    for table in tables:
        values = {key: value if isinstance(value, list) else [value] for key, value in _dotted(table).items()}
        for chosen in itertools.product(*values.values()):
            trials.append(_trial(len(trials), dict(zip(values, chosen, strict=True)), base, foreign, path))
            if len(trials) > MAX_TRIALS:
                raise ValueError(f"{path} spells out more than {MAX_TRIALS} settings.")
    if not trials:
        raise ValueError(f"{path} spells out no setting: one of its lists is empty.")
    seen: set[TrainConfig] = set()
    for trial in trials:
        if trial.config in seen:
            raise ValueError(f"{path} names one setting twice: {trial.title}, seed {trial.seed}.")
        seen.add(trial.config)
    return trials


def _dotted(table: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in table.items():
        flat |= _dotted(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _trial(number: int, chosen: dict[str, Any], base: Sections, foreign: Sequence[str], path: Path) -> Trial:
    sections = {name: dict(values) for name, values in base.items()}
    for key, value in chosen.items():
        section, _, name = key.partition(".")
        if section == "split" or section in foreign:
            raise ValueError(f"{path}: {key} cannot differ between the trials of one store and split.")
        sections.setdefault(section, {})[name] = value
    settings = {key: value for key, value in chosen.items() if key != SEED}
    try:
        config = parse_config(TrainConfig, sections, foreign=foreign)
    except ValueError as error:
        raise ValueError(f"{path}, {settings}: {error}") from error
    return Trial(number, settings, config.fit.seed, config)


def by_setting(trials: Sequence[Trial]) -> list[list[Trial]]:
    """Return the trials of each setting, one a seed, in the file's order."""
    groups: dict[str, list[Trial]] = {}
    for trial in trials:
        groups.setdefault(trial.title, []).append(trial)
    return list(groups.values())


def grid_text(trials: Sequence[Trial], figures: dict[int, dict[str, float | int]], order_by: str) -> str:
    """Return the table for people: a setting a row, mean (deviation) over seeds, the best first.

    figures: by the trial's number.
    """
    rows = []
    for seeds in by_setting(trials):
        values = {name: [float(figures[trial.number][name]) for trial in seeds] for name in FIGURES}
        cells = [mean_and_spread(values[name]) for name in FIGURES]
        rows.append((statistics.fmean(values[order_by]), [seeds[0].title, str(len(seeds)), *cells]))
    rows.sort(key=lambda row: -row[0])
    return text_table(["setting", "seeds", *FIGURES], [cells for _, cells in rows])


def mean_and_spread(values: Sequence[float]) -> str:
    """Return "mean (sd)", the deviation where there are several."""
    mean = f"{statistics.fmean(values):.4f}"
    return f"{mean} ({statistics.stdev(values):.4f})" if len(values) > 1 else mean
