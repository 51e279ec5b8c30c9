"""What a store holds, as numbers and as text."""

from pathlib import Path
from typing import Any

from shared.command_line import size_text, text_table
from shared.stage_clock import StageClock
from shared.store import FeatureStore

MAX_NAMED = 20
STAGES = ("decode", "augment", "log-mel", "backbone", "write")
EMBEDDING = ("augment", "log-mel", "backbone")


def store_facts(store: FeatureStore) -> dict[str, Any]:
    """Return one flat object of what is in a store."""
    rate = store.attributes["config"]["clips"]["sample_rate_hz"]
    statuses = store.recordings["status"].value_counts()
    primary = store.labels[store.labels["kind"] == "primary"]["species"]
    return {
        "clips": store.num_rows,
        "hours": round(float(store.clips["valid_samples"].sum()) / rate / 3600, 4),
        "hours_in_tails_left_out": round(store.attributes["tail_samples_left_out"] / rate / 3600, 4),
        "recordings": len(store.recordings),
        "species": int(primary.nunique()),
        "taxonomy": len(store.attributes["taxonomy"]),
        "labels": len(store.labels),
        "no_longer_in_metadata": int((~store.in_metadata).sum()),
        **{status: int(statuses.get(status, 0)) for status in ("ok", "short", "damaged", "unreadable")},
        "bytes": stored_bytes(store.path),
        "views": store.num_views,
        "has_waveforms": store.waveforms is not None,
        "stages": " ".join(store.stages),
        "map_channels": store.maps.row_shape[0],
        "map_rows": store.maps.row_shape[1],
        "map_frames": store.maps.row_shape[2],
        "frame_hop": store.frame_hop,
        "backbone": store.attributes["config"]["backbone"]["name"],
        "weights": store.attributes["weights"]["source"],
        "weights_sha256": store.attributes["weights"]["sha256"],
        "engine": store.attributes["fingerprint_of"]["backbone"]["engine"],
        "precision": store.attributes["config"]["backbone"]["precision"],
        "mel_channels": store.attributes["config"]["mel"]["channels"],
        "format_version": store.attributes["format_version"],
        "fingerprint": store.fingerprint,
    }


def stored_bytes(path: Path) -> int:
    """Return the size of all files of a store."""
    files = [path] if path.is_file() else path.rglob("*")
    return sum(file.stat().st_size for file in files if file.is_file())


def stage_table(clock: StageClock, num_clips: int, wall_seconds: float, threads: dict[str, int]) -> str:
    """Return where a build's time went, by stage, and which stage bounds it: whose threads wait least.

    threads: how many work on decoding, on embedding (views, log-mel and backbone) and on writing. Busy
    seconds are summed over threads and include waiting for a processor, not for another stage.
    """
    seconds_of = clock.seconds()
    busy = {
        stage: seconds_of.get(stage, 0.0) for stage in STAGES if stage in seconds_of or stage != "augment"
    }
    total = sum(busy.values()) or 1.0
    rows = [
        [stage, f"{seconds:.1f}", f"{1e3 * seconds / num_clips:.2f}", f"{100 * seconds / total:.0f} %"]
        for stage, seconds in busy.items()
    ]
    embedding = max(EMBEDDING, key=lambda stage: busy.get(stage, 0.0))
    use = {
        "decode": busy["decode"] / threads["decode"],
        embedding: sum(busy.get(stage, 0.0) for stage in EMBEDDING) / threads["embed"],
        "write": busy["write"] / threads["write"],
    }
    rate = num_clips / max(wall_seconds, 1e-9)
    table = text_table(["stage", "busy s", "ms per clip", "share"], rows)
    return (
        f"{table}\n{num_clips} clips in {wall_seconds:.1f} s, {rate:.1f} clips/s with {threads['decode']} "
        f"workers; {max(use, key=lambda stage: use[stage])} bounds"
    )


def named_problems(store: FeatureStore) -> list[str]:
    """Return one line per recording that is not ok or has a remark, and per oddity of the metadata."""
    lines = [f"metadata: {line}" for line in store.attributes["problems"]]
    remarkable = store.recordings[(store.recordings["status"] != "ok") | (store.recordings["reason"] != "")]
    columns = (remarkable[name].astype(str) for name in ("status", "filename", "reason"))
    for status, filename, reason in zip(*columns, strict=True):
        padded = " (padded to a clip)" if status == "short" else ""
        lines.append(f"{status:10s} {filename}{padded}{': ' + reason if reason else ''}")
    return lines


def summary_text(store: FeatureStore, *, all_problems: bool = False) -> str:
    """Return the closing summary of a build, also shown by `featurestore info`."""
    facts = store_facts(store)
    arrays = [store.array(f"maps/{stage}") for stage in store.stages]
    waveforms = "stored" if facts["has_waveforms"] else "left out"
    views = f", and of {facts['views']} views of every clip," if facts["views"] else ""
    maps = ", ".join(f"{array.name} {'x'.join(map(str, array.row_shape))}" for array in arrays)
    lines = [
        f"{store.path}: {facts['clips']} clips, {facts['hours']:.2f} hours of audio, "
        f"{facts['recordings']} recordings, {facts['species']} species, {size_text(facts['bytes'])}",
        f"  {maps} float16{views} of {facts['backbone']} ({facts['weights']}), "
        f"{facts['engine']} {facts['precision']}; waveforms {waveforms}",
        f"  recordings: {facts['ok']} ok, {facts['short']} short, {facts['damaged']} damaged, "
        f"{facts['unreadable']} unreadable",
    ]
    if facts["no_longer_in_metadata"]:
        lines.append(
            f"  {facts['no_longer_in_metadata']} recordings are no longer in the metadata; "
            "they are kept and not trained on"
        )
    clips = store.attributes["config"]["clips"]
    if facts["hours_in_tails_left_out"]:
        lines.append(
            f"  {facts['hours_in_tails_left_out']:.2g} hours in no clip: recordings' ends shorter than "
            f"clips.min_tail_seconds = {clips['min_tail_seconds']}"
        )
    problems = named_problems(store)
    shown = problems if all_problems else problems[:MAX_NAMED]
    lines += [f"    {line}" for line in shown]
    if len(problems) > len(shown):
        lines.append(f"    and {len(problems) - len(shown)} more: featurestore info --all")
    return "\n".join(lines)
