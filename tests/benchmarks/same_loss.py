"""Prove a refactoring: the demo's config, trained at the parent commit and here, loses the same.

Both trees run on the same small synthetic data, each with its own code; every loss of every epoch must
agree to the last digit. Exit status 1 where one does not.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path

HEADS = ("chrononet", "linear")


def run(tree: Path, module: str, *arguments: object) -> None:
    """Run a program with the code of `tree`."""
    code = f"import sys; sys.path.insert(0, {str(tree)!r}); from {module}.cli import main; main()"
    command = [sys.executable, "-P", "-c", code, *map(str, arguments)]
    done = subprocess.run(
        command, cwd=tree, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(tree)}
    )
    if done.returncode:
        sys.exit(f"{module} {' '.join(map(str, arguments))}\n{done.stdout}{done.stderr}")


def losses(tree: Path, data: Path, work: Path) -> dict[str, list[float]]:
    """Build and fit with the code of `tree`; return the losses of every head."""
    store = work / "s.zarr"
    run(tree, "featurestore", "build", "--config", tree / "configs/demo.toml", "--metadata",
        data / "train_metadata.csv", "--audio", data / "train_audio", "--out", store)  # fmt: skip
    found = {}
    for head in HEADS:
        out = work / head
        run(tree, "trainer", "fit", "--features", store, "--config", tree / "configs/demo.toml",
            "--out", out, "--set", f"head.name={head}", "--set", "fit.epochs=5")  # fmt: skip
        lines = (out / "metrics.jsonl").read_text().splitlines()
        found[head] = [json.loads(line)["loss"] for line in lines]
    return found


def main() -> None:
    """Compare the parent commit with the working tree."""
    here = Path.cwd()
    parent = subprocess.run(["git", "rev-parse", "HEAD^"], capture_output=True, text=True)
    if parent.returncode:
        sys.exit("same-loss: this commit has no parent to compare with.")
    with tempfile.TemporaryDirectory() as name:
        work = Path(name)
        tree = work / "parent"
        subprocess.run(
            ["git", "worktree", "add", "--quiet", "--detach", tree, parent.stdout.strip()], check=True
        )
        try:
            run(here, "featurestore", "synth", work / "data", "--species", "4", "--recordings", "24",
                "--soundscapes", "0")  # fmt: skip
            results = []
            for side in (tree, here):
                folder = work / f"work-{len(results)}"
                folder.mkdir()
                results.append(losses(side, work / "data", folder))
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", tree], check=True)
    before, after = results
    for head in HEADS:
        same = before[head] == after[head]
        print(f"{head:10s} {'same' if same else 'DIFFERENT'}  {before[head]}  {after[head]}")
    sys.exit(0 if before == after else 1)


if __name__ == "__main__":
    main()
