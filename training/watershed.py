"""The Caribou-Poker Creeks watershed: found beside the checkout, or downloaded and converted.

Owns where the files come from and their georeference. The source's files are comma-separated numbers without one (see
:data:`TRANSFORM`). Runs in the engine's environment: no torch, no scikit-learn.

Labels from raster column :data:`RESERVED_FROM_COLUMN` on are reserved for an evaluation by others. They are masked
here, in memory, before anything is written or returned, whatever the file that was read holds.
"""

from __future__ import annotations

import hashlib
import http.client
import os
import tempfile
import time
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Dict, Optional

import numpy as np
import rasterio
from affine import Affine
from numpy.typing import NDArray

from miso_qgis.engine.errors import InputError

FOLDER = "cpcrw_50m"
CRS = "EPSG:32606"
SHAPE = (247, 310)
# The upper left corner is that of the watershed polygon's bounding box, whose size is exactly 310 x 247 cells of 50 m.
TRANSFORM = Affine(50.0, 0.0, 468399.79671804, 0.0, -50.0, 7235343.1825924)
RESERVED_FROM_COLUMN = 215
ELEVATION_NODATA = -9999.0
CLASS_NODATA = 0
LABEL_NODATA = 255

SOURCE_URL = (
    "https://raw.githubusercontent.com/RossAlter/permafrost-cpcrw-chena/850f7d928a940727da44c48984833e5c70e9c9bd/"
    "Figure_data"
)
ELEVATION_CSV = "Figure_2/elevation_CPCRW.csv"
LANDCOVER_CSV = "Figure_2/landcover_CPCRW.csv"
OBSERVATIONS_CSV = "Figure_3/observations_CPCRW.csv"
# SHA-256 of the files at that commit.
CSV_SHA256 = {
    ELEVATION_CSV: "614b3e28408b11115396fed3291321496d7d4478f5e66897c64e679d3a1e5ce6",
    LANDCOVER_CSV: "b4fcd81cbd1f38f6aeb0fe938870b0a19c411b224c77b98cca306376fe9d492e",
}
# SHA-256 of the observation map's uint8 cells *after* masking, so that the open labels can be checked by themselves.
OPEN_LABELS_SHA256 = "99113a42db0cf466034489c11ced9d7906315c0fd8fac82d6142961bc7070664"

# A blocked or slow network must not hold up a demo that can fall back to the simulated valley.
TIMEOUT_S = 10.0
DEADLINE_S = 60.0
MAX_DOWNLOAD_BYTES = 4_000_000  # the files are 1.16 MB; anything far larger is not what was asked for


@dataclass(frozen=True)
class Watershed:
    """Where the watershed's files are.

    Attributes:
        source: ``sibling`` (beside the checkout) or ``download``.
        dem: Elevation, metres, float32, nodata -9999.
        nlcd: Land cover classes, uint8, nodata 0.
        observations: Observation-based permafrost map, uint8, 0 / 1, nodata 255; None where it was not asked for.
        folder: Folder that holds them.
    """

    source: str
    dem: Path
    nlcd: Path
    observations: Optional[Path]
    folder: Path


def data_folder() -> Optional[Path]:
    """Folder with the watershed's files beside the checkout, or named by ``MISO_DATA``; None if there is none.

    ``MISO_DATA`` names the folder itself or its parent. When it is set, nothing else is looked at.
    """
    named = os.environ.get("MISO_DATA")
    if named is not None:
        candidates = [Path(named) / FOLDER, Path(named)]
    else:
        candidates = [Path(__file__).resolve().parents[2] / "shared" / "data" / FOLDER]
    for folder in candidates:
        if (folder / "elevation.tif").is_file() and (folder / "nlcd.tif").is_file():
            return folder
    return None


def find_watershed(cache: Path, *, labels: bool = False, base_url: str = SOURCE_URL) -> Watershed:
    """Find the watershed beside the checkout, else download and convert it into ``cache``.

    Args:
        cache: Folder for downloaded files; kept between calls. Not touched when the files lie beside the checkout.
        labels: Whether the observation map is needed too. It is downloaded only then.
        base_url: Where the source's ``Figure_data`` folder is served.

    Raises:
        InputError: If the files are neither beside the checkout nor downloadable; nothing half-written is left.
    """
    folder = data_folder()
    if folder is not None:
        observations = folder / "permafrost_obs.tif"
        return Watershed(
            source="sibling",
            dem=folder / "elevation.tif",
            nlcd=folder / "nlcd.tif",
            observations=observations if observations.is_file() else None,
            folder=folder,
        )
    cache.mkdir(parents=True, exist_ok=True)
    makers: Dict[str, Callable[[], NDArray[np.generic]]] = {
        "elevation.tif": lambda: elevation_from_csv(_download(base_url, ELEVATION_CSV)),
        "nlcd.tif": lambda: landcover_from_csv(_download(base_url, LANDCOVER_CSV)),
    }
    if labels:
        makers["permafrost_obs.tif"] = lambda: open_labels_from_csv(_download(base_url, OBSERVATIONS_CSV))
    nodata = {
        "elevation.tif": ELEVATION_NODATA,
        "nlcd.tif": CLASS_NODATA,
        "permafrost_obs.tif": LABEL_NODATA,
    }
    for name, make in makers.items():
        if not (cache / name).is_file():
            write_raster(cache / name, make(), nodata[name])
    return Watershed(
        source="download",
        dem=cache / "elevation.tif",
        nlcd=cache / "nlcd.tif",
        observations=cache / "permafrost_obs.tif" if labels else None,
        folder=cache,
    )


