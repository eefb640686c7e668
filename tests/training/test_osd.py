"""Soil series descriptions, written for these tests in the form of the real ones; the real archive if it is there."""

import csv
import io
import math
import tarfile
from pathlib import Path

import numpy as np
import pytest
from rasterio.warp import transform

from miso_qgis.engine.errors import InputError
from training import cli, osd, osd_places, split_pictures
from training.dataset import ObservationFile
from training.osd_places import Place, distance_m, places_in, survey_place, type_place
from training.readers import read_files
from training.sites import CLASSES, MISSING

COAST = split_pictures.coast_file()
ARCHIVE = None if COAST is None else COAST.parents[1] / "osd_alaska" / "osd_alaska_txt.tar.gz"


def text(
    name="EXAMPLE",
    tax="Coarse-silty, mixed, superactive, nonacid, subgelic Typic Histoturbels",
    head="Example peat - on a 4 percent slope at 625 feet elevation under spruce. Described on July 12, 1994.",
    layers="    Oi--0 to 20 cm; peat.\n\n    Bw--20 to 45 cm; silt loam.\n\n    Cf--45 to 150 cm; silt loam; hard.",
    place="Made Up Area, Alaska; latitude 64.50000, longitude -147.25000, datum WGS84.",
    ranges="Thickness of the organic mat varies.",
    extent="MLRA 231, Interior Alaska Highlands. Of small extent.",
):
    return (
        f"LOCATION {name}             AK\n\nEstablished Series\n\n{name} SERIES\n\nThese soils are an invention.\n\n"
        f"TAXONOMIC CLASS: {tax}\n\nTYPICAL PEDON:  {head}\n\n{layers}\n\nTYPE LOCATION:  {place}\n\n"
        f"RANGE IN CHARACTERISTICS:  {ranges}\n\nDISTRIBUTION AND EXTENT: {extent}\n\nREMARKS: None.\n"
    )


def test_a_plain_description_is_read_whole():
    found = osd.parse(text())
    assert found.name == "EXAMPLE"
    assert (found.place.lon, found.place.lat, found.place.method) == (-147.25, 64.5, "latlon_decimal")
    assert found.place.uncertainty_m == 50
    assert found.order == "Gelisols"
    assert [(one.name, one.top_cm, one.bottom_cm) for one in found.horizons] == [
        ("Oi", 0, 20),
        ("Bw", 20, 45),
        ("Cf", 45, 150),
    ]
    assert (found.frozen_cm, found.nsp, found.flag) == (45, "present", "ok")
    assert found.date == "1994-07-12"
    assert found.elevation_m == pytest.approx(625 * 0.3048)
    assert found.slope_percent == 4
    assert found.mlra == ("231",)
    assert found.problems == ()


def test_misspelt_and_run_in_headings_are_found():
    whole = text().replace("\n\nTYPICAL PEDON:", "  TYPCIAL PEDON:").replace("RANGE IN CHARACT", "RANGE IN CHARCAT")
    found = osd.parse(whole)
    assert found.order == "Gelisols"
    assert len(found.horizons) == 3
    assert set(osd.split_sections(whole)) >= {"TAXONOMIC CLASS", "TYPICAL PEDON", "RANGE IN CHARACTERISTICS"}


# --- depths ---


def layers_of(lines):
    return [(one.name, round(one.top_cm, 2), round(one.bottom_cm, 2)) for one in osd.horizons("\n".join(lines))]


def test_organic_layers_that_are_counted_upwards_lie_on_top():
    # 9 inches of organic matter: the mineral soil begins at 22.86 cm, frost at 14 inches below that, 58.42 cm.
    lines = [
        "  Oi--9 to 4 inches; peat.",
        "  Oe--4 inches to 0; muck.",
        "  A--0 to 14 inches; loam.",
        "  Cf--14 to 30 inches; loam.",
    ]
    assert layers_of(lines) == [("Oi", 0, 12.7), ("Oe", 12.7, 22.86), ("A", 22.86, 58.42), ("Cf", 58.42, 99.06)]
    assert osd.frozen_depth(osd.horizons("\n".join(lines))) == pytest.approx(58.42)


