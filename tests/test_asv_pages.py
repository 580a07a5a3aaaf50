"""The published pages: made of what is committed alone, whole in one file, and of the right numbers."""

from __future__ import annotations

import json
import re
from types import SimpleNamespace

import pytest

from benchmarks import history, libraries, oracle, publish, publish_page, record, roofline, self_contained
from benchmarks.measure import child

TEMPLATE = """<!doctype html>
<html><head>
<script src="https://code.jquery.com/jquery-3.3.1.min.js" integrity="x" crossorigin="anonymous" onerror="failed()"></script>
<link rel="stylesheet" href="https://cdn.jsdelivr.net/npm/bootstrap@3.1.1/dist/css/bootstrap.min.css" integrity="x">
<script language="javascript" type="text/javascript"
        src="asv.js">
</script>
<link rel="shortcut icon" href="swallow.ico"/>
<link rel="alternate" type="application/atom+xml" title="Regressions" href="regressions.xml"/>
</head><body><img src="swallow.png" width="22"></body></html>
"""


@pytest.fixture
def site(tmp_path, monkeypatch):
    monkeypatch.setattr(
        self_contained, "text_of", lambda name: f"/* {name} says </script> */ url" if name.endswith("js") else "@font-face{src:url(a)}"
    )
    (tmp_path / "index.html").write_text(TEMPLATE, "utf-8")
    (tmp_path / "asv.js").write_text("document.write('</script>');\n//# sourceMappingURL=asv.js.map\n", "utf-8")
    for name in ("swallow.ico", "swallow.png"):
        (tmp_path / name).write_bytes(b"\x89")
    (tmp_path / "graphs").mkdir()
    (tmp_path / "graphs" / "a b.json").write_text('[[1, "</script>"]]', "utf-8")
    return tmp_path


def test_a_site_becomes_one_page_that_loads_nothing(site):
    page = self_contained.one_page(site)
    assert not re.search(r'(src|href)="(?!data:)', page)
    assert "url(" not in page.replace("url(#", "")
    assert page.count("</script>") == 3  # libraries speak of scripts, but none ends its own
    held = re.search(r'id="asv-files">(.*?)</script>', page)[1]
    assert json.loads(held) == {"graphs/a b.json": [[1, "</script>"]]}
    assert page.index("jquery-3.3.1.min.js says") < page.index("$.ajax = function (asked)") < page.index("document.write")


def test_a_library_that_is_not_there_is_named(site):
    (site / "index.html").write_text(TEMPLATE.replace("jquery-3.3.1", "jquery-4.0.0"), "utf-8")
    with pytest.raises(ValueError, match=r"loads https://code\.jquery\.com/jquery-4\.0\.0\.min\.js"):
        self_contained.one_page(site)


def test_the_page_of_the_installed_asv_needs_no_other_library(tmp_path):
    asv = pytest.importorskip("asv")
    template = (publish.Path(asv.__file__).parent / "www" / "index.html").read_text("utf-8")
    asked = {address.rpartition("/")[2] for address in re.findall(r'(?:src|href)="(https://[^"]+\.(?:js|css))"', template)}
    assert asked == self_contained.LIBRARIES.keys()


def test_a_library_is_held_to_its_hash(tmp_path, monkeypatch):
    monkeypatch.setattr(libraries, "CACHE", tmp_path)
    monkeypatch.setattr(libraries, "_fetched", lambda package, path: b"something else")
    with pytest.raises(RuntimeError, match=r"md5\.min\.js of blueimp-md5@2\.19\.0 has the hash [0-9a-f]{64}, but should have 64d7"):
        libraries.text_of("md5.min.js")
    assert not list(tmp_path.iterdir())


def test_results_are_kept_without_their_samples(tmp_path):
    contents = {
        "result_columns": ["result", "params", "samples", "profile"],
        "results": {"a": [[0.123456789, None], [["'x'"]], [[1, 2]]], "b": [[float("nan")]]},
        "date": 1795999999123,
    }
    source, target = tmp_path / "from" / "machine", tmp_path / "to"
    source.mkdir(parents=True)
    (source / "abc.json").write_text(json.dumps(contents), "utf-8")
    assert history.copied(source.parent, target) == 1
    kept = json.loads((target / "machine" / "abc.json").read_text("utf-8"))
    assert kept["result_columns"] == ["result", "params"]
    assert kept["results"]["a"] == [[0.1235, None], [["'x'"]]]
    assert kept["date"] == contents["date"]


