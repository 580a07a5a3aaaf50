"""The site that ``asv publish`` writes, as one page that asks nothing of the network, nor of other files.

asv's own page loads its libraries from hosts on the internet and its data by requests, which browsers refuse for a file on disk.
"""

from __future__ import annotations

import base64
import json
import re
from pathlib import Path

from benchmarks.libraries import LIBRARIES, text_of

REQUESTS = """
$.ajax = function (asked) {
    var files = JSON.parse($("#asv-files").text()), answer = $.Deferred();
    var name = decodeURIComponent(asked.url.split("?")[0]);
    setTimeout(function () { name in files ? answer.resolve(files[name]) : answer.reject(); }, 0);
    return answer.promise();
};
"""
TYPES = {".png": "image/png", ".ico": "image/x-icon"}


def one_page(site: Path) -> str:
    """HTML that holds all libraries, styles, pictures and data of the site in a folder."""
    page = (site / "index.html").read_text("utf-8")
    page = re.sub(r'<link [^>]*rel="alternate"[^>]*>', "", page)  # a feed of regressions has a meaning on a server alone
    page = re.sub(r'<link [^>]*href="([^"]+)"[^>]*>', lambda m: _linked(site, m[1]), page)
    page = re.sub(r'<script[^>]* src="([^"]+)"[^>]*>\s*</script>', lambda m: _script(site, m[1]), page)
    page = re.sub(r'(<img [^>]*src=)"([^"]+)"', lambda m: f'{m[1]}"{_data(site / m[2])}"', page)
    files = {p.relative_to(site).as_posix(): json.loads(p.read_text("utf-8")) for p in sorted(site.rglob("*.json"))}
    inlined = json.dumps(files, separators=(",", ":")).replace("<", "\\u003c")
    style = "<style>.feed-div { display: none }</style>"  # the same feed
    return page.replace("</head>", f'{style}<script type="application/json" id="asv-files">{inlined}</script>\n</head>')


def _read(site: Path, address: str) -> str:
    """A file of the site, or the library that its page would load from somewhere else."""
    if "//" not in address:
        return (site / address).read_text("utf-8")
    name = address.rpartition("/")[2]
    if name not in LIBRARIES:
        raise ValueError(f"the page of this version of asv loads {address}, but known are {', '.join(LIBRARIES)}")
    return text_of(name)


def _script(site: Path, address: str) -> str:
    source = re.sub(r"//# sourceMappingURL=.*", "", _read(site, address)).replace("</script", "<\\/script")
    return f"<script>{source}{REQUESTS if 'jquery-' in address else ''}</script>"


def _linked(site: Path, address: str) -> str:
    """A style, without the fonts that it would load; or an icon."""
    if not address.endswith(".css"):
        return f'<link rel="icon" href="{_data(site / address)}">'
    return f"<style>{re.sub(r'@font-face{[^}]*}', '', _read(site, address))}</style>"


def _data(path: Path) -> str:
    return f"data:{TYPES[path.suffix]};base64,{base64.b64encode(path.read_bytes()).decode()}"
