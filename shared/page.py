"""Self-contained HTML pages: one file with its style, script, pictures and sounds."""

from __future__ import annotations

import base64
import functools
import hashlib
import re
from importlib.metadata import version
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

from shared.charts import inline_svg
from shared.command_line import size_text

if TYPE_CHECKING:
    from jinja2 import Environment

GENERATOR = '<meta name="generator" content="dawnchorus">'
SUFFIXES = (".html", ".htm")
NEEDED = ("jinja2", "matplotlib", "PIL")


def need_page_packages(*more: str) -> None:
    """Stop where what pages are made with, or `more`, is not installed.

    Raises:
        ValueError: names the remedy.
    """
    from importlib.util import find_spec

    missing = [name for name in (*NEEDED, *more) if find_spec(name) is None]
    if missing:
        raise ValueError(f"pages need {', '.join(missing)}: pip install 'dawnchorus[report]'.")


def refuse_other_file(out: Path) -> None:
    """Stop before a page replaces something that is none of ours.

    Raises:
        ValueError: another ending, a folder, or a file of something else.
    """
    if out.suffix.lower() not in SUFFIXES:
        raise ValueError(f"{out} must end in .html.")
    if out.is_dir():
        raise ValueError(f"{out} is a folder; give a file, as in {out / 'page.html'}.")
    if out.exists():
        with out.open("rb") as file:
            if GENERATOR.encode() not in file.read(2048):
                raise ValueError(f"{out} exists and is no page of this program; give another --out.")


def page_state(path: Path) -> str | None:
    """Return the `state` that a page was written with; None where there is no page of ours."""
    if not path.is_file():
        return None
    with path.open("rb") as file:
        head = file.read(2048).decode(errors="replace")
    found = re.search(r'<meta name="dawnchorus-state" content="(\w*)">', head)
    return found[1] if found and GENERATOR in head else None


@functools.cache
def template_digest(package: str) -> str:
    """Return a digest of a package's templates, ours, and the program's version."""
    state = hashlib.sha256(version("dawnchorus").encode())
    for folder in (files(package) / "templates", files("shared") / "templates"):
        for file in sorted(folder.iterdir(), key=lambda one: one.name):
            state.update(file.name.encode() + b"\0" + file.read_bytes())
    return state.hexdigest()


@functools.cache
def _environment(package: str) -> Environment:
    from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

    loader = ChoiceLoader([PackageLoader(package), PackageLoader("shared")])
    environment = Environment(
        loader=loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    environment.globals |= {"size_text": size_text, "inline": inline_svg, "version": version("dawnchorus")}
    environment.filters["count"] = lambda number: f"{number:,}".replace(",", "\u202f")
    return environment


def write_page(out: Path, template: str, package: str, *, state: str = "", **values: Any) -> int:
    """Fill a template of a package's folder `templates`, write it under another name, rename it.

    Text is escaped wherever it stands. state: a digest that tells one content from another. Returns the
    size in bytes.
    """
    text = _environment(package).get_template(template).render(state=state, **values)
    document = text.encode(errors="replace")  # file names need not be text
    out.parent.mkdir(parents=True, exist_ok=True)
    temporary = out.with_name(f".{out.name}.tmp")
    temporary.write_bytes(document)
    temporary.replace(out)
    return len(document)


def data_uri(content: bytes, kind: str) -> str:
    """Return bytes as a data: address of a media type, as in audio/mpeg."""
    return f"data:{kind};base64,{base64.b64encode(content).decode()}"
