"""Observations of every kind of file, and what becomes of what is wrong with them."""

import dataclasses
import datetime
import json

import numpy as np
import pyogrio
import pytest
import rasterio
import shapely
from rasterio.transform import from_origin
from rasterio.warp import transform

from miso_qgis.engine.errors import InputError
from miso_qgis.engine.manifest import ChannelSpec, GroupSpec, InputSpec
from miso_qgis.engine.messages import RasterSource
from training import cli, readers
from training.dataset import Dataset, ObservationFile, write_dataset
from training.readers_places import in_alaska
from training.sites import CLASSES, MISSING

ORDERS = CLASSES["soil_order"]
FAIRBANKS = (-147.7164, 64.8378)


def albers(lon, lat):
    (x,), (y,) = transform("EPSG:4326", "EPSG:3338", [lon], [lat])
    return x, y


def csv_file(tmp_path, rows, header="id,lon,lat,nsp,soil_order,date", name="sites.csv", **kwargs):
    path = tmp_path / name
    path.write_text("\n".join([header, *rows]) + "\n", encoding="utf-8")
    return ObservationFile(str(path), **kwargs)


def read(*files, **kwargs):
    return readers.read_files(files, **kwargs)


def places(count):
    """Rows of ``count`` good records near Fairbanks: lon, lat."""
    return [(FAIRBANKS[0] + 0.01 * i, FAIRBANKS[1] + 0.001 * i) for i in range(count)]


# --- the kinds of files ---

RECORDS = [
    ("a", -147.7164, 64.8378, 1, "Gelisols", "1998-07-15"),
    ("b", -149.9003, 61.2181, 0, "Spodosols", None),
    ("c", -165.4064, 64.5011, None, "Histosols", "2004-08-02"),
]


def as_csv(tmp_path):
    rows = [",".join("" if value is None else str(value) for value in record) for record in RECORDS]
    return csv_file(tmp_path, rows)


def as_aksdb(tmp_path):
    records = []
    for name, lon, lat, nsp, order, date in RECORDS:
        x, y = albers(lon, lat)
        records.append(
            {
                "id": name,
                "lon": lon,
                "lat": lat,
                "x_3338": x,
                "y_3338": y,
                "grid_id": "AK050H48V07",
                "x_pixel": 1,
                "y_pixel": 2,
                "aksdb_dts": date,
                "aksdb_pf1m_bin": nsp,
                "tax_order": order,
            }
        )
    path = tmp_path / "points.json"
    path.write_text(json.dumps(records))
    return ObservationFile(str(path))


def as_geojson(tmp_path):
    features = [
        {
            "type": "Feature",
            "geometry": {"type": "Point", "coordinates": [lon, lat]},
            "properties": {"id": name, "pf": nsp, "soil_order": order, "date": date},
        }
        for name, lon, lat, nsp, order, date in RECORDS
    ]
    path = tmp_path / "sites.geojson"
    path.write_text(json.dumps({"type": "FeatureCollection", "features": features}))
    return ObservationFile(str(path), {"nsp": "pf"})


def as_gpkg(tmp_path):
    path = tmp_path / "sites.gpkg"
    points = [shapely.Point(*albers(lon, lat)) for _, lon, lat, *_ in RECORDS]
    pyogrio.raw.write(
        path,
        np.array(shapely.to_wkb(points), dtype=object),
        [
            np.array([record[0] for record in RECORDS], dtype=object),
            np.array([np.nan if record[3] is None else record[3] for record in RECORDS]),
            np.array([record[4] for record in RECORDS], dtype=object),
            np.array([record[5] or "NaT" for record in RECORDS], dtype="datetime64[D]"),
        ],
        ["site_id", "NSP", "tax_order", "date"],
        layer="sites",
        geometry_type="Point",
        crs="EPSG:3338",
        driver="GPKG",
    )
    return ObservationFile(str(path))


