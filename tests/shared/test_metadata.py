from pathlib import Path

import pandas as pd
import pytest

from shared.clips import ClipConfig
from shared.metadata import WHOLE, Metadata, join, keep_species, parse_species_list, read_metadata
from shared.taxonomy import read_taxonomy

GRID = ClipConfig().grid()


def read(tmp_path: Path, text: str) -> Metadata:
    path = tmp_path / "meta.csv"
    path.write_text(text, encoding="utf-8")
    return read_metadata(path, GRID)


def labels(metadata: Metadata) -> list[tuple[object, ...]]:
    columns = ["recording", "species", "kind", "start", "stop"]
    return [tuple(row) for row in metadata.labels[columns].itertuples(index=False)]


def test_two_columns_are_enough(tmp_path: Path) -> None:
    metadata = read(tmp_path, "filename,primary_label\na/1.ogg,a\nb/2.ogg,b\n")
    assert list(metadata.recordings["filename"]) == ["a/1.ogg", "b/2.ogg"]
    assert labels(metadata) == [
        (0, "a", "primary", WHOLE, WHOLE),
        (1, "b", "primary", WHOLE, WHOLE),
    ]
    assert metadata.problems == ()


def test_rows_with_clip_start_times_are_labels_of_their_spans(tmp_path: Path) -> None:
    text = "primary_label,filename,clip_start_time\na,a/XC1.ogg,60\na,a/XC1.ogg,65\nb,a/XC1.ogg,60\n"
    metadata = read(tmp_path, text)
    assert len(metadata.recordings) == 1
    second = 32_000
    assert sorted(labels(metadata)) == [
        (0, "a", "primary", 60 * second, 65 * second),
        (0, "a", "primary", 65 * second, 70 * second),
        (0, "b", "primary", 60 * second, 65 * second),
    ]
    assert metadata.problems == ()


def test_identical_rows_are_merged_and_counted(tmp_path: Path) -> None:
    metadata = read(tmp_path, "filename,primary_label\nx.ogg,a\nx.ogg,a\nx.ogg,a\n")
    assert len(metadata.recordings) == len(metadata.labels) == 1
    assert metadata.problems == ("meta.csv: 2 identical rows merged",)


def test_a_recording_under_two_species_is_one_with_two_labels(tmp_path: Path) -> None:
    metadata = read(tmp_path, "filename,primary_label\na/XC7.ogg,a\nb/XC7.ogg,b\n")
    assert list(metadata.recordings["filename"]) == ["a/XC7.ogg"]
    assert [row[1] for row in labels(metadata)] == ["a", "b"]
    assert "labels joined" in metadata.problems[0]


def test_a_species_primary_and_secondary_at_once_is_primary(tmp_path: Path) -> None:
    metadata = read(tmp_path, "filename,primary_label,secondary_labels\nx.ogg,a,\"['a', 'b']\"\n")
    assert [row[1:3] for row in labels(metadata)] == [("a", "primary"), ("b", "secondary")]


def test_malformed_secondary_labels_are_named_and_taken_as_none(tmp_path: Path) -> None:
    metadata = read(tmp_path, "filename,primary_label,secondary_labels\nx.ogg,a,\"['b'\"\n")
    assert [row[1] for row in labels(metadata)] == ["a"]
    assert "x.ogg: secondary_labels \"['b'\" is no list" in metadata.problems[0]


@pytest.mark.parametrize(
    ("text", "species"),
    [
        ("[]", []),
        ("", []),
        ("nan", []),
        ("['a', 'b']", ["a", "b"]),
        ('["a"]', ["a"]),
        ("a b", ["a", "b"]),
        ("['a', 3]", None),
        ("{'a'", None),
        ("__import__('os')", None),
    ],
)
def test_secondary_labels_are_read_as_every_year_wrote_them(text: str, species: list[str] | None) -> None:
    assert parse_species_list(text) == species


def test_no_call_rows_have_no_label(tmp_path: Path) -> None:
    metadata = read(tmp_path, "filename,primary_label\nx.ogg,nocall\ny.ogg,\nz.ogg,a\n")
    assert len(metadata.recordings) == 3
    assert [row[0] for row in labels(metadata)] == [2]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", "is empty"),
        (b"filename,primary_label\n", "no rows"),
        (b"filename,species\nx,a\n", "has no column 'primary_label'.*it has: filename, species"),
        (
            "filename,primary_label\nx.ogg,gr\u00fcn\n".encode("latin-1"),
            "not UTF-8.*save it as UTF-8",
        ),
        (b'filename,primary_label\n"x,a\n', "no valid CSV"),
        (b"filename,primary_label\n,a\n", "names no file"),
        (b"filename,primary_label\nx,a,\n", "no valid CSV"),
    ],
)
def test_a_bad_file_is_refused_in_one_line(tmp_path: Path, content: bytes, message: str) -> None:
    path = tmp_path / "meta.csv"
    path.write_bytes(content)
    with pytest.raises(ValueError, match=message) as caught:
        read_metadata(path, GRID)
    assert "\n" not in str(caught.value)


