from pathlib import Path

import pytest

from shared.taxonomy import Taxonomy, read_taxonomy, write_taxonomy


def test_a_sample_submission_gives_its_columns_in_order(tmp_path: Path) -> None:
    path = tmp_path / "s.csv"
    path.write_text("row_id,b,a,c\nx_5,0,0,0\n")
    assert read_taxonomy(path).species == ("b", "a", "c")


def test_a_primary_label_column_gives_its_values_once(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("x,primary_label\n1,b\n2,a\n3,b\n")
    assert read_taxonomy(path).species == ("b", "a")


def test_a_written_taxonomy_is_read_back(tmp_path: Path) -> None:
    taxonomy = Taxonomy(("gr\N{LATIN SMALL LETTER U WITH DIAERESIS}n", "a b", "c,d", 'e"f', "g\nh"))
    write_taxonomy(taxonomy, tmp_path / "t.csv")
    assert read_taxonomy(tmp_path / "t.csv") == taxonomy


def test_another_file_is_refused_with_what_was_found(tmp_path: Path) -> None:
    path = tmp_path / "m.csv"
    path.write_text("species,count\na,1\n")
    with pytest.raises(ValueError, match="is no taxonomy.*'species', 'count'"):
        read_taxonomy(path)


def test_a_species_twice_is_refused() -> None:
    with pytest.raises(ValueError, match="twice: a"):
        Taxonomy(("a", "b", "a"))
