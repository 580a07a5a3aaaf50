"""The JavaScript libraries of asv's page, from npm: fetched once into ``benchmarks/.asv/libraries``, and held to a hash.

asv's page would load them from hosts on the internet each time it is looked at. jquery, md5, orderbars and bootstrap are the very files
that it asks for; flot is the readable form of the same version, and stupidtable is newer, as npm does not have 1.0.1. All are under the
MIT licence, which stands in each of them.
"""

from __future__ import annotations

import hashlib
import shutil
import subprocess
import tarfile
import tempfile
from pathlib import Path
from typing import NamedTuple

CACHE = Path(__file__).parent / ".asv" / "libraries"


class Library(NamedTuple):
    """A file of a package on npm."""

    package: str
    path: str
    sha256: str


FLOT = "flot@0.8.3"
LIBRARIES = {  # by how asv's page names them
    "jquery-3.3.1.min.js": Library(
        "jquery@3.3.1", "dist/jquery.min.js", "160a426ff2894252cd7cebbdd6d6b7da8fcd319c65b70468f10b6690c45d02ef"
    ),
    "jquery.flot.min.js": Library(FLOT, "jquery.flot.js", "b7b931f273c38b1277b9c6c1f4e05c4ec09885a487bddaf3279e2d7e49a38e12"),
    "jquery.flot.time.min.js": Library(FLOT, "jquery.flot.time.js", "a582c832adc7138a6b05aaf61f16ebac274701f1be4afea77e739a1c34b9c41a"),
    "jquery.flot.selection.min.js": Library(
        FLOT, "jquery.flot.selection.js", "e6c85f6c1ebe4b4da29d8ae238c7c5060283f05f7ef054f6b91817d02c092918"
    ),
    "jquery.flot.categories.min.js": Library(
        FLOT, "jquery.flot.categories.js", "6e81664b28ea795c734906f4aa15614640a75ac7fbd399a7fb9084040698351a"
    ),
    "jquery.flot.orderBars.js": Library(
        "flot-orderbars@1.0.0", "js/jquery.flot.orderBars.js", "39735b4f46f96ff4e082572401f47c55a2767b366fd1d1e821e44a8d830a12bf"
    ),
    "stupidtable.min.js": Library(
        "stupid-table-plugin@1.1.3", "stupidtable.min.js", "4642380f28ebe9ed7cac251793b281ef8620c4386205d92788f9b12f5cceb4e0"
    ),
    "md5.min.js": Library("blueimp-md5@2.19.0", "js/md5.min.js", "64d7ded388c562e4bde9e58ce205e5fa01b9734fcd434d496eb7b4fbfe9b927d"),
    "bootstrap.min.js": Library(
        "bootstrap@3.1.1", "dist/js/bootstrap.min.js", "898d05a17f2cfc5120ddcdba47a885c378c0b466f30f0700e502757e24b403a1"
    ),
    "bootstrap.min.css": Library(
        "bootstrap@3.1.1", "dist/css/bootstrap.min.css", "e9503448692b738dd260fbd7f7cabf2e11f09b600fa97e6eb3a56eba5b1a7e9b"
    ),
}


def has_npm() -> bool:
    """Whether libraries can be fetched."""
    return shutil.which("npm") is not None


def text_of(name: str) -> str:
    """A library's text; RuntimeError where it cannot be had, or is another than it was."""
    package, path, sha256 = LIBRARIES[name]
    kept = CACHE / sha256
    if not kept.exists():
        content = _fetched(package, path)
        if (found := hashlib.sha256(content).hexdigest()) != sha256:
            raise RuntimeError(f"{path} of {package} has the hash {found}, but should have {sha256}")
        CACHE.mkdir(parents=True, exist_ok=True)
        kept.write_bytes(content)
    return kept.read_text("utf-8")


def _fetched(package: str, path: str) -> bytes:
    """A file of a package, by ``npm pack``."""
    if not has_npm():
        raise RuntimeError(f"npm is needed to fetch {package}, a library of asv's page")
    with tempfile.TemporaryDirectory() as folder:
        done = subprocess.run(["npm", "pack", "--silent", package], cwd=folder, capture_output=True, text=True, check=False)
        packed = sorted(Path(folder).glob("*.tgz"))
        if done.returncode or not packed:
            raise RuntimeError(f"npm pack {package} failed:\n{done.stdout}{done.stderr}")
        with tarfile.open(packed[0]) as archive:
            member = archive.extractfile(f"package/{path}")
            if member is None:
                raise RuntimeError(f"{package} has no file {path}")
            return member.read()