def test_a_given_column_that_the_store_uses_is_kept_under_another_name(tmp_path: Path) -> None:
    metadata = read(tmp_path, "filename,primary_label,status\nx.ogg,a,good\n")
    assert list(metadata.recordings["given_status"]) == ["good"]


def test_external_recordings_are_kept_by_species_and_once_per_id(tmp_path: Path) -> None:
    main = read(tmp_path, "filename,primary_label\na/XC1.ogg,a\nb/XC2.ogg,b\n")
    text = "filename,primary_label,time\na/XC1.ogg,a,8\na/XC3.ogg,a,9\nc/XC4.ogg,c,10\n"
    external = read(tmp_path, text)
    kept = keep_species(external, main.primary_species(), set(main.recordings["xc_id"]))
    assert list(kept.recordings["xc_id"]) == ["3"]
    joined = join([main, kept])
    assert list(joined.recordings["time"]) == ["", "", "9"]
    assert labels(joined)[-1] == (2, "a", "primary", WHOLE, WHOLE)


def test_only_files_named_by_their_id_alone_are_one_recording(tmp_path: Path) -> None:
    parts = read(tmp_path, "filename,primary_label\na/XC1_part1.ogg,a\na/XC1_part2.ogg,a\n")
    assert len(parts.recordings) == 2
    text = "filename,primary_label,url\n1.wav,a,https://xeno-canto.org/5\n2.wav,a,https://xeno-canto.org/5\n"
    assert len(read(tmp_path, text).recordings) == 2
    doubled = read(tmp_path, "filename,primary_label\na/XC1.ogg,a\nb/XC1.mp3,b\n")
    assert len(doubled.recordings) == 1
    assert "1 files have the xeno-canto id of an earlier one" in doubled.problems[-1]


def test_bare_names_of_several_species_are_found_below_them(tmp_path: Path) -> None:
    for name in ("audio/a/001.wav", "audio/b/001.wav", "audio/002.wav"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x")
    path = tmp_path / "meta.csv"
    path.write_text("filename,primary_label\n001.wav,a\n001.wav,b\n002.wav,a\n002.wav,b\n")
    metadata = read_metadata(path, GRID, audio=tmp_path / "audio")
    assert list(metadata.recordings["filename"]) == ["a/001.wav", "b/001.wav", "002.wav"]
    assert [row[:2] for row in labels(metadata)] == [(0, "a"), (1, "b"), (2, "a"), (2, "b")]


def test_one_file_spelled_in_several_ways_is_one_recording(tmp_path: Path) -> None:
    metadata = read(tmp_path, "filename,primary_label\na/x.ogg,a\n./a/x.ogg,b\na//x.ogg,c\n../y.ogg,a\n")
    assert list(metadata.recordings["filename"]) == ["a/x.ogg", "../y.ogg"]
    assert [row[1] for row in labels(metadata)] == ["a", "b", "c", "a"]


def test_files_without_an_id_are_never_taken_for_each_other(tmp_path: Path) -> None:
    main = read(tmp_path, "filename,primary_label\nfield1.wav,a\n")
    other = read(tmp_path, "filename,primary_label\nfield2.wav,a\n")
    assert len(keep_species(other, ["a"], set(main.recordings["xc_id"])).recordings) == 1


def test_the_real_earlier_years_keep_their_known_numbers(data_folder: Path) -> None:
    sample = data_folder / "birdclef2024-sample"
    species = read_taxonomy(sample / "sample_submission.csv").species
    known: set[str] = set()
    kept = []
    for year in ("2022", "2023"):
        metadata = read_metadata(sample / "previous_years" / f"{year}.csv", GRID, source=year)
        before = keep_species(metadata, species, ())
        after = keep_species(metadata, species, known)
        known |= set(after.recordings["xc_id"])
        kept.append((len(before.recordings), len(after.recordings)))
    assert kept == [(2545, 2545), (4145, 3729)]


def test_the_original_authors_clip_table_is_spans_of_2106_recordings(data_folder: Path) -> None:
    metadata = read_metadata(data_folder / "birdclef2024-sample" / "rows_2500.csv", GRID)
    assert (len(metadata.recordings), len(metadata.labels)) == (2106, 2500)
    assert (metadata.labels["stop"] - metadata.labels["start"] == GRID.clip_samples).all()


def test_a_2021_file_with_bare_names_parses(tmp_path: Path) -> None:
    header = (
        "primary_label,secondary_labels,type,latitude,longitude,scientific_name,common_name,"
        "author,date,filename,license,rating,time,url"
    )
    row = "acafly,\"['amegfi']\",\"['song']\",35,-92,E v,A F,X,2012-05-12,XC109605.ogg,CC,2.5,09:30,u"
    metadata = read(tmp_path, f"{header}\n{row}\n")
    assert list(metadata.recordings["xc_id"]) == ["109605"]
    assert isinstance(metadata.recordings, pd.DataFrame)
