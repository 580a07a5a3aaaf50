"""One HTML file that shows what was attended to; it needs no network and no other file."""

from __future__ import annotations

import base64
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from html import escape
from pathlib import Path
from typing import Any

import numpy as np

from refattn._core import Array
from refattn.view.colours import scale
from refattn.view.maps import AttentionMap, Size, grid_of

DIGITS = 5


def page(
    title: str,
    maps: Sequence[AttentionMap],
    *,
    about: str | None = None,
    image: Array | None = None,
    tokens: Sequence[str] | None = None,
    ink: bool = False,
    facts: Mapping[str, str] | None = None,
    probabilities: Mapping[str, float] | None = None,
) -> str:
    """Write a self-contained HTML page: the input, and one heat map for each head or gate.

    Pointing at a cell, touching it, or moving to it with the arrow keys reads its number. Weights of the patches of the image are
    shown over the image, for a query that is chosen on it; gates of channels are bars; other weights are tables of queries and
    keys.

    Parameters
    ----------
    title : str
        Heading of the page.
    maps : sequence of AttentionMap
        What to show, as `attention_maps` returns it.
    about : str or None, optional
        What the page is about, in a sentence or two below the heading.
    image : array or None, optional
        What was attended to: shape (height, width), or (1 or 3, height, width).
    tokens : sequence of str or None, optional
        What was attended to, where it is text.
    ink : bool, optional
        Whether the numbers of the image are ink on paper rather than light.
    facts : mapping of str to str or None, optional
        What else to say, by heading.
    probabilities : mapping of str to float or None, optional
        The model's answer, by class.

    Returns
    -------
    str
        The page.

    Raises
    ------
    ValueError
        For an image of another shape.

    Examples
    --------
    >>> import numpy as np, refattn
    >>> tokens, vectors = ["to", "be"], np.eye(2)[None]
    >>> _, maps = refattn.view.attention_maps(refattn.scaled_dot_product_attention, vectors, vectors, vectors)
    >>> refattn.view.page("Two words", maps, tokens=tokens)[:15]
    '<!doctype html>'
    """
    picture = None if image is None else _picture(np.asarray(image), ink=ink)
    size = None if picture is None else (picture["rows"], picture["columns"])
    shown = [_shown(m, size, None if tokens is None else len(tokens)) for m in maps]
    data = {
        "scales": {"light": scale("light"), "dark": scale("dark")},
        "image": picture,
        "tokens": None if tokens is None else list(map(str, tokens)),
        "maps": [None if isinstance(s, str) else s for s in shown],
    }
    sections = [_section(i, m, s) for i, (m, s) in enumerate(zip(maps, shown, strict=True))]
    return document(
        title,
        [
            *([] if about is None else [f'<p class="about">{escape(about)}</p>']),
            "<main>",
            _input(picture, tokens, facts or {}, probabilities or {}),
            *sections,
            "</main>",
        ],
        data,
        style=asset("page.css"),
        script=asset("page.js"),
    )


def asset(name: str) -> str:
    """A file beside this one, as text."""
    return Path(__file__).with_name(name).read_text("utf-8")


def document(title: str, body: Sequence[str], data: Any, *, style: str, script: str) -> str:
    """A page that may run this script and use this style, and nothing else."""
    policy = f"default-src 'none'; img-src data:; style-src {_hash(style)}; script-src {_hash(script)}; base-uri 'none'; form-action 'none'"
    return "\n".join(
        [
            "<!doctype html>",
            '<html lang="en">',
            "<head>",
            '<meta charset="utf-8">',
            f'<meta http-equiv="Content-Security-Policy" content="{policy}">',
            '<meta name="viewport" content="width=device-width, initial-scale=1">',
            '<meta name="color-scheme" content="light dark">',
            '<link rel="icon" href="data:,">',
            f"<title>{escape(title)}</title>",
            f"<style>{style}</style>",
            "</head>",
            "<body>",
            "<header>",
            f"<h1>{escape(title)}</h1>",
            '<button type="button" id="theme" hidden></button>',
            "</header>",
            *body,
            "<noscript><p>The heat maps are drawn by this file's own script, which is switched off.</p></noscript>",
            f'<script type="application/json" id="data">{_json(data)}</script>',
            f"<script>{script}</script>",
            "</body>",
            "</html>",
            "",
        ]
    )


