"""Milliseconds that one image takes a graph, as the studies of speed and of size count them."""

import time
from collections.abc import Mapping
from statistics import median

import numpy as np
import onnxruntime

from fedward.server.export import INPUT

_WARM_UP = 5  # turns that are not counted


def in_turns(
    sessions: Mapping[str, onnxruntime.InferenceSession], image: np.ndarray, turns: int
) -> dict[str, float]:
    """Median milliseconds of this thread's CPU time for `image`, float32 (1, channels, height, width).

    The sessions take turns, so that another process on the machine slows all of them or none.
    """
    times: dict[str, list[float]] = {name: [] for name in sessions}
    for turn in range(turns + _WARM_UP):
        for name, session in sessions.items():
            spent = _timed(session, image)
            if turn >= _WARM_UP:
                times[name].append(spent)
    return {name: median(own) for name, own in times.items()}


def _timed(session: onnxruntime.InferenceSession, image: np.ndarray) -> float:
    started = time.thread_time()
    session.run(None, {INPUT: image})
    return 1000 * (time.thread_time() - started)
