"""How fast a processor computes and decodes, by its own clock: that others use the processors too changes little."""

from __future__ import annotations

import io
import time
from collections.abc import Callable

from detronome.doctor.findings import Facts

__all__ = ["decoding", "matrices"]

_BUDGET_S = 0.4
_MOST = 400
_HEIGHT, _WIDTH = 480, 640
_SIZE = 512


def decoding() -> Facts:
    """Decode a picture of the size of a COCO photo again and again, in one thread."""
    import numpy as np
    import simplejpeg

    # Noise at several scales has about as many bytes as a photo.
    generator = np.random.default_rng(0)
    picture = np.zeros((_HEIGHT, _WIDTH, 3))
    for scale in (2, 8, 32):
        noise = generator.normal(0, 4 * scale**0.5, (_HEIGHT // scale, _WIDTH // scale, 3))
        picture += noise.repeat(scale, 0).repeat(scale, 1)
    pixels = np.ascontiguousarray(np.clip(picture + 128, 0, 255).astype(np.uint8))
    jpeg = simplejpeg.encode_jpeg(pixels, quality=90, colorspace="RGB")
    facts = {"bytes": len(jpeg), **_rate(lambda: simplejpeg.decode_jpeg(jpeg, "RGB", strict=True))}
    try:
        from PIL import Image
    except ImportError:
        return facts
    slow = _rate(lambda: Image.open(io.BytesIO(jpeg)).load())
    return facts | {"pillow_per_s": slow["per_cpu_s"]}


def _rate(call: Callable[[], object]) -> Facts:
    """Return calls by second of the processor."""
    call()
    begin, begin_cpu, count = time.perf_counter(), time.process_time(), 0
    while count < _MOST and time.perf_counter() - begin < _BUDGET_S:
        call()
        count += 1
    return {"per_cpu_s": count / max(1e-9, time.process_time() - begin_cpu)}


def matrices() -> Facts:
    """Multiply matrices of float32, in one thread: the variables of the process say so."""
    import numpy as np

    a = np.ones((_SIZE, _SIZE), dtype=np.float32)
    found = _rate(lambda: a @ a)
    return {"gflops": 2 * _SIZE**3 * found["per_cpu_s"] / 1e9}
