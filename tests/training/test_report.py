"""The report as a whole: one self-contained page, every table and figure, nothing half-written, messages not traces."""

import csv
import json
import re
from html.parser import HTMLParser

import numpy as np
import pytest

pytest.importorskip("sklearn")
pytest.importorskip("matplotlib")

import rasterio
from report_data import predictions, save_run
from test_report_parts import write_polygons

from miso_qgis.engine.errors import InputError
from training import cli, report, report_figures, report_maps, report_watershed
from training import predictions as stored


class Page(HTMLParser):
    """Collects what a page refers to, its headings, tables and pictures."""

    def __init__(self, text):
        super().__init__()
        self.references, self.tags, self.ids, self.links, self.texts, self.open = [], [], [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        values = dict(attributes)
        self.tags.append(tag)
        self.references += [values[name] for name in ("src", "srcset", "data", "poster") if name in values]
        if tag in ("a", "link"):
            self.links.append(values.get("href", ""))
        if "id" in values:
            self.ids.append(values["id"])
        if tag == "img":
            assert values["alt"]
        if tag not in ("meta", "img", "br", "link"):
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag, f"</{tag}> closes another element"

    def handle_data(self, data):
        self.texts.append(data)


def write_maps(folder, simulated=False):
    """Two probability rasters of 40 x 30 px, 100 m, with a hole; and seven bands of orders."""
    folder.mkdir(exist_ok=True)
    column, row = np.meshgrid(np.linspace(0, 1, 40), np.linspace(0, 1, 30))
    profile = {
        "driver": "GTiff", "width": 40, "height": 30, "crs": "EPSG:3338", "dtype": "float32", "nodata": -9999.0,
        "transform": rasterio.Affine(100, 0, 200_000, 0, -100, 1_700_000),
    }  # fmt: skip
    for model, values in (("rf", column), ("miso", np.clip(column + 0.2 * (row - 0.5), 0, 1))):
        values = values.astype(np.float32)
        values[:4, :5] = -9999
        with rasterio.open(folder / f"nsp_probability_{model}.tif", "w", count=1, **profile) as target:
            target.write(values, 1)
            target.update_tags(MISO_SIMULATED="yes" if simulated else "no")
        orders = np.stack(
            [(k + 1) * (column if k % 2 else row) * (1.5 if model == "rf" else 1) + 0.1 for k in range(7)]
        )
        orders[3] += 9 * (row if model == "rf" else column)
        orders /= orders.sum(axis=0)
        with rasterio.open(folder / f"soil_order_probability_{model}.tif", "w", count=7, **profile) as target:
            target.write(orders.astype(np.float32))
            target.descriptions = report_maps.CLASSES["soil_order"]
    return folder


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    folder = tmp_path_factory.mktemp("report")
    run = save_run(folder / "run")
    polygons = write_polygons(folder / "zones.gpkg")
    maps = write_maps(folder / "maps")
    arguments = ["evaluate", str(run), "--out", str(folder / "out"), "--polygons", polygons, "--name-field", "name"]
    assert cli.main([*arguments, "--maps", str(maps), "--draws", "40"]) == 0
    return folder / "out"


def test_page_is_whole_and_refers_to_nothing_outside(made):
    text = (made / "report.html").read_text(encoding="utf-8")
    page = Page(text)
    assert page.open == []
    assert page.references
    assert all(reference.startswith("data:image/") for reference in page.references)
    assert not {"script", "link", "iframe", "object"} & set(page.tags)
    assert "url(" not in text
    assert "@import" not in text
    assert all(link.startswith("#") and link[1:] in page.ids for link in page.links)
    assert len(page.ids) == len(set(page.ids))


def test_every_table_and_figure_of_the_paper_is_there(made):
    text = (made / "report.html").read_text(encoding="utf-8")
    for name in (
        "Table 1, at 0.5",
        "Table 1, at equal recall",
        "Table 1, at equal predicted area",
        "Table 2",
        "Table 3",
    ):
        assert f"<b>{name}.</b>" in text
    for number in (4, 5, 6, 7, 8, 9, 10):
        assert f"<b>Figure {number}.</b>" in text
    assert text.count("Which model to prefer here") >= 6
    assert "Gelisols" in text


def test_table_1_holds_the_papers_numbers(made):
    with (made / "tables" / "table1_half.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    assert [(row["split"], row["model"]) for row in rows][:2] == [("random", "Random Forest"), ("random", "MISO")]
    oof = next(o for o in predictions() if (o.model, o.task, o.split) == ("rf", "nsp", "SH-1km"))
    row = next(r for r in rows if (r["split"], r["model"]) == ("SH-1km", "Random Forest"))
    recalls, accuracies = [], []
    for fold in range(5):
        part = oof.fold == fold
        called = oof.probability[part, 1] >= 0.5
        recalls.append(called[oof.label[part] == 1].mean())
        accuracies.append((called == (oof.label[part] == 1)).mean())
    assert float(row["R1"]) == pytest.approx(100 * np.mean(recalls), abs=0.006)
    assert float(row["Acc"]) == pytest.approx(100 * np.mean(accuracies), abs=0.006)
    assert row["R1 (interval or sd)"] == f"± {100 * np.std(recalls, ddof=1):.1f}"


def test_json_and_csv_agree_with_the_page(made):
    data = json.loads((made / "report.json").read_text(encoding="utf-8"))
    assert data["simulated"] is True
    assert {(c["task"], c["split"]) for c in data["comparisons"]} == {
        (task, split) for task in ("nsp", "soil_order") for split in ("random", "SH-1km")
    }
    assert {"curves", "reliability", "thresholds", "histograms", "polygons", "maps", "manifest"} <= set(data)
    with (made / "tables" / "scores.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    found = next(
        r for r in rows if (r["task"], r["split"], r["model"], r["measure"]) == ("nsp", "SH-1km", "miso", "pr_auc")
    )
    one = next(c for c in data["comparisons"] if (c["task"], c["split"]) == ("nsp", "SH-1km"))
    assert float(found["pooled"]) == pytest.approx(one["pooled"]["miso"]["pr_auc"]["value"], abs=1e-5)
    text = (made / "report.html").read_text(encoding="utf-8")
    assert f"{one['pooled']['miso']['pr_auc']['value']:.3f}" in text


def test_simulated_data_is_marked_on_every_part(made):
    text = (made / "report.html").read_text(encoding="utf-8")
    parts = len(re.findall("<h2 ", text))
    assert text.count('class="banner"') == parts  # on top of the page, and of each part but the first
    assert "SIMULATED" in (made / "MODEL_CARD.md").read_text(encoding="utf-8")


def test_real_data_has_no_banner_and_simulated_maps_bring_it_back(tmp_path):
    run = save_run(tmp_path / "run", simulated=False, splits=(("SH-1km", 1.0),), tasks=("nsp",), clusters=20)
    plain = report.make(report.Request((run,), draws=20))
    assert "banner" not in plain.page.split("</style>")[1]
    maps = write_maps(tmp_path / "maps", simulated=True)
    marked = report.make(report.Request((run,), maps=maps, draws=20))
    assert "Simulated data" in marked.page
    assert marked.data["simulated"] is True


def test_order_never_predicted_is_a_dash_with_a_footnote(made):
    text = (made / "report.html").read_text(encoding="utf-8")
    assert "no site is called Mollisols" in text
    assert "–<sup>" in text
    with (made / "tables" / "orders.csv").open(encoding="utf-8") as file:
        rows = list(csv.DictReader(file))
    row = next(r for r in rows if (r["order"], r["model"]) == ("Mollisols", "Random Forest"))
    assert row["P"] == ""
    assert "no site is called Mollisols" in row["not defined because"]


def test_the_same_run_gives_the_same_page(tmp_path):
    run = save_run(tmp_path / "run", splits=(("SH-1km", 1.0),), tasks=("nsp",), clusters=20)
    first, second = (report.make(report.Request((run,), draws=20)).page for _ in range(2))
    assert first == second


@pytest.mark.parametrize("change", ["one class", "one fold", "one cluster", "three sites", "one model"])
def test_poor_data_gives_a_report_with_reasons(tmp_path, change):
    tasks = (
        ("nsp",) if change in ("one fold", "one cluster") else ("nsp", "soil_order")
    )  # the others are the same for both
    for oof in predictions(splits=(("SH-1km", 1.0),), clusters=15, tasks=tasks):
        values = {name: getattr(oof, name) for name in oof.__dataclass_fields__}
        if change == "one class":
            values["label"] = np.zeros_like(oof.label)
        elif change == "one fold":
            values["fold"] = np.zeros_like(oof.fold)
        elif change == "one cluster":
            values["cluster"] = np.zeros_like(oof.cluster)
        elif change == "three sites":
            values.update({n: v[:3] for n, v in values.items() if isinstance(v, np.ndarray)})
        elif oof.model == "rf":
            continue
        type(oof)(**values).save(tmp_path / "run" / "predictions")
    layer = write_polygons(tmp_path / "zones.gpkg")
    made = report.make(report.Request((tmp_path / "run",), polygons=((layer, None),), draws=20))
    report.write(made, tmp_path / "out")
    json.dumps(made.data, allow_nan=False)
    assert Page(made.page).open == []
    assert ">nan" not in made.page.lower()
    words = {
        "one class": "one class only",
        "one fold": "one fold only",
        "one cluster": "one cluster only",
        "three sites": "no site is",
        "one model": "MISO",
    }
    assert words[change] in made.page
    if change != "one model":
        assert "no difference shown" in made.page.lower() or "Nothing can be said" in made.page


def test_old_tables_do_not_stay_beside_a_new_report(tmp_path):
    run = save_run(tmp_path / "run", splits=(("SH-1km", 1.0),), tasks=("nsp",), clusters=15)
    out = tmp_path / "out"
    (out / "tables").mkdir(parents=True)
    (out / "tables" / "table2.csv").write_text("old")
    report.write(report.make(report.Request((run,), draws=20)), out)
    assert not (out / "tables" / "table2.csv").exists()
    assert [path.name for path in out.iterdir() if path.name.startswith(".")] == []


def test_failure_while_writing_leaves_the_old_page(tmp_path, monkeypatch):
    run = save_run(tmp_path / "run", splits=(("SH-1km", 1.0),), tasks=("nsp",), clusters=15)
    made = report.make(report.Request((run,), draws=20))
    out = tmp_path / "out"
    out.mkdir()
    (out / "report.html").write_text("old page")
    made.page = object()  # cannot be written
    with pytest.raises(TypeError):
        report.write(made, out)
    assert (out / "report.html").read_text() == "old page"


# --- maps ---


def test_disagreement_areas_are_counted_on_every_pixel(tmp_path):
    nsp, orders = report_maps.read_maps(write_maps(tmp_path / "maps"))
    with rasterio.open(tmp_path / "maps" / "nsp_probability_rf.tif") as a:
        rf = a.read(1)
    with rasterio.open(tmp_path / "maps" / "nsp_probability_miso.tif") as b:
        miso = b.read(1)
    valid = rf >= 0
    found = nsp.disagreement["half"]["pixels"]
    assert found["both"] == ((rf >= 0.5) & (miso >= 0.5) & valid).sum()
    assert found["miso_only"] == ((rf < 0.5) & (miso >= 0.5) & valid).sum()
    assert found["rf_only"] == ((rf >= 0.5) & (miso < 0.5) & valid).sum()
    assert sum(found.values()) == nsp.pixels == valid.sum()
    equal = nsp.disagreement["equal_area"]["pixels"]
    assert abs(equal["rf_only"] - equal["miso_only"]) <= 30  # a column of the forest's map has one value
    assert report_maps.maps_json([nsp])[0]["area_km2"] == pytest.approx(valid.sum() * 0.01)
    assert orders.classes == report_maps.CLASSES["soil_order"]
    best = {}
    for model in ("rf", "miso"):
        with rasterio.open(tmp_path / "maps" / f"soil_order_probability_{model}.tif") as source:
            best[model] = source.read().argmax(axis=0)
    for k, name in enumerate(orders.classes):
        pixels = orders.disagreement[name]["pixels"]
        assert sum(pixels.values()) == orders.pixels
        assert pixels["rf_only"] == ((best["rf"] == k) & (best["miso"] != k)).sum()
    assert orders.disagreement["Histosols"]["pixels"]["rf_only"] > 0


def test_maps_that_do_not_belong_together_are_refused(tmp_path):
    with pytest.raises(InputError, match="holds no probability maps of both models"):
        report_maps.read_maps(tmp_path)
    folder = write_maps(tmp_path / "maps")
    with rasterio.open(folder / "nsp_probability_rf.tif", "r+") as target:
        target.transform = rasterio.Affine(100, 0, 200_050, 0, -100, 1_700_000)
    with pytest.raises(InputError, match="differ in grid"):
        report_maps.read_maps(folder)


# --- colours ---


def test_a_model_keeps_its_colour_whoever_it_is_shown_with():
    models = ("rf", "miso", "other", "another")
    colours = [report_figures.colour_of(model, models) for model in models]
    assert len(set(colours)) == 4
    assert report_figures.colour_of("miso", ("miso",)) == colours[1]


def test_drawing_does_not_change_matplotlibs_settings():
    import matplotlib

    before = dict(matplotlib.rcParams)
    report_figures.histograms({"one": {"rf": [0.1] * 10}})
    assert dict(matplotlib.rcParams) == before


# --- the command ---


def test_command_reports_what_is_wrong_without_a_traceback(tmp_path, capsys):
    (tmp_path / "empty").mkdir()
    assert cli.main(["evaluate", str(tmp_path / "empty")]) == 2
    assert "has no out-of-fold predictions" in capsys.readouterr().err
    run = save_run(tmp_path / "run", splits=(("SH-1km", 1.0),), tasks=("nsp",), clusters=15)
    assert cli.main(["evaluate", str(run), "--polygons", str(tmp_path / "none.gpkg")]) == 2
    assert "does not exist" in capsys.readouterr().err
    assert cli.main(["evaluate", str(run), "--recall", "1.5"]) == 2
    assert "between 0 and 1" in capsys.readouterr().err
    broken = next((run / "predictions").glob("*.npz"))
    broken.write_bytes(broken.read_bytes()[:200])
    assert cli.main(["evaluate", str(run)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert not (run / "report").exists()


def test_without_a_run_the_protocols_section_is_written(tmp_path, monkeypatch):
    from training import evaluate

    called = []
    monkeypatch.setattr(evaluate, "evaluate", lambda folder, note: called.append(folder) or {"seeds": []})
    monkeypatch.setattr(evaluate, "markdown", lambda result: "section")
    page = tmp_path / "page.md"
    page.write_text(f"{evaluate.START}\n{evaluate.END}\n")
    arguments = [
        "evaluate",
        "--predictions",
        str(tmp_path),
        "--document",
        str(page),
        "--result",
        str(tmp_path / "r.json"),
    ]
    assert cli.main(arguments) == 0
    assert called == [tmp_path]
    assert "section" in page.read_text()


@pytest.mark.real_data
def test_watershed_predictions_become_out_of_fold_predictions(tmp_path):
    from training import cpcrw

    try:
        points, cells = cpcrw.load_observations(1), cpcrw.load_open_cells()
    except InputError as error:
        pytest.skip(f"the watershed is not at hand: {error}")
    for model, shift in (("rf", 0.2), ("miso", 0.3)):
        values = [np.clip(0.4 + shift * (p.label - 0.5), 0, 1).astype(np.float32) for p in (points, cells)]
        stored.save(stored.Predictions(values[0], values[1], {}), tmp_path / "predictions", model, "blocks", 1)
    found = report.load_predictions([tmp_path])
    assert [(o.model, o.task, o.split, o.seed, o.label.size) for o in found] == [
        ("miso", "nsp", "blocks", 1, 4000),
        ("rf", "nsp", "blocks", 1, 4000),
    ]
    np.testing.assert_array_equal(found[0].label, points.label)
    np.testing.assert_array_equal(found[0].fold, cpcrw.folds(points, "blocks", 1))
    np.testing.assert_array_equal(found[0].cluster, points.block_id)
    everywhere = report_watershed.load_protocol(tmp_path / "predictions", report_watershed.MAP)
    assert everywhere[0].label.size == len(cells)