@pytest.mark.parametrize(
    ("line", "expected"),
    [
        ("Oi--0 to 3 inches (0 to 8cm); peat", ("Oi", 0, 7.62)),
        ("Cgf -- 21 to 40 inches (55 to 102 cm); loam", ("Cgf", 53.34, 101.6)),
        ("Cf--85 to 200 cm (34 to 79 in); loam", ("Cf", 85, 200)),
        ("C2g --4 1/2 to 7 inches; loam", ("C2g", 11.43, 17.78)),
        ("A1--0 to 1/2 inch; sand", ("A1", 0, 1.27)),
        ("2Bw/Oejjf--10 to 20 cm; loam", ("2Bw/Oejjf", 10, 20)),
        ("C--1.5 to 2 inches; sand", ("C", 3.81, 5.08)),
    ],
)
def test_depths_in_many_forms(line, expected):
    assert layers_of([line]) == [expected]


def test_a_last_horizon_without_a_lower_end_is_kept():
    (rock,) = osd.horizons("    R--18 inches plus; bedrock.")
    assert (rock.name, rock.top_cm) == ("R", pytest.approx(45.72))
    assert math.isnan(rock.bottom_cm)


@pytest.mark.parametrize(
    ("name", "words", "frozen"),
    [
        ("Cf", "silt loam", True),
        ("Bgjjf", "silt loam", True),
        ("C/Oajjf", "silt loam", True),
        ("Cf/Oajj", "silt loam", True),
        ("Wf", "ice", True),
        ("C", "permanently frozen silt loam", True),
        ("2C", "perennially frozen gravel", True),
        ("C", "silt loam", False),
        ("Bw", "patches frozen until late summer", False),
        ("C", "loam; no permafrost within reach", False),
        ("Bhs", "loam", False),
    ],
)
def test_which_horizons_are_perennially_frozen(name, words, frozen):
    assert osd.is_frozen(osd.Horizon(name, 10.0, 20.0, words)) is frozen


# --- near-surface permafrost ---

UNFROZEN = "    A--0 to 20 cm; loam.\n    C--20 to 150 cm; loam."
DEEP = "    A--0 to 20 cm; loam.\n    C--20 to 120 cm; loam.\n    Cf--120 to 150 cm; loam."


@pytest.mark.parametrize(
    ("tax", "layers", "ranges", "expected"),
    [
        ("Typic Haplocryods", UNFROZEN, "", ("absent", "ok")),
        ("Typic Historthels", UNFROZEN, "", ("present", "ok")),  # a Gelisol has it within 100 cm by its class
        ("Typic Histoturbels", UNFROZEN, "", ("indeterminate", "ambiguous")),  # or, with cryoturbation, within 200 cm
        ("Typic Histoturbels", DEEP, "", ("indeterminate", "ambiguous")),
        ("Typic Cryaquepts", DEEP, "", ("absent", "ok")),
        ("Typic Cryaquepts", DEEP, "Depth to permafrost ranges from 20 to 60 inches.", ("indeterminate", "ambiguous")),
        ("Typic Cryaquepts", UNFROZEN, "Depth to permafrost--70 to 100 cm", ("indeterminate", "ambiguous")),
        ("Typic Cryaquepts", UNFROZEN, "Depth to permafrost--110 to 150 cm", ("absent", "ok")),
        ("Typic Cryaquepts", UNFROZEN, "Permafrost is in some pedons.", ("indeterminate", "ambiguous")),
        ("Typic Cryaquepts", UNFROZEN, "These soils have no permafrost.", ("absent", "ok")),
        (
            "Typic Cryorthents",
            "    A--0 to 20 cm; loam.\n    C--20 to 60 cm; loam.",
            "",
            ("indeterminate", "ambiguous"),
        ),
        ("Lithic Cryorthents", "    A--0 to 20 cm; loam.\n    R--20 cm; bedrock.", "", ("absent", "ok")),
        ("Typic Cryorthents", "", "", ("", "undefined")),
    ],
)
def test_near_surface_permafrost_and_its_doubts(tax, layers, ranges, expected):
    found = osd.parse(text(tax=tax, layers=layers, ranges=ranges))
    assert (found.nsp, found.flag) == expected
    assert found.why


def test_exactly_one_metre_is_near_the_surface():
    found = osd.parse(text(layers="    A--0 to 100 cm; loam.\n    Cf--100 to 150 cm; loam."))
    assert (found.frozen_cm, found.nsp) == (100, "present")


# --- places ---


def only(words, **kwargs):
    (place,) = places_in(words, **kwargs)
    return place


