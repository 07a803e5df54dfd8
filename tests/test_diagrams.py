"""tools/diagrams.py: the committed diagrams are those of today's tiers."""

import xml.etree.ElementTree

import diagrams
import pytest

from patchlib.parameters import ARCHITECTURES


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_the_committed_diagram_is_what_the_tool_draws(name):
    text = (diagrams.ROOT / "notebooks" / "diagrams" / f"{name}.svg").read_text()
    assert text == diagrams.svg(name)
    root = xml.etree.ElementTree.fromstring(text)
    assert root.get("aria-label").startswith(name)


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_nothing_leaves_the_picture(name):
    root = xml.etree.ElementTree.fromstring(diagrams.svg(name))
    wide, tall = (float(root.get(side)) for side in ("width", "height"))
    for element in root.iter():
        points = [point.split(",") for point in element.get("points", "").split()]
        if element.get("width", "100%") != "100%" and element is not root:
            x, y, w, h = (float(element.get(key)) for key in ("x", "y", "width", "height"))
            points.append((x + w, y + h))
        assert all(0 <= float(x) <= wide and 0 <= float(y) <= tall - 4 for x, y in points)
