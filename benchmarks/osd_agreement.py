"""How far our parser of soil series descriptions agrees with a table that others parsed from the same texts.

Usage: python benchmarks/osd_agreement.py [--folder FOLDER] [--list] [--json FILE]

Prints, per column, in how many series both have a value, in how many only one, and how many agree; ``--list`` names
the disagreements. Also how far survey places (township, range, section) lie from coordinates printed in the same text:
the evidence for their stated uncertainty. Needs the archive beside the checkout (or in MISO_DATA).
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import os
import sys
from pathlib import Path

import numpy as np
import shapely

REPOSITORY = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(REPOSITORY))

from training import osd, osd_places, readers_places, split_pictures  # noqa: E402

FOLDER = "osd_alaska"


def data_folder():
    named = os.environ.get("MISO_DATA")
    parents = [Path(named), Path(named).parent] if named else [REPOSITORY.parent / "shared" / "data"]
    return next((parent / FOLDER for parent in parents if (parent / FOLDER).is_dir()), None)


def number(text):
    return float(text) if text not in ("", None) else math.nan


def compare(mine, theirs, same):
    """Return counts of one column: both, only ours, only theirs, agreeing; and the disagreements."""
    result = {"both": 0, "only ours": 0, "only the table": 0, "neither": 0, "agree": 0}
    differ = []
    for name in sorted(theirs):
        a, b = mine.get(name), theirs[name]
        empty_a = a is None or a == "" or (isinstance(a, float) and math.isnan(a))
        empty_b = b is None or b == "" or (isinstance(b, float) and math.isnan(b))
        if empty_a or empty_b:
            result["neither" if empty_a and empty_b else "only the table" if empty_a else "only ours"] += 1
            if empty_a != empty_b:
                differ.append((name, a, b))
            continue
        result["both"] += 1
        if same(a, b):
            result["agree"] += 1
        else:
            differ.append((name, a, b))
    return result, differ


def apart_km(a, b):
    first, second = (osd_places.Place(p[0], p[1], "", 0.0) for p in (a, b))
    return osd_places.distance_m(first, second) / 1000


def columns(series, rows):
    """Yield column, ours, the table's, and what counts as agreement."""

    def ours(get):
        return {name: get(one) for name, one in series.items()}

    def table(get):
        return {name: get(row) for name, row in rows.items()}

    place = ours(lambda s: (s.place.lon, s.place.lat) if s.place else None)
    printed = table(lambda r: (number(r["lon"]), number(r["lat"])) if r["lon"] else None)
    plss = {name for name, row in rows.items() if row["coord_method"].startswith("plss")}
    yield (
        "place, printed coordinates (within 100 m)",
        place,
        {n: v for n, v in printed.items() if n not in plss},
        lambda a, b: apart_km(a, b) <= 0.1,
    )
    yield (
        "place, from the land survey (within 2.5 km)",
        place,
        {n: v for n, v in printed.items() if n in plss},
        lambda a, b: apart_km(a, b) <= 2.5,
    )
    yield "method", ours(lambda s: s.place.method if s.place else None), table(lambda r: r["coord_method"]), str.__eq__
    at_head = {name: row["order"] for name, row in rows.items() if row["tax_from"] == "HEAD"}
    yield "order (class printed in the text)", ours(lambda s: s.order), at_head, str.__eq__
    yield (
        "depth of the frozen horizon (1 cm)",
        ours(lambda s: s.frozen_cm),
        table(lambda r: number(r["pf_depth_cm"])),
        lambda a, b: abs(a - b) <= 1,
    )
    yield (
        "NSP within 100 cm, both sure",
        ours(lambda s: {"present": 1.0, "absent": 0.0}.get(s.nsp) if s.flag == "ok" else None),
        table(lambda r: number(r["nsp_1m"]) if r["nsp_flag"] == "ok" else None),
        float.__eq__,
    )
    yield "flag", ours(lambda s: s.flag), table(lambda r: r["nsp_flag"]), str.__eq__
    yield (
        "elevation (1 m)",
        ours(lambda s: s.elevation_m),
        table(lambda r: number(r["elev_m"])),
        lambda a, b: abs(a - b) <= 1,
    )
    yield (
        "slope (0.5 %)",
        ours(lambda s: s.slope_percent),
        table(lambda r: number(r["slope_pct"])),
        lambda a, b: abs(a - b) <= 0.5,
    )
    yield (
        "MLRA (the same set)",
        ours(lambda s: set(s.mlra) or None),
        table(lambda r: set(r["mlra"].split(";")) if r["mlra"] else None),
        set.__eq__,
    )