@pytest.mark.parametrize(
    "words",
    [
        "latitude 64.5, longitude -147.25, datum WGS84",
        "latitude 64.5 degrees north, longitude 147.25 degrees west, datum WGS 84",
        "64.5 degrees north latitude and 147.25 degrees west longitude, NAD83",
        "latitude 64.5, degrees, longitude --147.25 degrees, datum WGS84",
        "latitude 64.5 longitude, - 147.25 degrees, WGS84",
        "Latitude 64 degrees 30 minutes 00.0 seconds and Longitude 147 degrees 15 minutes 0 seconds west, WGS84",
        "lat. 64 degrees 30 minutes 00 seconds N. and long. 147 degrees 15 minutes 00 seconds W., WGS84",
    ],
)
def test_latitude_and_longitude_in_many_forms(words):
    place = only(words)
    assert (place.lon, place.lat) == (pytest.approx(-147.25), pytest.approx(64.5))
    assert place.uncertainty_m == 50


def test_whole_minutes_and_a_missing_datum_are_less_certain():
    assert only("Lat. 64 degrees 30 N, Long. 147 degrees 15 W., WGS84").uncertainty_m == 1000
    place = only("latitude 64.5, longitude -147.25")
    assert place.uncertainty_m == 200
    assert place.notes == ("no datum",)


def test_a_datum_of_1927_is_transformed():
    place = only("latitude 64.5, longitude -147.25, NAD 27 Alaska")
    apart = distance_m(place, Place(-147.25, 64.5, "", 0))
    assert 50 < apart < 250  # the shift in central Alaska


@pytest.mark.parametrize(
    ("words", "note"),
    [
        ("latitude -64.5, longitude -147.25, WGS84", "latitude printed with a minus"),
        ("latitude 64.5, longitude 147.25, WGS84", "longitude without hemisphere taken as west"),
    ],
)
def test_what_is_mended_in_a_place_is_told(words, note):
    place, notes = type_place(words)
    assert (place.lon, place.lat) == (-147.25, 64.5)
    assert notes == (note,)


@pytest.mark.parametrize(
    "words",
    [
        "latitude 64 degrees 30 minutes, longitude 147 degrees",  # cut off
        "latitude 64.5, longitude -97.25",  # in Canada
        "UTM north 7150000 and UTM east 4378836, zone 6",
        "UTM north 7150000 and UTM east 437883, zone 16",
        "Section 12, T. 135 S., R. 9 E., Fairbanks Meridian",
        "section 3, T. 1 N., R. 9 E.",  # of which meridian?
        "section 3, T. 1, R. 9 E., Fairbanks Meridian",
    ],
)
def test_places_that_are_incomplete_or_elsewhere_are_none(words):
    assert type_place(words) == (None, ("coordinates that are incomplete or not in Alaska",))


@pytest.mark.parametrize(
    "words",
    [
        "UTM 7154000.25 north and UTM 488012.5 east, zone 6, Datum WGS84",
        "UTM coordinates: Zone 6, Easting 488012.5, Northing 7154000.25, NAD83",
        "UTM Zone 6, 488012.5 E and 7154000.25 N, WGS84",
        "UTM zone 6, 488012.5E, 7154000.25N, WGS84",
        "north 7154000.25 and UTM east 0488012.5, zone 6W, WGS84",
    ],
)
def test_utm_in_many_forms(words):
    place = only(words)
    (lon,), (lat,) = transform("EPSG:32606", "EPSG:4326", [488012.5], [7154000.25])
    assert (place.lon, place.lat) == (pytest.approx(lon, abs=1e-9), pytest.approx(lat, abs=1e-9))
    assert (place.method, place.uncertainty_m) == ("utm", 100)


def test_sections_run_to_and_fro():
    # Sections 6 and 1 are the north-west and north-east corners of a township, 31 and 36 the southern ones.
    assert osd_places.section_centre(6) == (0.5, 5.5)
    assert osd_places.section_centre(1) == (5.5, 5.5)
    assert osd_places.section_centre(7) == (0.5, 4.5)
    assert osd_places.section_centre(12) == (5.5, 4.5)
    assert osd_places.section_centre(31) == (0.5, 0.5)
    assert osd_places.section_centre(36) == (5.5, 0.5)
    assert len({osd_places.section_centre(number) for number in range(1, 37)}) == 36


