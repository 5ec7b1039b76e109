from __future__ import annotations

import cv2
import numpy as np

from sbdzsl.sbdd.curves import curves_png
from sbdzsl.sbdd.trainer import Progress


def test_the_curves_are_a_picture_with_and_without_validation() -> None:
    with_ap = [Progress(e, 3, 1.0 / e, 0.5 / e, e / 3, float(e)) for e in (1, 2, 3)]
    without = [Progress(e, 3, 1.0 / e, 0.5 / e, None, float(e)) for e in (1, 2, 3)]
    pictures = [cv2.imdecode(np.frombuffer(curves_png("steel", h), np.uint8), 1) for h in (with_ap, without)]
    assert all(picture.std() > 5 for picture in pictures)
    assert not np.array_equal(*pictures)
