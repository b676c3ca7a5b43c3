"""Pictures of a report: what stands beside an axis is not cut."""

import re

import pytest

from tagsmith.evaluation.page.charts import LETTER, SHARES, Axis, Picture


@pytest.mark.parametrize("values", [[98.9, 98.95], [0.0, 100.0], [0.0, 12_345_678.0], [0.00012, 0.00013]])
def test_names_beside_the_axis_lie_within_the_picture(values):
    picture = Picture(SHARES, Axis.of("", values, unit=" %"))
    names = re.findall(r'<text x="([\d.]+)" [^>]*text-anchor="end">([^<]*)</text>', picture.svg("told"))
    assert len(names) > 2
    assert all(float(x) >= LETTER * len(name) for x, name in names)
    picture.rule(y=values[0])
    assert f'd="M{picture.left} ' in picture.svg("told"), "the marks move with the axis"