@pytest.mark.parametrize("meridian", osd_places.MERIDIANS)
@pytest.mark.parametrize(("row", "column", "east", "north"), [(0, 0, 0.5, 0.5), (0, 1, 3.0, 2.5), (1, -2, 1.0, 1.0)])
def test_survey_places_near_the_meridian_agree_with_a_map_projection(meridian, row, column, east, north):
    """PROJ's equidistant projection about the initial point knows nothing of our formulas."""
    lat0, lon0 = osd_places.MERIDIANS[meridian]
    plane = f"+proj=aeqd +lat_0={lat0} +lon_0={lon0} +ellps=clrk66 +units=m"
    x, y = ((6 * column + east) * 1609.347, (6 * row + north) * 1609.347)
    (lon,), (lat,) = transform(plane, "+proj=longlat +ellps=clrk66", [x], [y])
    found = survey_place(meridian, row, column, east, north)
    # What curves in a plane: the parallel bends by x^2 tan(lat) / 2R, meridians converge by x y tan(lat) / R.
    bend = (x * x / 2 + abs(x * y)) * math.tan(math.radians(lat)) / 6_371_000
    assert distance_m(Place(*found, "", 0), Place(lon, lat, "", 0)) < 2 + bend


def test_ranges_far_from_the_meridian_are_measured_on_the_standard_parallel_below():
    # T. 6 S. hangs in the tier from the 8th to the 5th township: its parallel is 48 miles south of the base line.
    lon, _ = survey_place("fairbanks", -6, 20, 0.0, 0.0)
    foot_lon, foot_lat = survey_place("fairbanks", -8, 20, 0.0, 0.0)
    assert lon == pytest.approx(foot_lon)
    # 120 miles along that parallel: the angle times the parallel's radius, sphere of 6371 km, to 0.5 %.
    lat0, lon0 = osd_places.MERIDIANS["fairbanks"]
    assert foot_lat == pytest.approx(lat0 - 48 * 1609.347 / 111_400, abs=0.005)
    along = math.radians(foot_lon - lon0) * 6_371_000 * math.cos(math.radians(foot_lat))
    assert along == pytest.approx(120 * 1609.347, rel=0.005)


def test_quarters_are_read_from_the_largest_to_the_smallest():
    middle = only("section 16, T. 2 S., R. 10 W., Fairbanks Meridian")
    part = only("in the SW 1/4 of the NE 1/4 of section 16, T.2S., R.10W., Fairbanks Meridian")
    again = only("SW1/4, NE1/4, Sec. 16, T 2 S, R 10 W, Fairbanks Meridian")
    assert (part.lon, part.lat) == (again.lon, again.lat)
    # A quarter of a mile east and north, then an eighth back.
    north = math.radians(part.lat - middle.lat) * 6_385_000 / 1609.347
    east = math.radians(part.lon - middle.lon) * 6_385_000 * math.cos(math.radians(middle.lat)) / 1609.347
    assert (east, north) == (pytest.approx(0.125, abs=0.002), pytest.approx(0.125, abs=0.002))


def test_a_meridian_is_taken_from_the_survey_area_if_it_has_one():
    texts = {
        "a": "Made Up Area, Alaska; section 3, T. 1 N., R. 9 E., Fairbanks Meridian.",
        "b": "Made Up Area, Alaska; section 4, T. 1 N., R. 9 E.",
        "c": "Border Area, Alaska; section 4, T. 1 N., R. 9 E.",
        "d": "Border Area, Alaska; section 3, T. 1 N., R. 9 E., Fairbanks Meridian.",
        "e": "Border Area, Alaska; section 3, T. 1 N., R. 9 E., Seward Meridian.",
    }
    assert osd_places.inferred_meridians(texts) == {"b": "fairbanks"}
    place, notes = type_place(texts["b"], "fairbanks")
    assert place.method == "plss_section"
    assert "Fairbanks Meridian taken from other series" in notes[0]


def test_two_places_that_disagree_are_told():
    words = "section 16, T. 2 S., R. 10 W., Fairbanks Meridian; latitude 65.5, longitude -147.25, WGS84"
    place, notes = type_place(words)
    assert place.method == "latlon_decimal"
    assert "latlon_decimal and plss_section are" in notes[0]


# --- what surrounds it ---


@pytest.mark.parametrize(
    ("head", "elevation", "slope"),
    [
        ("on a 30 percent slope at 1500 feet elevation.", 457.2, 30),
        ("on a slope of 15 percent at an elevation of 302 m (when dry)", 302, 15),
        ("on a till plain at elevation 79 meters (260 feet).", 79, math.nan),
        ("on a slope of 4% at an elevation of 1,032 m (3385 ft)", 1032, 4),
        ("on a 65 percent NW facing footslope under forest", math.nan, 65),
        ("nearly level, under sedges", math.nan, math.nan),
    ],
)
def test_elevation_and_slope(head, elevation, slope):
    assert osd.elevation_m(head) == pytest.approx(elevation, nan_ok=True)
    assert osd.slope_percent(head) == pytest.approx(slope, nan_ok=True)


