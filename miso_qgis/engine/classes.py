"""Codes and colours of the classes that a map of the most probable class shows.

Standard library only: the engine writes them into the files, the plugin draws with them, and each is stated once.

Codes count from 1 in alphabetical order of the names, whatever the order of a network's outputs; 0 is never used, so
that no program takes a class for the usual "nothing here". Nodata is 255.
"""

from __future__ import annotations

from typing import Dict, Sequence, Tuple

Colour = Tuple[int, int, int]

# Colours that soil scientists know from the maps of global soil regions (USDA-NRCS), for the orders of this project.
SOIL_ORDER_COLOURS: Dict[str, Colour] = {
    "Andisols": (255, 0, 197),
    "Entisols": (255, 170, 0),
    "Gelisols": (102, 119, 205),
    "Histosols": (137, 90, 68),
    "Inceptisols": (215, 215, 158),
    "Mollisols": (38, 115, 0),
    "Spodosols": (194, 158, 215),
}
# For classes of any other name, by code (Okabe and Ito 2008).
_OTHER_COLOURS: Tuple[Colour, ...] = (
    (230, 159, 0),
    (86, 180, 233),
    (0, 158, 115),
    (240, 228, 66),
    (0, 114, 178),
    (213, 94, 0),
    (204, 121, 167),
)


def class_codes(names: Sequence[str]) -> Dict[str, int]:
    """Return the code of each class, from 1 in alphabetical order."""
    return {name: code for code, name in enumerate(sorted(names), 1)}


def class_colour(name: str, code: int) -> Colour:
    """Return the colour of a class: that of the soil order of this name, else one by code."""
    return SOIL_ORDER_COLOURS.get(name, _OTHER_COLOURS[(code - 1) % len(_OTHER_COLOURS)])