@pytest.mark.parametrize("write", [as_csv, as_aksdb, as_geojson, as_gpkg])
def test_every_kind_of_file_gives_the_same_sites(tmp_path, write):
    sites, report = read(write(tmp_path))
    assert list(sites.id) == ["a", "b", "c"]
    assert list(sites.labels["nsp"]) == [1, 0, MISSING]
    assert [ORDERS[index] for index in sites.labels["soil_order"]] == ["Gelisols", "Spodosols", "Histosols"]
    assert [str(day) for day in sites.date] == ["1998-07-15", "NaT", "2004-08-02"]
    expected = np.array([albers(lon, lat) for _, lon, lat, *_ in RECORDS])
    assert np.abs(np.column_stack([sites.x, sites.y]) - expected).max() < 0.01
    assert (report.records, report.kept, report.dropped, report.findings) == (3, 3, 0, ())
    assert report.dates == ("1998-07-15", "2004-08-02")


def test_sites_come_back_from_the_csv_that_was_written(tmp_path):
    sites, _ = read(as_csv(tmp_path))
    readers.write_sites(sites, tmp_path / "again.csv")
    again, report = read(ObservationFile(str(tmp_path / "again.csv")))
    assert report.findings == ()
    for name in ("id", "date"):
        assert np.array_equal(getattr(again, name), getattr(sites, name), equal_nan=name == "date")
    assert np.abs(again.x - sites.x).max() <= 5e-4  # written to the millimetre
    assert all(np.array_equal(again.labels[task], sites.labels[task]) for task in CLASSES)


def test_semicolons_decimal_commas_and_old_encodings_are_read_and_told(tmp_path):
    path = tmp_path / "sites.csv"
    path.write_bytes("id;lon;lat;nsp\nsüd;-147,7164;64,8378;1\n".encode("cp1252"))
    sites, report = read(ObservationFile(str(path)))
    assert list(sites.id) == ["süd"]
    assert sites.x[0] == pytest.approx(albers(*FAIRBANKS)[0], abs=0.01)
    assert {finding.reason for finding in report.findings} == {"decimal_comma", "encoding"}


# --- labels ---


def test_what_happens_to_labels_is_counted_by_reason(tmp_path):
    labels = [
        ("1", "Gelisol"),
        ("absent", "HISTOSOLS"),
        ("indeterminate", "Alfisols"),
        ("maybe so", "Typic Haplocryods"),
        ("[0, 1]", "['Gelisols', 'Histosols']"),
        ("[1, 1]", "Ultisols"),
        ("", "rock outcrop"),
        ("TRUE", "E"),
    ]
    rows = [
        f'{i},{lon:.4f},{lat:.4f},"{nsp}","{order}",'
        for i, ((lon, lat), (nsp, order)) in enumerate(zip(places(8), labels))
    ]
    sites, report = read(csv_file(tmp_path, rows))
    # The third, the fifth and the seventh have no label left.
    assert list(sites.id) == ["0", "1", "3", "5", "7"]
    assert list(sites.labels["nsp"]) == [1, 0, MISSING, 1, 1]
    assert [ORDERS[i] if i != MISSING else None for i in sites.labels["soil_order"]] == [
        "Gelisols",
        "Histosols",
        "Spodosols",
        None,
        "Entisols",
    ]
    counts = {finding.reason: finding.count for finding in report.findings}
    assert counts == {
        "indeterminate": 1,
        "outside_orders": 2,
        "unknown_class": 2,
        "conflicting_labels": 2,
        "order_codes": 1,
        "no_label": 3,
    }
    assert report.finding("outside_orders").values == {"Alfisols": 1, "Ultisols": 1}
    assert report.finding("unknown_class").values == {"maybe so": 1, "rock outcrop": 1}
    assert report.labels["soil_order"]["Gelisols"] == 1


