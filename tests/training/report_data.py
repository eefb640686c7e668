"""Invented predictions of both tasks: clustered sites over Alaska, models whose errors are known to differ."""

import numpy as np

from training.outoffold import OutOfFold
from training.sites import CLASSES

SPLITS = (("random", 0.6), ("SH-1km", 1.1))


def predictions(seed=1, clusters=60, simulated=True, splits=SPLITS, tasks=("nsp", "soil_order")):
    """Return predictions of ``rf`` (flat, misses Mollisols) and ``miso`` (too sure) for each split and task."""
    generator = np.random.default_rng(seed)
    sizes = generator.geometric(1 / 8, clusters)
    cluster = np.repeat(np.arange(clusters), sizes)
    count = cluster.size
    x = generator.uniform(-600e3, 800e3, clusters)[cluster] + generator.normal(0, 300, count)
    y = generator.uniform(900e3, 2200e3, clusters)[cluster] + generator.normal(0, 300, count)
    north, effect = (y - 1.5e6) / 4e5, generator.normal(0, 1, clusters)[cluster]
    frozen = 1.3 * north + effect + generator.normal(0, 0.8, count) - 1.0
    slopes = np.array([-0.6, 0.0, 1.5, 0.0, 0.0, -0.5, -1.2])
    base = np.array([-1.0, 0.0, 0.0, -0.4, 0.6, -2.0, 0.4])
    order = base + north[:, None] * slopes + generator.gumbel(0, 1, (count, 7))
    labels = {"nsp": (frozen > 0).astype(np.int8), "soil_order": order.argmax(axis=1).astype(np.int8)}
    facts = {
        "dataset": {
            "title": "Invented survey",
            "simulated": simulated,
            "licence": "CC0",
            "citation": "Nobody, nowhere",
        },
        "period": [1952, 2023],
    }
    shared = {
        "seed": seed,
        "id": np.array([f"s{i:04d}" for i in range(count)]),
        "x": x,
        "y": y,
        "cluster": cluster.astype(np.int64),
        "facts": facts,
    }
    found = []
    for split, noise in splits:
        dealt = generator.integers(0, 5, count) if split == "random" else (generator.permutation(clusters) % 5)[cluster]
        for model, scale, more in (("rf", 0.9, 0.2), ("miso", 2.6, 0.0)):
            for task in tasks:
                if task == "nsp":
                    p = 1 / (1 + np.exp(-scale * (frozen + generator.normal(0, noise + more, count))))
                    probability = np.stack([1 - p, p], axis=1)
                else:
                    z = order + generator.normal(0, noise + more, (count, 7))
                    z[:, 5] -= 30 * (model == "rf")
                    z = np.exp(scale * (z - z.max(axis=1, keepdims=True)))
                    probability = z / z.sum(axis=1, keepdims=True)
                found.append(
                    OutOfFold(
                        model=model,
                        task=task,
                        split=split,
                        classes=CLASSES[task],
                        label=labels[task],
                        fold=dealt.astype(np.int16),
                        probability=probability,
                        **shared,
                    )
                )
    return found


def save_run(folder, **keys):
    """Write a run folder; returns it."""
    for oof in predictions(**keys):
        oof.save(folder / "predictions")
    return folder