def _hash(text: str) -> str:
    """What a content security policy calls this text, so that nothing else may run."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def _json(data: Any) -> str:
    """JSON that cannot end the element in which it stands."""
    text = json.dumps(data, separators=(",", ":"), allow_nan=False)  # ASCII only
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def _numbers(array: Array) -> list[float | None]:
    """Few digits, since colours show fewer; what is not finite is None."""
    return [float(f"{x:.{DIGITS}g}") if math.isfinite(x) else None for x in np.asarray(array, np.float64).ravel().tolist()]


def _picture(image: Array, *, ink: bool) -> dict[str, Any]:
    channels = image[None] if image.ndim == 2 else image
    if channels.ndim != 3 or len(channels) not in {1, 3} or not channels.size:
        raise ValueError(f"image has shape {image.shape}, but must be (height, width), (1, height, width) or (3, height, width)")
    finite = channels[np.isfinite(channels)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 1.0)
    if low >= 0 and high <= 1:  # the usual range: a dim image looks dim
        low, high = 0.0, 1.0
    values = [_numbers(c) for c in channels]
    return {"rows": channels.shape[1], "columns": channels.shape[2], "ink": ink, "low": low, "high": high, "channels": values}


def _shown(m: AttentionMap, size: Size | None, token_count: int | None) -> dict[str, Any] | str:
    """How the page shows a map: the data of its heat maps, or bars, which are HTML."""
    if not m.array.size:
        return ""
    if m.kind == "weights":
        return _weights(m, size, token_count)
    return _bars(np.atleast_2d(m.array)) if m.array.ndim <= 2 else _positions(m.array, size)


def _weights(m: AttentionMap, size: Size | None, token_count: int | None) -> dict[str, Any]:
    """A heat map for each head: over the image, where the keys are its patches, and of queries and keys where they are not."""
    array = np.atleast_2d(m.array)
    *lead, queries, keys = array.shape
    names = ("example", "head") if len(lead) == 2 else ("head",) if m.heads > 1 else ("example",)
    panels = _panels(lead, names, array.reshape(-1, queries * keys))
    finite = array[np.isfinite(array)]
    low, high = min(0.0, float(finite.min(initial=0))), float(f"{finite.max(initial=0):.{DIGITS}g}") or 1.0
    common = {"queries": queries, "low": low, "high": high, "panels": panels}
    grid = None if size is None else grid_of(keys, size)
    if grid is not None:
        return {"form": "patches", "rows": grid[0], "columns": grid[1], "over": True, **common}
    known = {"rowTokens": queries == token_count, "columnTokens": keys == token_count}
    return {"form": "pairs", "rows": queries, "columns": keys, **known, **common}


def _positions(array: Array, size: Size | None) -> dict[str, Any]:
    """A heat map for each channel and frame of a gate; a sequence has one row."""
    maps = array[..., None, :] if array.ndim == 3 else array
    *lead, rows, columns = maps.shape
    panels = _panels(lead, ("example", "channel", "frame")[: len(lead)], maps.reshape(-1, rows * columns))
    over = size is not None and grid_of(rows * columns, size) == (rows, columns)
    return {"form": "positions", "rows": rows, "columns": columns, "low": 0.0, "high": 1.0, "over": over, "panels": panels}


def _panels(lead: Sequence[int], names: Sequence[str], flat: Array) -> list[dict[str, Any]]:
    """One heat map for each index of the leading axes; axes of one entry are not worth a word."""
    known = names if len(lead) == len(names) else ("axis",) * len(lead)
    return [{"name": _label(at, lead, known), "values": _numbers(x)} for at, x in zip(np.ndindex(*lead), flat, strict=True)]


def _label(at: Sequence[int], lead: Sequence[int], names: Sequence[str]) -> str:
    return ", ".join(f"{name} {i}" for name, i, n in zip(names, at, lead, strict=True) if n > 1)


def _bars(array: Array) -> str:
    """One line for each gate of a channel, its number beside it."""
    several = array.shape[0] > 1
    parts = []
    for example, gates in enumerate(array):
        items = "".join(_bar(str(c), float(x), f"{x:.3f}") for c, x in enumerate(gates))
        parts.append(f"<h3>Example {example}</h3>" * several + f'<ol class="bars" aria-label="Gates, by channel" start="0">{items}</ol>')
    return "".join(parts)


def _bar(name: str, share: float, text: str, marked: str = "") -> str:
    """A bar of this share of the line; it is drawn in attributes, which the page's policy allows."""
    width = 100 * min(max(share, 0.0), 1.0) if math.isfinite(share) else 0
    svg = f'<svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true"><rect width="{width:.2f}" height="10"/></svg>'
    return f'<li{marked}><span class="name">{escape(name)}</span>{svg}<span class="number">{text}</span></li>'