@pytest.mark.parametrize(
    ("codes", "expected"),
    [
        (["1", "3", "7"], ["Andisols", "Gelisols", "Spodosols"]),
        (["1.0", "3.0", "7.0"], ["Andisols", "Gelisols", "Spodosols"]),
        (["0", "3", "6"], None),  # counts from 0
        (["1", "3", "6"], None),  # may count from either
    ],
)
def test_numbers_are_orders_only_where_they_can_mean_one_thing(tmp_path, codes, expected):
    rows = [f"{i},{lon:.4f},{lat:.4f},1,{code}," for i, ((lon, lat), code) in enumerate(zip(places(3), codes))]
    sites, report = read(csv_file(tmp_path, rows))
    if expected is None:
        assert list(sites.labels["soil_order"]) == [MISSING] * 3
        assert report.finding("ambiguous_codes").count == 3
    else:
        assert [ORDERS[index] for index in sites.labels["soil_order"]] == expected
        assert report.finding("order_codes").count == 3


def test_a_list_in_the_points_file_counts_if_its_members_agree(tmp_path):
    x, y = albers(*FAIRBANKS)
    common = {"x_3338": x, "y_3338": y, "aksdb_dts": None}
    records = [
        {"id": 1, **common, "aksdb_pf1m_bin": [1, 1], "tax_order": "Gelisols"},
        {"id": 2, **common, "aksdb_pf1m_bin": [0, 1], "tax_order": ["Gelisols", "gelisol", None]},
        {"id": 3, **common, "aksdb_pf1m_bin": [0, 1], "tax_order": ["Gelisols", "Histosols"]},
    ]
    (tmp_path / "points.json").write_text(json.dumps(records))
    sites, report = read(ObservationFile(str(tmp_path / "points.json")))
    assert list(sites.id) == ["1", "2"]
    assert list(sites.labels["nsp"]) == [1, MISSING]
    assert list(sites.labels["soil_order"]) == [2, 2]
    assert report.finding("conflicting_labels").count == 3


# --- dates ---


def test_dates_that_cannot_be_are_left_out_and_told(tmp_path):
    tomorrow = (datetime.date.today() + datetime.timedelta(days=2)).isoformat()
    dates = ["1998-02-30", tomorrow, "summer", "July 1987", "15 July 1998", "7/4/1998", "1952-1960"]
    rows = [f"{i},{lon:.4f},{lat:.4f},1,,{day}" for i, ((lon, lat), day) in enumerate(zip(places(7), dates))]
    sites, report = read(csv_file(tmp_path, rows))
    assert [str(day) for day in sites.date] == [
        "NaT",
        "NaT",
        "NaT",
        "1987-07-01",
        "1998-07-15",
        "1998-07-04",
        "1952-01-01",
    ]
    counts = {finding.reason: finding.count for finding in report.findings}
    assert counts == {"impossible_date": 2, "unreadable_date": 1, "imprecise_date": 2, "month_first": 1}
    assert report.kept == 7


# --- places ---


def test_exchanged_coordinates_of_a_few_records_drop_these(tmp_path):
    rows = [f"{i},{lon:.4f},{lat:.4f},1,," for i, (lon, lat) in enumerate(places(5))]
    rows[2] = f"2,{FAIRBANKS[1]},{FAIRBANKS[0]},1,,"
    rows[3] = f"3,{-FAIRBANKS[0]},{FAIRBANKS[1]},1,,"
    sites, report = read(csv_file(tmp_path, rows))
    assert list(sites.id) == ["0", "1", "4"]
    swapped = report.finding("swapped_coordinates")
    assert swapped.count == 1
    assert "64.8378 -147.7164" in swapped.examples[0]
    assert "not exchanged for you" in str(report)
    assert report.finding("longitude_sign").count == 1


