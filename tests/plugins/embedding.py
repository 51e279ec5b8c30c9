"""Stand-ins for Embedder.embed: killed after some calls, or allowed no more than its own probe."""

from collections.abc import Callable
from typing import Any

Embed = Callable[..., Any]


def killed_after(embed: Embed, calls: int) -> Embed:
    """Let an embedder embed its own first probe and so many batches, then be interrupted."""
    done = 0

    def killed(self: Any, waveforms: Any) -> Any:
        nonlocal done
        done += 1
        if done > 1 + calls:
            raise KeyboardInterrupt
        return embed(self, waveforms)

    return killed


def probe_only(embed: Embed) -> Embed:
    """Let an embedder embed its own first probe and nothing more."""
    calls = 0

    def probe(self: Any, waveforms: Any) -> Any:
        nonlocal calls
        calls += 1
        assert calls == 1, "something was embedded"
        return embed(self, waveforms)

    return probe
