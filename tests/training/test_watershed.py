"""Finding, downloading and converting the watershed: against a local server, with faults."""

import contextlib
import http.server
import json
import threading

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely

from miso_qgis.engine.errors import InputError
from training import sample, simulation, watershed

DATA = watershed.data_folder()
real_data = pytest.mark.real_data
needs_watershed = pytest.mark.skipif(DATA is None, reason="the watershed's files are not beside the checkout")


@contextlib.contextmanager
def _server(files, faults=()):
    """Serve ``files`` {path: bytes}; faults: truncated (less than announced), silent (never answers)."""
    released = threading.Event()

    class Handler(http.server.BaseHTTPRequestHandler):
        def do_GET(self):
            content = files.get(self.path.lstrip("/"))
            if "silent" in faults:
                released.wait(20)
                return
            if content is None:
                self.send_error(404)
                return
            self.send_response(200)
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(content[: len(content) // 2] if "truncated" in faults else content)

        def log_message(self, *_):
            """Keep the test's output clean."""

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_port}"
    finally:
        released.set()
        server.shutdown()
        server.server_close()
        thread.join()


@pytest.fixture
def nothing_beside(tmp_path, monkeypatch):
    monkeypatch.setenv("MISO_DATA", str(tmp_path / "no such folder"))


@pytest.fixture
def source_files():
    original = DATA / "original"
    return {
        watershed.ELEVATION_CSV: (original / "elevation_CPCRW.csv").read_bytes(),
        watershed.LANDCOVER_CSV: (original / "landcover_CPCRW.csv").read_bytes(),
    }


def _cells(path):
    with rasterio.open(path) as source:
        return source.read(1), source.profile


@real_data
@needs_watershed
def test_converted_download_equals_the_rasters_beside_the_checkout(tmp_path, nothing_beside, source_files):
    with _server(source_files) as url:
        found = watershed.find_watershed(tmp_path / "cache", base_url=url)
    assert found.source == "download"
    assert found.observations is None
    for made, given in ((found.dem, DATA / "elevation.tif"), (found.nlcd, DATA / "nlcd.tif")):
        (cells, profile), (expected, given_profile) = _cells(made), _cells(given)
        assert np.array_equal(cells, expected)
        for key in ("crs", "transform", "nodata", "dtype"):
            assert profile[key] == given_profile[key], key


@real_data
@needs_watershed
def test_second_call_needs_no_network(tmp_path, nothing_beside, source_files):
    with _server(source_files) as url:
        watershed.find_watershed(tmp_path / "cache", base_url=url)
    assert watershed.find_watershed(tmp_path / "cache", base_url="http://127.0.0.1:9").source == "download"


@real_data
@needs_watershed
def test_sample_of_a_download_outlines_the_cells(tmp_path, nothing_beside, source_files):
    with _server(source_files) as url:
        made = sample.prepare_sample(tmp_path / "sample", tmp_path / "cache", url)
    assert made.kind == "watershed"
    assert "downloaded" in made.sentence
    _assert_area_holds_every_cell(made)


def _assert_area_holds_every_cell(made):
    (polygon,) = shapely.from_wkb(pyogrio.raw.read(made.paths["aoi"])[2])
    with rasterio.open(made.paths["dem"]) as dem:
        rows, columns = np.nonzero(dem.read(1) != dem.nodata)
        x, y = dem.transform * (columns + 0.5, rows + 0.5)
    assert len(rows) == 40649
    assert shapely.contains_xy(polygon, x, y).all()  # the published boundary leaves some of them out
    assert polygon.area < 1.02 * 40649 * 2500.0


@real_data
@needs_watershed
def test_labels_of_the_reserved_columns_never_leave_the_converter():
    expected, _ = _cells(DATA / "permafrost_obs.tif")
    table = np.where(expected == 255, np.nan, expected).astype(float)
    table[:, watershed.RESERVED_FROM_COLUMN :] = 1.0  # whatever the source holds there
    text = "\n".join(",".join("nan" if np.isnan(v) else f"{v:g}" for v in row) for row in table)
    labels = watershed.open_labels_from_csv(text.encode())
    assert np.array_equal(labels, expected)
    assert (labels[:, watershed.RESERVED_FROM_COLUMN :] == watershed.LABEL_NODATA).all()


@pytest.mark.parametrize(
    ("content", "faults", "says"),
    [
        (b"nan,1\n", (), "SHA-256"),
        (b"nan,1\n" * 1000, ("truncated",), "arrived|failed"),
        (None, (), "404"),
        (b"x", ("silent",), "failed"),
    ],
    ids=["other content", "truncated", "missing", "silent"],
)
def test_faulty_download_is_refused_and_leaves_nothing(tmp_path, nothing_beside, monkeypatch, content, faults, says):
    monkeypatch.setattr(watershed, "TIMEOUT_S", 0.5)
    files = {} if content is None else {watershed.ELEVATION_CSV: content, watershed.LANDCOVER_CSV: content}
    with _server(files, faults) as url, pytest.raises(InputError, match=says) as caught:
        watershed.find_watershed(tmp_path / "cache", base_url=url)
    assert "MISO_DATA" in str(caught.value) or "beside the checkout" in str(caught.value)
    assert list((tmp_path / "cache").iterdir()) == []


def test_trickling_download_ends_at_the_deadline(tmp_path, nothing_beside, monkeypatch):
    monkeypatch.setattr(watershed, "DEADLINE_S", -1.0)
    with _server({watershed.ELEVATION_CSV: b"1,2\n"}) as url, pytest.raises(InputError, match="failed"):
        watershed.find_watershed(tmp_path / "cache", base_url=url)


def test_plain_http_to_other_machines_is_refused(tmp_path, nothing_beside):
    with pytest.raises(InputError, match="neither HTTPS nor this machine"):
        watershed.find_watershed(tmp_path / "cache", base_url="http://example.org")


@pytest.mark.parametrize("content", [b"1,2\n3,4\n", b"a,b\n", b"\xff\xfe"], ids=["shape", "text", "bytes"])
def test_table_of_another_form_is_refused(content):
    with pytest.raises(InputError, match=r"cells|not a table"):
        watershed.elevation_from_csv(content)


def test_failed_write_leaves_nothing(tmp_path, monkeypatch):
    def full(*_args, **_kwargs):
        raise OSError("No space left on device")

    monkeypatch.setattr(watershed.os, "replace", full)
    with pytest.raises(OSError, match="No space"):
        watershed.write_raster(tmp_path / "elevation.tif", np.zeros(watershed.SHAPE, np.float32), -9999.0)
    assert list(tmp_path.iterdir()) == []


def test_without_data_and_network_the_sample_is_simulated_and_says_so(tmp_path, nothing_beside):
    made = sample.prepare_sample(tmp_path / "sample", tmp_path / "cache", "http://127.0.0.1:9")
    assert made.kind == "simulated"
    assert "Simulated" in made.sentence
    assert "127.0.0.1:9" in made.sentence
    said = json.loads(made.paths["description"].read_text(encoding="utf-8"))
    assert said["kind"] == "simulated"
    assert {path.name for path in (tmp_path / "sample").iterdir()} == {"dem.tif", "nlcd.tif", "aoi.gpkg", "sample.json"}
    info = pyogrio.read_info(made.paths["aoi"])
    with rasterio.open(made.paths["dem"]) as dem:
        assert tuple(info["total_bounds"]) == pytest.approx(tuple(dem.bounds))
        assert dem.tags()[simulation.TAG] == "yes"


@real_data
@needs_watershed
def test_sample_beside_the_checkout_is_the_watershed(tmp_path):
    made = sample.prepare_sample(tmp_path)
    assert made.kind == "watershed"
    assert np.array_equal(_cells(made.paths["dem"])[0], _cells(DATA / "elevation.tif")[0])
    _assert_area_holds_every_cell(made)