@pytest.mark.parametrize(
    ("header", "crs"), [("id,lon,lat,nsp", ""), ("id,x,y,nsp", "EPSG:3338"), ("id,x,y,nsp", "EPSG:32606")]
)
def test_exchanged_coordinates_of_a_whole_file_are_an_error(tmp_path, header, crs):
    rows = []
    for i, (lon, lat) in enumerate(places(4)):
        (x,), (y,) = transform("EPSG:4326", crs or "EPSG:4326", [lon], [lat])
        rows.append(f"{i},{y},{x},1")
    with pytest.raises(InputError, match="4 of 4 records are outside Alaska as given, inside it with"):
        read(csv_file(tmp_path, rows, header, crs=crs))


def test_a_missing_minus_of_a_whole_file_is_an_error(tmp_path):
    rows = [f"{i},{-lon},{lat},1" for i, (lon, lat) in enumerate(places(4))]
    with pytest.raises(InputError, match="West longitudes are negative"):
        read(csv_file(tmp_path, rows, "id,lon,lat,nsp"))


def test_a_wrong_crs_is_an_error_that_names_those_that_would_fit(tmp_path):
    rows = []
    for i, (lon, lat) in enumerate(places(3)):
        (x,), (y,) = transform("EPSG:4326", "EPSG:32606", [lon], [lat])
        rows.append(f"{i},{x},{y},1")
    with pytest.raises(InputError, match=r"outside Alaska when read as EPSG:3338 .*EPSG:32606"):
        read(csv_file(tmp_path, rows, "id,x,y,nsp"))
    sites, report = read(csv_file(tmp_path, rows, "id,x,y,nsp", crs="EPSG:32606"))
    assert sites.x[0] == pytest.approx(albers(*FAIRBANKS)[0], abs=0.01)
    assert report.findings == ()


def test_places_that_cannot_be_used_are_dropped_one_reason_each(tmp_path):
    good = f"{FAIRBANKS[0]},{FAIRBANKS[1]}"
    rows = [
        f"good,{good},1,,1990-01-01",
        f"again,{good},1,,1990-01-01",
        f"same cell another day,{good},1,,1991-01-01",
        f"same cell another label,{good},0,,1990-01-01",
        "nowhere,,,1,,",
        "zero,0,0,1,,",
        "fill,-9999,-9999,1,,",
        "words,west,north,1,,",
        "hawaii,-157.8,21.3,1,,",
        "yukon,-135.0,62.0,1,,",
        f"short,{good}",
        f"silent,{good},,,",
    ]
    sites, report = read(csv_file(tmp_path, rows))
    assert list(sites.id) == ["good", "same cell another day", "same cell another label"]
    assert {finding.reason: finding.count for finding in report.findings} == {
        "duplicate": 1,
        "no_place": 2,
        "bad_coordinate": 2,
        "outside_alaska": 2,
        "broken_row": 1,
        "no_label": 1,
    }
    assert report.records == 12
    assert report.kept + report.dropped == report.records


def test_two_pairs_of_coordinates_must_agree(tmp_path):
    x, y = albers(*FAIRBANKS)
    rows = [
        f"agree,{x:.1f},{y:.1f},{FAIRBANKS[0]},{FAIRBANKS[1]},1",
        f"apart,{x + 5000:.1f},{y:.1f},{FAIRBANKS[0]},{FAIRBANKS[1]},1",
        f"one wrong,{x:.1f},{y + 9:.1f},{FAIRBANKS[1]},{FAIRBANKS[0]},1",
        f"one missing,,,{FAIRBANKS[0]},{FAIRBANKS[1]},0",
    ]
    sites, report = read(csv_file(tmp_path, rows, "id,x_3338,y_3338,lon,lat,nsp"))
    assert list(sites.id) == ["agree", "one missing"]
    assert report.finding("places_disagree").count == 2
    assert report.finding("second_place").count == 1


