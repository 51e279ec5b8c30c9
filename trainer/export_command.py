"""`trainer export`: a run into a folder that runs anywhere."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

from trainer.export import new_folder, open_source, write_export
from trainer.model_card import model_card
from trainer.training_data import FILE, training_data


def export_run(
    path: Path, out: Path, *, openvino: bool, features: Path | None, weights: str | None, overwrite: bool,
    say: Callable[[str], object],
) -> dict[str, Any]:  # fmt: skip
    """Write the folder; return its run.json.

    Raises:
        ValueError: what cannot be done, before anything is written, or a graph that differs from torch.
    """
    source = open_source(path, weights)
    if not source.is_finished:
        say(f"{path}: the training is not finished; this is the model of its last whole epoch")
    training = training_data(source.members, features)
    with new_folder(out, overwrite=overwrite) as folder:
        facts = write_export(source, folder, openvino=openvino, say=say)
        if not training.not_attributed:
            training.recordings.to_csv(folder / FILE, index=False)
        else:
            say(
                f"licences and authors not counted: {training.not_attributed}; give the store with --features"
            )
        (folder / "README.md").write_text(model_card(source, facts, training), encoding="utf-8")
    return facts