def test_what_needs_processes_of_its_own_is_measured_once_and_apart(monkeypatch):
    asked = []
    monkeypatch.setattr(history, "asv", lambda *arguments: asked.append(arguments) or SimpleNamespace(returncode=len(asked) - 1))
    monkeypatch.setattr(history.sys, "platform", "linux")
    for benchmarks in ([], ["both", "track"]):
        asked.clear()
        assert history.measure("v1", "m", ["--quick"], benchmarks) == 1
        forked, apart = asked
        assert all(call[:3] == ("run", "--machine=m", "--quick") and call[-1] == "v1^!" for call in asked)
        assert "--launch-method=forkserver" in forked
        assert "--launch-method=forkserver" not in apart
        chosen = [next(a.removeprefix("--bench=") for a in call if a.startswith("--bench")) for call in asked]
        for name, wanted in (
            ("memory.Memory.peakmem_both('refattn')", [False, True]),
            ("linear.Linear.time_both('memory.')", [True, False]),
        ):
            assert [bool(re.search(which, name)) for which in chosen] == wanted
    assert not any(re.search(which, "linear.Linear.time_forward") for which in chosen)


def held(case, ours, torch, limit="float32", operations=None, moved=None):
    return {
        "case": case, "threads": 1, "ours_ms": ours, "baseline": "torch", "baseline_ms": torch, "torch_ms": torch, "numpy_ms": None,
        "others_ms": {}, "percent_of_limit": 50.0, "limit": limit, "limit_per_second": 1e11 if limit == "float32" else 1e10,
        "spread": {"refattn_numba": 0.1, "torch": 0.1}, "operations": operations, "bytes": moved,
        "day": "2030-01-02", "processor": "a <processor>", "versions": "numpy 2",
    }  # fmt: skip


def test_a_dot_stands_where_its_numbers_are():
    rows = [
        held("long", 2.0, 4.0, operations=1e8, moved=1e6),
        held("decode", 1.0, 1.0, "read", operations=5e6, moved=1e7),
        held("no", 1.0, 1.0),
    ]
    long, decode = roofline.points(rows)
    assert (long.intensity, long.rate) == (100, 5e10)
    assert (decode.intensity, decode.rate) == (0.5, 5e9)
    svg = roofline.picture("All", rows)
    assert svg.count("<circle") == 2
    dots = {m[3]: (float(m[1]), float(m[2])) for m in re.finditer(r'cx="([\d.]+)" cy="([\d.]+)".*?<title>(\w+)', svg)}
    roof = float(re.search(r'y1="([\d.]+)"[^>]*class="roof"', svg)[1])
    decades = [float(m) for m in re.findall(r'x1="([\d.]+)" y1="354.0"', svg)]
    assert dots["long"][1] > roof  # below half the roof: pixels count from the top
    assert dots["decode"][0] < dots["long"][0]
    assert dots["long"][0] == pytest.approx(decades[3], abs=0.1)  # 0.1, 1, 10, 100
    assert roofline.picture("None", [held("no", 1.0, 1.0)]) == ""


def test_a_table_has_the_ratio_of_each_peer():
    other = {"case": "b", "threads": 2, "milliseconds": {"check": 2.0, "kernel": 0.5}, "spread": {"check": 0.0, "kernel": 0.0}}
    about = {"day": "2030-01-02", "processor": "p", "versions": "v"}
    page = publish_page.page({"attention": [held("<a>", 2.0, 5.0)], "oracle": [other | about]})
    assert "<td>&lt;a&gt;</td><td>2 ±5%</td><td>5 ±5%</td><td>2.50</td><td>50% float32</td>" in page
    assert "<td>b</td><td>2 ±0%</td><td>0.5 ±0%</td><td>0.25</td>" in page
    assert "a &lt;processor&gt;, 1 thread" in page
    assert "<script" not in page


def test_new_rows_take_the_place_of_old_ones_in_the_order_of_the_suite():
    old, new = [{"case": "c", "x": 1}, {"case": "a", "x": 1}, {"case": "gone"}], [{"case": "c", "x": 2}]
    assert record.merged(old, new, ["a", "b", "c"]) == [{"case": "a", "x": 1}, {"case": "c", "x": 2}]


def test_the_work_of_a_case_is_kept_where_it_is_known():
    work = record.work_of("attention", "forward, full, 1x8x128x64")
    assert work == {"operations": 4.0 * 8 * 128 * 128 * 64, "bytes": 4.0 * 4 * 8 * 128 * 64}
    assert record.work_of("smoke", next(c.name for c in record.suite("smoke"))) == {}


def test_the_committed_page_is_made_of_the_committed_rows():
    rows = {path.stem: json.loads(path.read_text("utf-8")) for path in sorted(record.RESULTS.glob("*.json"))}
    assert rows
    committed = (publish.OUTPUT / "index.html").read_text("utf-8")
    assert publish_page.page(rows) == committed


def test_a_check_costs_more_than_the_calls_that_it_judges():
    case = next(c for c in oracle.CASES if c.name == "softmax, quick")
    timed = child("time", case, rounds=1, threads=1)["timings"]
    assert timed["check"]["seconds"] > timed["kernel"]["seconds"] > 0
