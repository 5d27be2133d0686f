"""Keep freed memory for the next step instead of handing it back to the kernel.

Per-sample gradients are tens of megabytes that are freed and asked for again in every step. glibc returns
blocks of that size to the kernel, and getting them back, page by page, costs as much as computing them: the
DP step of the CNN student takes half as long again. See mallopt(3).
"""

import ctypes
import functools

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3
_KEPT_BYTES = 1 << 30


@functools.lru_cache(maxsize=1)
def keep_freed_memory() -> bool:
    """Ask the C library to keep up to a gigabyte of freed memory; False where it is not glibc."""
    try:
        mallopt = ctypes.CDLL(None).mallopt
    except (AttributeError, OSError, TypeError):
        return False
    return bool(mallopt(_TRIM_THRESHOLD, _KEPT_BYTES) and mallopt(_MMAP_THRESHOLD, _KEPT_BYTES))