def test_alaska_holds_its_corners_and_not_its_neighbours():
    inside = [(173.2, 52.9), (-179.0, 51.4), (-130.1, 55.0), (-156.8, 71.4), (-141.1, 69.6), (-135.3, 59.5)]
    outside = [(-135.0, 60.7), (-139.4, 64.1), (177.5, 64.7), (-123.1, 49.3), (147.7, 64.8), (64.8, -147.7)]
    assert in_alaska(*np.array(inside).T).all()
    assert not in_alaska(*np.array(outside).T).any()


def test_a_repeated_identifier_is_made_unique_and_told(tmp_path):
    rows = [f"a,{lon:.4f},{lat:.4f},1" for lon, lat in places(3)]
    sites, report = read(csv_file(tmp_path, rows, "id,lon,lat,nsp"))
    assert list(sites.id) == ["a", "a#2", "a#3"]
    assert report.finding("repeated_id").count == 2


# --- files that cannot be used ---


def test_columns_that_are_not_found_are_told_with_those_that_are_there(tmp_path):
    file = csv_file(tmp_path, ["1,2,3"], "name,LONG_DD,LATI")
    with pytest.raises(InputError) as caught:
        read(file)
    assert "coordinates are not found" in str(caught.value)
    assert "no column of labels" in str(caught.value)
    assert "name, LONG_DD, LATI" in str(caught.value)
    with pytest.raises(InputError, match='no column "PF"'):
        read(dataclasses.replace(file, columns={"nsp": "PF"}))
    with pytest.raises(InputError, match="'colour', which is no field"):
        read(dataclasses.replace(file, columns={"colour": "name"}))


@pytest.mark.parametrize(
    ("name", "content", "word"),
    [
        ("none.csv", None, "does not exist"),
        ("empty.csv", b"", "zero bytes"),
        ("header.csv", b"id\n1\n", "first line"),
        ("twice.csv", b"id,lon,lon,lat\n", "two columns called lon"),
        ("quote.csv", b'id,lon,lat,nsp\n1,"-147.7,64.8,1\n', "cannot be read"),
        ("cut.json", b'[{"id": 1, "lon": -147', "cannot be read"),
        ("other.json", b'{"train": [1]}', "JSON of another form"),
        ("none.geojson", b'{"type": "FeatureCollection", "features": []}', "holds no features"),
        ("text.gpkg", b"this is no database at all", "cannot be read"),
        ("only.csv", b"id,lon,lat,nsp\n", "none of 0 records"),
    ],
)
def test_files_that_cannot_be_read_say_so(tmp_path, name, content, word):
    if content is not None:
        (tmp_path / name).write_bytes(content)
    with pytest.raises(InputError, match=word):
        read(ObservationFile(str(tmp_path / name)))


def outcome(file):
    try:
        return len(read(file)[0])
    except InputError as error:
        return str(error)


@pytest.mark.parametrize("share", [0.2, 0.5, 0.8])
def test_a_geopackage_that_is_cut_off_is_never_a_shorter_table(tmp_path, share):
    file = as_gpkg(tmp_path)
    path = tmp_path / "sites.gpkg"
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    found = outcome(file)
    assert found == 3 or "sites.gpkg" in str(found)


def test_a_layer_without_crs_and_other_geometries_are_told(tmp_path):
    shapes = [shapely.Point(*albers(*FAIRBANKS)), shapely.LineString([(0, 0), (1, 1)])]
    for name, crs in (("none", None), ("some", "EPSG:3338")):
        pyogrio.raw.write(
            tmp_path / f"{name}.gpkg",
            np.array(shapely.to_wkb(shapes), dtype=object),
            [np.array([1, 0])],
            ["nsp"],
            geometry_type="Unknown",
            crs=crs,
            driver="GPKG",
        )
    with pytest.raises(InputError, match="has no CRS"):
        read(ObservationFile(str(tmp_path / "none.gpkg")))
    sites, report = read(ObservationFile(str(tmp_path / "some.gpkg")))
    assert len(sites) == 1
    assert report.finding("not_a_point").count == 1