def elevation_from_csv(content: bytes) -> NDArray[np.float32]:
    """Turn the source's elevation CSV into cells, (247, 310) float32 metres, -9999 outside the watershed."""
    values = _numbers(content, ELEVATION_CSV)
    return np.where(np.isnan(values), ELEVATION_NODATA, values).astype(np.float32)


def landcover_from_csv(content: bytes) -> NDArray[np.uint8]:
    """Turn the source's land cover CSV into cells, (247, 310) uint8 NLCD classes, 0 outside the watershed."""
    return _codes(_numbers(content, LANDCOVER_CSV), LANDCOVER_CSV, CLASS_NODATA)


def open_labels_from_csv(content: bytes, sha256: str = OPEN_LABELS_SHA256) -> NDArray[np.uint8]:
    """Turn the source's observation CSV into the *open* labels, (247, 310) uint8, 0 / 1, 255 elsewhere.

    The reserved part is masked first. The digest is checked on what is left, in row order.

    Raises:
        InputError: If what is left is not the map that the protocol is written for.
    """
    labels = mask_reserved(_codes(_numbers(content, OBSERVATIONS_CSV), OBSERVATIONS_CSV, LABEL_NODATA))
    _check_digest(labels.tobytes(), sha256, f'Open labels of "{OBSERVATIONS_CSV}"')
    return labels


def mask_reserved(labels: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the labels with every cell of the reserved columns set to nodata; ``labels`` is not modified."""
    masked = labels.copy()
    masked[:, RESERVED_FROM_COLUMN:] = LABEL_NODATA
    return masked


def write_raster(path: Path, cells: NDArray[np.generic], nodata: float) -> None:
    """Write cells of the watershed's grid as a GeoTIFF, whole or not at all."""
    # The suffix stays .tif and last, so that GDAL writes no side file under the final name.
    handle, temporary = tempfile.mkstemp(prefix=f".{path.stem}.", suffix=".part.tif", dir=path.parent)
    os.close(handle)
    try:
        with rasterio.open(
            temporary,
            "w",
            driver="GTiff",
            height=cells.shape[0],
            width=cells.shape[1],
            count=1,
            dtype=cells.dtype.name,
            crs=CRS,
            transform=TRANSFORM,
            nodata=nodata,
            compress="deflate",
        ) as sink:
            sink.write(cells, 1)
        os.chmod(temporary, 0o644)  # mkstemp makes it private
        os.replace(temporary, path)
    finally:
        Path(temporary).unlink(missing_ok=True)


def _download(base_url: str, name: str) -> bytes:
    url = f"{base_url}/{name}"
    needed = "The watershed's public source is needed."
    remedy = (
        "Try again, put the data folder beside the checkout, or name it in MISO_DATA; "
        "`python -m training sample` falls back to a simulated valley."
    )
    if not url.startswith(("https://", "http://127.0.0.1:")):
        raise InputError(f'Download "{url}"', "is neither HTTPS nor this machine.", needed, remedy)
    try:
        with urllib.request.urlopen(url, timeout=TIMEOUT_S) as response:
            content = _read_in_time(response)
            announced = response.headers.get("Content-Length")
    # HTTPException: the server closed the line in the middle of the file or did not speak HTTP.
    except (OSError, urllib.error.URLError, http.client.HTTPException) as error:
        raise InputError(f'Download "{url}"', f"failed ({error}).", needed, remedy) from error
    if announced is not None and len(content) != int(announced):
        found = f"{len(content)} of {announced} bytes arrived."
        raise InputError(f'Download "{url}"', found, "The whole file is needed.", remedy)
    if name in CSV_SHA256:
        _check_digest(content, CSV_SHA256[name], f'Download "{url}"')
    return content


def _read_in_time(response: http.client.HTTPResponse) -> bytes:
    # The socket's timeout starts anew with every byte; a trickle would hold the caller for hours.
    deadline = time.monotonic() + DEADLINE_S
    content = bytearray()
    while len(content) <= MAX_DOWNLOAD_BYTES:
        piece = response.read1(65536)
        if not piece:
            break
        content += piece
        if time.monotonic() > deadline:
            raise TimeoutError(f"{len(content)} bytes in {DEADLINE_S:.0f} s")
    return bytes(content)


def _check_digest(content: bytes, expected: str, what: str) -> None:
    found = hashlib.sha256(content).hexdigest()
    if found != expected:
        raise InputError(
            what,
            f"has the SHA-256 {found}.",
            f"{expected} is needed: the file of the pinned commit.",
            "Nothing was kept. If it happens again, the source has changed: put the data folder beside the checkout.",
        )


def _numbers(content: bytes, name: str) -> NDArray[np.float64]:
    try:
        values = np.loadtxt(content.decode("ascii").splitlines(), delimiter=",", dtype=np.float64, ndmin=2)
    except (UnicodeDecodeError, ValueError) as error:
        raise InputError(f'File "{name}"', f"is not a table of numbers ({error}).") from error
    if values.shape != SHAPE:
        needed = f"{SHAPE[0]} x {SHAPE[1]} are needed."
        raise InputError(f'File "{name}"', f"has {values.shape[0]} x {values.shape[1]} cells.", needed)
    return values


def _codes(values: NDArray[np.float64], name: str, nodata: int) -> NDArray[np.uint8]:
    codes = np.where(np.isnan(values), nodata, values)
    if not np.array_equal(codes, np.round(codes)) or codes.min() < 0 or codes.max() > 255:
        raise InputError(f'File "{name}"', "holds values that are not whole numbers from 0 to 255.")
    return codes.astype(np.uint8)
