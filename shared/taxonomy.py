"""The ordered species codes: the column order of every (.., K)."""

import csv
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path


@dataclass(frozen=True)
class Taxonomy:
    """Species codes in column order."""

    species: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.species:
            raise ValueError("a taxonomy needs at least one species; got none.")
        repeated = sorted({code for code in self.species if self.species.count(code) > 1})
        if repeated:
            raise ValueError(f"the taxonomy names these species twice: {', '.join(repeated)}.")

    def __len__(self) -> int:
        return len(self.species)

    @cached_property
    def column(self) -> dict[str, int]:
        """Species code to column number."""
        return {code: column for column, code in enumerate(self.species)}


def read_taxonomy(path: Path) -> Taxonomy:
    """Read a CSV with a `primary_label` column, or a sample submission's header.

    From a `primary_label` column the order of first appearance is kept; from a sample
    submission, the order of its columns after `row_id`.

    Raises:
        ValueError: neither of the two, or not UTF-8.
    """
    try:
        with path.open(newline="", encoding="utf-8-sig") as file:
            rows = csv.reader(file)
            header = next(rows, [])
            if header[:1] == ["row_id"]:
                return Taxonomy(tuple(header[1:]))
            if "primary_label" in header:
                place = header.index("primary_label")
                codes = (row[place] for row in rows if len(row) > place and row[place])
                return Taxonomy(tuple(dict.fromkeys(codes)))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text; save it as UTF-8.") from error
    raise ValueError(
        f"{path} is no taxonomy: expected a CSV with a primary_label column or a sample "
        f"submission (row_id and one column per species), found columns {header[:5]}."
    )


def write_taxonomy(taxonomy: Taxonomy, path: Path) -> None:
    """Write a CSV with one `primary_label` per row, in column order."""
    with path.open("w", newline="", encoding="utf-8") as file:
        csv.writer(file, lineterminator="\n").writerows(
            [[code] for code in ("primary_label", *taxonomy.species)]
        )
