"""Both command lines: their full set of options, their errors, and how fast --help is."""

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import click
import pytest

from featurestore.cli import main as featurestore
from trainer.cli import main as trainer

Run = Callable[..., object]

OPTIONS = {
    "featurestore build": "--allow-mixed --audio --break-lock --config --device --external --metadata "
    "--views --no-waveforms --out --prune --set --strict --weights --workers",
    "featurestore convert": "--break-lock OUT SOURCE",
    "featurestore embed": "--allow-mixed --break-lock --config --device --views --no-waveforms --out --set "
    "--weights --workers SOURCE",
    "featurestore repair": "--allow-mixed --audio --break-lock --weights --workers STORE",
    "featurestore verify": "--audio STORE",
    "featurestore info": "--all --json STORE",
    "featurestore report": "--clips --max-mb --quick --out --png --svg STORE",
    "featurestore synth": "--recordings --seed --soundscapes --species OUT",
    "trainer calibrate": "--device --json --no-call --no-call-minutes --precision --weights RUN",
    "trainer export": "--features --openvino --out --overwrite --weights RUN",
    "trainer report": "--device --features --mistakes --out --png --svg RUNS",
    "trainer score": "--collar --events --frames --json --segment --truth",
    "trainer compare": "--json RUN_A RUN_B",
    "trainer fit": "--choose-by --config --device --features --fold --folds --grid --nested --out --resume "
    "--set --taxonomy --workers",
    "trainer finetune": "--config --device --features --init --out --resume --set --weights",
    "trainer evaluate": "--audio --device --features --json --truth --weights RUNS",
    "trainer predict": "--audio --break-lock --budget-minutes --clips --clips-per-species --device --engine "
    "--event-join --event-min --event-pad --events --frames --html --html-most --out --overlap --overwrite "
    "--png --svg --as-metadata --precision --pseudo-min "
    "--sample-submission --smoothing --threshold --truth --uncalibrated --weights RUNS",
}


def test_the_set_of_options_is_a_decision() -> None:
    found = {
        f"{program} {name}": " ".join(
            sorted(
                parameter.opts[0].upper() if isinstance(parameter, click.Argument) else parameter.opts[0]
                for parameter in command.params
            )
        )
        for program, group in (("featurestore", featurestore), ("trainer", trainer))
        for name, command in group.commands.items()
    }
    assert {name: sorted(options.split()) for name, options in found.items()} == {
        name: sorted(options.split()) for name, options in OPTIONS.items()
    }


@pytest.mark.parametrize("command", list(OPTIONS))
def test_every_command_explains_itself_with_an_example(command: str, run_program: Run) -> None:
    program, name = command.split()
    text = run_program(program, name, "--help").output  # type: ignore[attr-defined]
    assert f"{program} {name}" in text.split("Example:")[1]


@pytest.mark.parametrize("program", ["featurestore", "trainer"])
def test_help_does_not_wait_for_torch(program: str) -> None:
    code = f"import sys, {program}.cli; sys.exit(any(m in sys.modules for m in ('torch', 'zarr', 'pandas')))"
    subprocess.run([sys.executable, "-c", code], check=True)


def bad_commands(tmp: Path) -> list[tuple[str, list[str], str]]:
    (tmp / "meta.csv").write_text("filename,primary_label\nx.ogg,a\n")
    (tmp / "nameless.csv").write_text("primary_label\na\n")
    (tmp / "audio").mkdir()
    (tmp / "notes.zarr").mkdir()
    (tmp / "notes.zarr" / "todo.txt").write_text("x")
    (tmp / "bad.toml").write_text("[mel]\nn_mel = 3\n")
    (tmp / "worse.toml").write_text("[mel\n")
    lite0 = ["--set", "backbone.name=tf_efficientnet_lite0"]
    build = ["build", "--metadata", str(tmp / "meta.csv"), "--audio", str(tmp / "audio")]
    out = ["--out", str(tmp / "s.zarr")]
    return [
        ("featurestore", [*build, *out, *lite0], "none of the 1 recordings can be read; .*no such file"),
        ("featurestore", [*build[:2], str(tmp / "nameless.csv"), *build[3:], *out], "no column 'filename'"),
        ("featurestore", [*build[:2], str(tmp / "gone.csv"), *build[3:], *out], "gone.csv"),
        ("featurestore", [*build[:4], str(tmp / "nowhere"), *out], "nowhere does not exist"),
        ("featurestore", [*build, "--out", str(tmp / "notes.zarr"), *lite0], "not a feature store"),
        ("featurestore", [*build, "--out", str(tmp / "s.h5x"), *lite0], "must end in .zarr"),
        ("featurestore", [*build, *out, "--external", "x.csv"], "META.csv=DIR"),
        ("featurestore", [*build, *out, "--config", str(tmp / "bad.toml")], "did you mean"),
        ("featurestore", [*build, *out, "--config", str(tmp / "worse.toml")], "not valid TOML"),
        ("featurestore", [*build, *out, "--weights", str(tmp / "w.pth")], "w.pth does not exist"),
        ("featurestore", ["info", str(tmp / "s.zarr")], "does not exist; make a store"),
        ("featurestore", ["synth", str(tmp)], "not empty"),
        ("trainer", ["fit", "--features", str(tmp / "s.zarr")], "make a store with"),
        ("trainer", ["fit", "--features", "s.zarr", "--fold", "1", "--folds", "5"], "give one of the two"),
        ("trainer", ["fit", "--features", "s.zarr", "--nested"], "give both"),
        ("trainer", ["fit", "--features", "s.zarr", "--resume"], "name it with --out"),
        ("trainer", ["compare", str(tmp / "audio"), str(tmp)], "has no out_of_fold.csv"),
        ("trainer", ["evaluate", str(tmp / "audio")], "no run folder"),
        ("trainer", ["evaluate", str(tmp), "--audio", str(tmp)], "belong together"),
        ("trainer", ["predict", str(tmp), "--audio", str(tmp), "--out", "x.csv"], "holds no recordings"),
    ]


@pytest.mark.parametrize("number", range(20))
def test_a_users_mistake_is_a_clear_line_and_status_2(number: int, tmp_path: Path, run_program: Run) -> None:
    import re

    program, arguments, message = bad_commands(tmp_path)[number]
    output = run_program(program, *arguments, status=2).output  # type: ignore[attr-defined]
    assert re.search(message, output), output
    assert "Traceback" not in output


def test_both_programs_are_installed_as_commands() -> None:
    for program in ("featurestore", "trainer"):
        path = Path(sys.executable).with_name(program)
        done = subprocess.run([path, "--version"], check=True, capture_output=True, text=True)
        assert "0.1.0" in done.stdout
