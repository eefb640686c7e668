"""Size, speed and scores of smaller forests, on the watershed's open cells: what a card states as the loss.

    python benchmarks/forest_size.py            # real data where they lie beside the checkout, a few minutes
    python benchmarks/forest_size.py --split sector

Learns from the points of seed 0 (the development seed) and scores on all open cells of the held-out folds, seed 0
only: a choice made from this table is not made on the seeds that docs/validation.md reports. Labels from raster column
215 on are reserved and not read.
"""

import argparse
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[1]))

from training import baselines, cpcrw
from training.forest_export import Compression
from training.forest_fit import ForestSettings
from training.forest_size import Places, Variant, measure, table

VARIANTS = [
    Variant(),
    Variant(compression=Compression(leaf_bits=8)),
    Variant(compression=Compression(leaf_bits=8, threshold_bits=10)),
    Variant(ForestSettings(min_samples_leaf=5)),
    Variant(ForestSettings(min_samples_leaf=15)),
    Variant(ForestSettings(trees=100)),
    Variant(ForestSettings(trees=100, min_samples_leaf=5)),
    Variant(ForestSettings(trees=100, min_samples_leaf=5), Compression(8, 10)),
    Variant(ForestSettings(trees=100, min_samples_leaf=15), Compression(8, 10)),
    Variant(ForestSettings(trees=50, min_samples_leaf=15), Compression(8, 10)),
]


def main():
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--split", default="blocks", choices=("blocks", "random", "sector"))
    parser.add_argument("--coordinates", action="store_true", help="with x and y among the features")
    chosen = parser.parse_args()
    seed = cpcrw.DEVELOPMENT_SEED
    features = baselines.FeatureMap(cpcrw.load_stack(), chosen.coordinates)
    points, cells = cpcrw.load_observations(seed), cpcrw.load_open_cells()
    learn = Places(features.at(points), points.label, cpcrw.folds(points, chosen.split, seed))
    score = Places(features.at(cells), cells.label, cpcrw.folds(cells, chosen.split, seed))
    sizes = measure(VARIANTS, "nsp", learn, score, score.features, seed, lambda text: print(text, file=sys.stderr))
    print(
        f"Watershed, seed {seed} (development), split {chosen.split}: {len(points):,} points to learn from, "
        f"{len(cells):,} open cells scored.\n\n{table(sizes)}"
    )


if __name__ == "__main__":
    main()