def test_all_files_that_are_wrong_are_told_at_once(tmp_path):
    with pytest.raises(InputError) as caught:
        read(ObservationFile(str(tmp_path / "a.csv")), ObservationFile(str(tmp_path / "b.csv")))
    assert len(caught.value.problems) == 2


# --- datasets and the command ---


def dataset_folder(tmp_path, rows):
    x, y = albers(*FAIRBANKS)
    left, top = round(x) - 500, round(y) + 500
    values = np.ones((100, 80), np.float32)  # the raster ends 200 m before the area does
    values[:50, :40] = -1.0
    with rasterio.open(
        tmp_path / "dem.tif",
        "w",
        driver="GTiff",
        width=80,
        height=100,
        count=1,
        dtype="float32",
        nodata=-1.0,
        crs="EPSG:3338",
        transform=from_origin(left, top, 10, 10),
    ) as target:
        target.write(values, 1)
    file = csv_file(tmp_path, rows(left, top), "id,x,y,nsp,soil_order", crs="EPSG:3338")
    dataset = Dataset(
        format=1,
        name="small",
        title="Small",
        simulated=True,
        licence="CC0-1.0",
        citation="none",
        bounds=(left, top - 1000, left + 1000, top),
        inputs={"dem": InputSpec("continuous", "Elevation")},
        sources={"dem": RasterSource("dem.tif")},
        groups=(GroupSpec("terrain", (ChannelSpec("elevation", "dem"),)),),
        observations=(dataclasses.replace(file, path="sites.csv"),),
        tasks=("nsp",),
    )
    write_dataset(dataset, tmp_path)
    return dataclasses.replace(dataset, folder=str(tmp_path))


def rows_around(left, top):
    return [
        f"inside,{left + 600},{top - 600},1,",
        f"hole,{left + 105},{top - 105},0,",
        f"beyond the raster,{left + 905},{top - 500},1,",
        f"beyond the area,{left + 5000},{top - 500},1,",
        f"other task,{left + 300},{top - 600},,Gelisols",
    ]


def test_a_dataset_keeps_what_lies_in_its_area_and_rasters(tmp_path):
    dataset = dataset_folder(tmp_path, rows_around)
    sites, report = readers.read_observations(dataset, values=True)
    assert list(sites.id) == ["inside", "hole"]
    assert list(sites.labels) == ["nsp"]
    counts = {finding.reason: finding.count for finding in report.findings}
    assert counts == {"outside_grid": 1, "outside_rasters": 1, "no_label": 1, "no_value": 1}
    assert report.finding("outside_rasters").values == {"dem": 1}
    assert report.finding("no_value").examples == ("hole: dem",)


def test_a_dataset_whose_sites_all_lie_elsewhere_is_an_error_with_both_places(tmp_path):
    dataset = dataset_folder(tmp_path, lambda left, top: [f"a,{left + 50000},{top},1,"])
    with pytest.raises(InputError, match=r"none of 1 sites lies in its area\. They lie at x .* The area lies at x"):
        readers.read_observations(dataset)


def test_the_command_prints_the_report_and_writes_what_is_asked(tmp_path, capsys):
    dataset_folder(tmp_path, rows_around)
    out, report = tmp_path / "kept.csv", tmp_path / "report.json"
    assert cli.main(["observations", str(tmp_path), "--out", str(out), "--json", str(report)]) == 0
    assert "2 of 5 records kept" in capsys.readouterr().out
    assert json.loads(report.read_text())["kept"] == 2
    assert len(out.read_text().splitlines()) == 3
    assert cli.main(["observations", str(tmp_path / "none.csv")]) == 2
    assert "does not exist" in capsys.readouterr().err
    file = str(tmp_path / "sites.csv")
    assert cli.main(["observations", file, "--columns", "nsp"]) == 2
    assert "FIELD=COLUMN" in capsys.readouterr().err
    assert cli.main(["observations", file, "--columns", "nsp=nsp", "--crs", "EPSG:3338"]) == 0
