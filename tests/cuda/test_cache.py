"""Compiled kernels in files: written whole, read only as they were written, and found without a compiler."""

import multiprocessing
import os
import sys
import threading
import types
from typing import NamedTuple

import pytest

pytest.importorskip("numba")

from refattn_numba import _sources
from refattn_numba.cuda import cache
from refattn_numba.cuda.kernel import Cubin, Kernel


class Config(NamedTuple):
    size: int = 64


def builder(ops, config):
    return lambda address: None


def kernel(size=64, threads=128):
    return Kernel(f"k{size}", builder, Config(size), (("address", "pointer"),), threads, 1 << 15, 64)


def cubin(code=b"\x7fELF\n\0 code", architecture="sm_90a"):
    return Cubin(code, "k64", architecture, 168, 0, 0)


@pytest.fixture
def compiler(monkeypatch, tmp_path):
    """A compiler that counts, and a folder of its user's."""
    made = types.ModuleType("refattn_numba.cuda.toolchain")
    made.calls, made.known = [], ("compiler 1",)

    def compile_it(kernel, architecture):
        made.calls.append((kernel.name, architecture))
        return cubin(f"{kernel.name} {len(made.calls)}".encode(), architecture)

    made.compile, made.versions = compile_it, lambda: made.known
    monkeypatch.setitem(sys.modules, made.__name__, made)
    import refattn_numba.cuda

    monkeypatch.setattr(refattn_numba.cuda, "toolchain", made, raising=False)
    monkeypatch.setenv("REFATTN_CUBINS", str(tmp_path / "own"))
    monkeypatch.delenv("REFATTN_PREBUILT", raising=False)
    return made


@pytest.fixture
def no_compiler(compiler):
    def refuse(*_):
        raise ImportError("numba-cuda is not installed")

    compiler.compile = compiler.versions = refuse
    return compiler


def test_a_file_holds_what_was_written(tmp_path):
    cache.write(tmp_path / "deep" / "a.cubin", cubin())
    assert cache.read(tmp_path / "deep" / "a.cubin") == cubin()
    assert [p.name for p in (tmp_path / "deep").iterdir()] == ["a.cubin"]


def test_what_is_no_file_is_none(tmp_path):
    assert cache.read(tmp_path / "a.cubin") is None
    assert cache.read(tmp_path) is None


@pytest.mark.parametrize("at", range(0, 210, 7))
def test_a_changed_byte_is_noticed(tmp_path, at):
    path = tmp_path / "a.cubin"
    cache.write(path, cubin(b"x" * 60))
    whole = bytearray(path.read_bytes())
    whole[at % len(whole)] ^= 0x11
    path.write_bytes(whole)
    found = cache.read(path)
    assert found is None or found._replace(code=b"") != cubin(b"")  # a changed fact beside the code is another fact
    assert found is None or found.code == b"x" * 60


@pytest.mark.parametrize("size", [0, 1, 40, 120, 200])
def test_a_file_that_ends_early_is_noticed(tmp_path, size):
    path = tmp_path / "a.cubin"
    cache.write(path, cubin(b"x" * 60))
    path.write_bytes(path.read_bytes()[:size])
    assert cache.read(path) is None


@pytest.mark.parametrize("text", [b"", b"[]\n", b"{}\n", b'{"layout": "refattn cubin 1"}\nxx', b"\xff\xfe\n"])
def test_other_files_are_none(tmp_path, text):
    (tmp_path / "a").write_bytes(text)
    assert cache.read(tmp_path / "a") is None


def test_each_kernel_is_compiled_once(compiler):
    first = cache.cubin_of(kernel(), "sm_80")
    assert cache.cubin_of(kernel(), "sm_80") == first
    assert compiler.calls == [("k64", "sm_80")]


@pytest.mark.parametrize(
    "other", [(kernel(), "sm_90a"), (kernel(128), "sm_80"), (kernel(threads=256), "sm_80")], ids=["architecture", "constants", "threads"]
)
def test_what_decides_the_code_is_in_the_name(compiler, other):
    cache.cubin_of(kernel(), "sm_80")
    cache.cubin_of(*other)
    assert len(compiler.calls) == 2


def test_another_compiler_compiles_anew(compiler):
    cache.cubin_of(kernel(), "sm_80")
    compiler.known = ("compiler 2",)
    cache.cubin_of(kernel(), "sm_80")
    assert len(compiler.calls) == 2


def test_another_text_of_a_module_compiles_anew(compiler, monkeypatch):
    cache.cubin_of(kernel(), "sm_80")
    monkeypatch.setattr(cache, "digest_of", lambda module: f"another than that of {module}")
    cache.cubin_of(kernel(), "sm_80")
    assert len(compiler.calls) == 2


MAKERS = [
    "fragments",
    "kernel",
    "kernels.place",
    "kernels.exact_rows",
    "kernels.hopper_forward",
    "warpgroups",
    "hopper_ptx",
    "ptx",
    "toolchain",
]