def _input(
    picture: dict[str, Any] | None, tokens: Sequence[str] | None, facts: Mapping[str, str], probabilities: Mapping[str, float]
) -> str:
    """The input, what is said of it, and the model's answer; nothing where there is none of these."""
    if picture is None and tokens is None and not facts and not probabilities:
        return ""
    parts = ['<section class="input" aria-labelledby="input"><h2 id="input">Input</h2><div class="columns">']
    if picture is not None:
        parts.append('<div id="image" class="panels one"></div>')
    if tokens is not None:
        parts.append(f'<ol class="tokens" aria-label="Tokens">{"".join(f"<li>{escape(str(t))}</li>" for t in tokens)}</ol>')
    if facts:
        rows = "".join(f"<div><dt>{escape(name)}</dt><dd>{escape(fact)}</dd></div>" for name, fact in facts.items())
        parts.append(f'<dl class="facts">{rows}</dl>')
    if probabilities:
        most = max(probabilities.values())
        items = (_bar(n, p, f"{100 * p:.1f} %", ' class="most"' * (p == most)) for n, p in probabilities.items())
        parts.append(f'<div class="answer"><h3>Probabilities</h3><ol class="bars single">{"".join(items)}</ol></div>')
    parts.append("</div></section>")
    return "".join(parts)


def _section(number: int, m: AttentionMap, shown: dict[str, Any] | str) -> str:
    """The heading of a map, what it is, and where the script puts its heat maps."""
    body = shown if isinstance(shown, str) else ""
    wide = " wide" if not isinstance(shown, str) and (shown["form"] != "positions" or len(shown["panels"]) > 1) else ""
    return "".join(
        [
            f'<section class="map{wide}" aria-labelledby="map-{number}">',
            f'<h2 id="map-{number}">{escape(m.title)}</h2>',
            f'<p class="chain">{" <span>›</span> ".join(f"<code>{escape(c)}</code>" for c in m.chain)}</p>',
            f'<p class="note">{_note(m, shown)}</p>',
            f'<div class="drawn" id="drawn-{number}">{body}</div>',
            "</section>",
        ]
    )


def _note(m: AttentionMap, shown: dict[str, Any] | str) -> str:
    """How to read it, for who sees such a thing for the first time."""
    if not shown:
        return "There is nothing in it."
    if m.kind == "gate":
        what = "channel" if isinstance(shown, str) else "position"
        if m.adds:
            return f"Each {what} is multiplied by 1 plus its gate: 0 leaves it as it is, 1 doubles it."
        return f"Each {what} is multiplied by its gate: 0 shuts it off, 1 lets all of it through."
    sums = m.array.sum(axis=-1)
    shares = bool(np.allclose(sums, 1, rtol=0, atol=1e-3))
    if isinstance(shown, dict) and shown["form"] == "patches":
        keys, queries = shown["rows"] * shown["columns"], shown["queries"]
        who = "One query looks" if queries == 1 else "The framed patch, the query, looks" if queries == keys else "The framed query looks"
        total = f" The shares of one {'head' if m.heads > 1 else 'map'} add up to 1." if shares else ""
        return f"{who} at the patches of the image: the stronger the colour, the more it takes from there.{total}"
    total = " The shares of one row add up to 1." if shares else ""
    return f"Each row is a query, which looks; each column is a key, which is looked at. The stronger the colour, the more is taken.{total}"