def test_resource_areas_each_once():
    words = "Lowlands, Alaska; MLRA 229; Highlands, Alaska; MLRA 230 and 229, and MLRA 238 Coast. Extent 900."
    assert osd.land_resource_areas(words) == ("229", "230", "238")


# --- archives and the command ---


def archive(tmp_path, texts):
    path = tmp_path / "osd.tar.gz"
    with tarfile.open(path, "w:gz") as target:
        for name, content in texts.items():
            data = content.encode()
            info = tarfile.TarInfo(f"OSD/{name[0]}/{name}.txt")
            info.size = len(data)
            target.addfile(info, io.BytesIO(data))
    return path


def test_the_command_writes_observations_that_the_reader_takes(tmp_path, capsys):
    path = archive(
        tmp_path,
        {
            "FROZEN": text("FROZEN"),
            "BARE": text("BARE", "Typic Haplocryods", layers=UNFROZEN, place="latitude 62.1, longitude -149.5, WGS84"),
            "LOST": text("LOST", place="Near the creek."),
            "EMPTY": text("EMPTY", tax="", place="latitude 62.2, longitude -149.5, WGS84"),
            "README": "Not a series.",
        },
    )
    out = tmp_path / "out" / "sites.csv"
    assert cli.main(["osd", str(path), "--out", str(out)]) == 0
    printed = capsys.readouterr().out
    assert "4 series; 3 with a place" in printed
    assert "1: taxonomic class empty (EMPTY)" in printed
    with out.open() as source:
        rows = {row["series"]: row for row in csv.DictReader(source)}
    assert rows["FROZEN"]["pf_depth_cm"] == "45.0"
    sites, report = read_files([ObservationFile(str(out))])
    assert list(sites.id) == ["BARE", "EMPTY", "FROZEN"]
    assert list(sites.labels["nsp"]) == [0, 1, 1]
    orders = [CLASSES["soil_order"][i] if i != MISSING else None for i in sites.labels["soil_order"]]
    assert orders == ["Spodosols", None, "Gelisols"]
    assert str(sites.date[2]) == "1994-07-12"
    assert report.finding("no_place").count == 1


def test_an_archive_that_cannot_be_read_says_so(tmp_path):
    path = archive(tmp_path, {name: text(name) for name in ("AAA", "BBB")})
    path.write_bytes(path.read_bytes()[:-200])
    with pytest.raises(InputError, match=r"osd\.tar\.gz.*cannot be read"):
        osd.read_archive(path)
    with pytest.raises(InputError, match="cannot be read"):
        osd.read_archive(tmp_path / "none.tar")
    with pytest.raises(InputError, match="holds none among 1 texts"):
        osd.read_archive(archive(tmp_path, {"README": "Nothing."}))


def test_a_folder_is_as_good_as_an_archive(tmp_path):
    (tmp_path / "E").mkdir()
    (tmp_path / "E" / "EXAMPLE.txt").write_text(text())
    (found,) = osd.read_archive(tmp_path)
    assert found.file == str(Path("E") / "EXAMPLE.txt")


@pytest.mark.real_data
@pytest.mark.skipif(ARCHIVE is None or not ARCHIVE.is_file(), reason="the series texts are not beside the checkout")
def test_the_real_texts_agree_with_the_table_beside_them():
    """The figures of benchmarks/osd_agreement.py, with room for a handful more or fewer."""
    series = {one.file: one for one in osd.read_archive(ARCHIVE)}
    with (ARCHIVE.parent / "osd_alaska_series.csv").open(encoding="utf-8") as source:
        rows = {row["file"]: row for row in csv.DictReader(source)}
    assert set(series) == set(rows)
    placed = [name for name, row in rows.items() if row["lon"] and not row["coord_method"].startswith("plss")]
    apart = [
        distance_m(series[name].place, Place(float(rows[name]["lon"]), float(rows[name]["lat"]), "", 0))
        for name in placed
        if series[name].place
    ]
    assert len(apart) >= 555
    assert np.mean(np.array(apart) < 100) > 0.99
    assert all(series[name].order == row["order"] for name, row in rows.items() if row["tax_from"] == "HEAD")
    sure = [name for name, row in rows.items() if row["nsp_flag"] == "ok" and series[name].flag == "ok"]
    differ = [name for name in sure if (series[name].nsp == "present") != (rows[name]["nsp_1m"] == "1.0")]
    assert len(sure) > 820
    assert not differ