@pytest.mark.parametrize("changed", MAKERS)
def test_each_module_that_makes_a_kernel_is_in_its_digest(monkeypatch, changed):
    kernel = "refattn_numba.cuda.kernels.hopper_forward"
    cache.digest_of.cache_clear()
    before = cache.digest_of(kernel)
    read = _sources._text
    name = f"refattn_numba.cuda.{changed}"
    assert read(name)
    monkeypatch.setattr(_sources, "_text", lambda module: f"{read(module)} " if module == name else read(module))
    cache.digest_of.cache_clear()
    assert cache.digest_of(kernel) != before
    cache.digest_of.cache_clear()


def test_the_host_side_and_other_kernels_are_in_no_digest():
    found = _sources.texts("refattn_numba.cuda.kernels.forward", cache.COMPILER, without=("refattn_numba.cuda",))
    others = {f"refattn_numba.cuda.{name}" for name in ("driver", "launching", "configurations", "kernels.backward_keys")}
    assert not others & found.keys()


def test_a_broken_file_is_made_anew(compiler):
    cache.cubin_of(kernel(), "sm_80")
    (path,) = cache.folder().iterdir()
    path.write_bytes(path.read_bytes()[:-1])
    assert cache.cubin_of(kernel(), "sm_80").code == b"k64 2"
    assert cache.read(path).code == b"k64 2"


def test_a_folder_that_cannot_be_written_costs_a_compilation(compiler, monkeypatch, tmp_path):
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("REFATTN_CUBINS", str(tmp_path / "file" / "below"))
    for n in (1, 2):
        assert cache.cubin_of(kernel(), "sm_80").code == f"k64 {n}".encode()


def test_prebuilt_files_need_no_compiler(compiler, monkeypatch, tmp_path):
    made = cache.build([kernel(), kernel(128)], ["sm_80", "sm_90a"], tmp_path / "carried")
    assert len(made) == len(list((tmp_path / "carried").iterdir())) == 4
    monkeypatch.setenv("REFATTN_PREBUILT", str(tmp_path / "carried"))
    before = {p: p.stat().st_mtime_ns for p in (tmp_path / "carried").iterdir()}

    def refuse(*_):
        raise ImportError("numba-cuda is not installed")

    compiler.compile = compiler.versions = refuse
    assert cache.cubin_of(kernel(128), "sm_90a").architecture == "sm_90a"
    with pytest.raises(ImportError, match="numba-cuda is not installed"):
        cache.cubin_of(kernel(256), "sm_90a")
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "carried").iterdir()} == before
    assert not cache.folder().exists()


def test_a_broken_prebuilt_file_is_compiled_into_the_users_folder(compiler, monkeypatch, tmp_path):
    (path,) = cache.build([kernel()], ["sm_80"], tmp_path / "carried")
    path.write_bytes(b"broken")
    monkeypatch.setenv("REFATTN_PREBUILT", str(tmp_path / "carried"))
    assert cache.cubin_of(kernel(), "sm_80").code == b"k64 2"
    assert path.read_bytes() == b"broken"


def test_build_keeps_what_is_there(compiler, tmp_path):
    for _ in range(2):
        cache.build([kernel()], ["sm_80"], tmp_path)
    assert len(compiler.calls) == 1


@pytest.mark.parametrize(
    ("platform", "names", "end"),
    [
        ("linux", {"XDG_CACHE_HOME": "/somewhere"}, "/somewhere/refattn/cubins"),
        ("darwin", {}, "/Library/Caches/refattn/cubins"),
        ("win32", {"LOCALAPPDATA": "/local"}, "/local/refattn/cubins"),
    ],
)
def test_the_users_folder_is_where_the_system_keeps_caches(monkeypatch, platform, names, end):
    monkeypatch.delenv("REFATTN_CUBINS", raising=False)
    monkeypatch.setattr(sys, "platform", platform)
    for name, value in names.items():
        monkeypatch.setenv(name, value)
    assert cache.folder().as_posix().endswith(end)


def _write_many(path, number):
    for _ in range(200):
        cache.write(path, cubin(bytes([number]) * 5000))


def test_a_reader_beside_two_writers_sees_one_of_them_whole(tmp_path):
    path = tmp_path / "a.cubin"
    _write_many(path, 1)
    context = multiprocessing.get_context("fork") if os.name == "posix" else multiprocessing.get_context("spawn")
    writers = [context.Process(target=_write_many, args=(path, n)) for n in (1, 2)]
    for writer in writers:
        writer.start()
    seen = set()
    while any(writer.is_alive() for writer in writers):
        found = cache.read(path)
        assert found is not None
        assert set(found.code) in ({1}, {2})
        seen.add(found.code[0])
    for writer in writers:
        writer.join()
        assert writer.exitcode == 0
    assert seen
    assert [p.name for p in tmp_path.iterdir()] == ["a.cubin"]


def test_two_threads_may_compile_the_same(compiler):
    found = []
    threads = [threading.Thread(target=lambda: found.append(cache.cubin_of(kernel(), "sm_80").entry)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert found == ["k64"] * 4