def survey_errors(texts):
    """Distances, km, between the survey place and the printed one, in texts that have both; without gross slips."""
    sections = {name: osd.split_sections(text) for name, text in texts.items()}
    found = []
    for name, parts in sections.items():
        places = osd_places.places_in(parts.get("TYPE LOCATION", ""))
        survey = [p for p in places if p.method == "plss_section"]
        printed = [p for p in places if not p.method.startswith("plss")]
        if survey and printed:
            found.append((osd_places.distance_m(survey[0], printed[0]) / 1000, name))
    return sorted(found)


def on_land(series, rows):
    """Count survey places of southeast Alaska, in both, that lie inside the coast: ours, the table's, of how many."""
    coast = split_pictures.read_coast()
    if not coast:
        return None
    land = shapely.union_all(list(coast))
    both = [
        (one.place, rows[name])
        for name, one in series.items()
        if one.place and one.place.method == "plss_section" and rows[name]["coord_method"] == "plss_section"
    ]
    chosen = [(place, row) for place, row in both if place.lat < 60 and place.lon > -140]
    ours = np.array([(place.lon, place.lat) for place, _ in chosen])
    theirs = np.array([(float(row["lon"]), float(row["lat"])) for _, row in chosen])
    counts = []
    for places in (ours, theirs):
        x, y = readers_places.project(*places.T, readers_places.DEGREES, readers_places.ALBERS)
        counts.append(int(shapely.intersects_xy(land, x, y).sum()))
    return {"ours": counts[0], "table": counts[1], "of": len(chosen)}


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--folder", type=Path, default=data_folder(), help="folder with archive and table")
    parser.add_argument("--list", action="store_true", help="name the disagreements")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    arguments = parser.parse_args()
    if arguments.folder is None:
        sys.exit("The folder osd_alaska is not beside the checkout; name it with --folder or MISO_DATA.")
    archive = arguments.folder / "osd_alaska_txt.tar.gz"
    series = {one.file: one for one in osd.read_archive(archive)}
    with (arguments.folder / "osd_alaska_series.csv").open(encoding="utf-8") as source:
        rows = {row["file"]: row for row in csv.DictReader(source)}
    print(f"{len(series)} series parsed, {len(rows)} in the table\n")
    print(f"{'column':46s} both  agree  share  only ours  only the table")
    figures = {}
    for title, mine, theirs, same in columns(series, rows):
        counts, differ = compare(mine, theirs, same)
        share = counts["agree"] / counts["both"] if counts["both"] else math.nan
        figures[title] = {**counts, "share": share}
        print(
            f"{title:46s} {counts['both']:4d}  {counts['agree']:5d}  {100 * share:4.1f}%  {counts['only ours']:9d}  "
            f"{counts['only the table']:14d}"
        )
        if title.startswith("depth"):
            counted = [
                name for name, a, b in differ if abs(a - series[name].organic_cm - b) <= 1 and series[name].organic_cm
            ]
            figures[title]["from the mineral soil"] = len(counted)
            print(f"    in {len(counted)} of the others the table counts from below the organic layer")
        if arguments.list:
            for name, a, b in differ:
                print(f"    {name}: ours {a}, table {b}")
    errors = survey_errors(dict(osd._texts(archive)))
    km = np.array([error for error, _ in errors])
    figures["survey"] = {"texts": len(km), "median_km": float(np.median(km)), "p90_km": float(np.quantile(km, 0.9))}
    print(
        f"\nSurvey place against printed coordinates: {km.size} texts, median {np.median(km):.2f} km, "
        f"75 % {np.quantile(km, 0.75):.2f} km, 90 % {np.quantile(km, 0.9):.2f} km"
    )
    figures["on land"] = on_land(series, rows)
    if figures["on land"]:
        print(
            "Survey places of southeast Alaska on land: {ours} of ours, {table} of the table's, of {of}".format(
                **figures["on land"]
            )
        )
    if arguments.list:
        print("    " + ", ".join(f"{Path(name).stem} {error:.1f}" for error, name in errors[::-1]))
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
