"""The images of late, in memory: the page shows each part as it comes, also the good ones that nobody keeps."""

from __future__ import annotations

from collections import OrderedDict


class RecentImages:
    """Images by their id, the oldest dropped beyond `max_bytes` together."""

    def __init__(self, max_bytes: int) -> None:
        self._max_bytes = max_bytes
        self._images: OrderedDict[str, bytes] = OrderedDict()
        self._bytes = 0

    def put(self, image_id: str, content: bytes) -> None:
        """Remember one more."""
        self._bytes += len(content) - len(self._images.pop(image_id, b""))
        self._images[image_id] = content
        while self._bytes > self._max_bytes:
            self._bytes -= len(self._images.popitem(last=False)[1])

    def get(self, image_id: str) -> bytes | None:
        """The image, if it is one of the last."""
        return self._images.get(image_id)
