import struct

import numpy as np


def height_map(width, height, *runs):
    return b"HMAP" + struct.pack("<II", width, height) + b"".join(struct.pack("<IH", *run) for run in runs)


def functional(m):
    heights = m.read_height_map(height_map(3, 2, (2, 700), (3, 800)))
    assert heights.tolist() == [[700, 700, 800], [800, 800, 0]]
    for data in (b"", b"HMAP", height_map(0, 5), height_map(1, 1)[:-1], height_map(1, 1) + b"x"):
        try:
            m.read_height_map(data)
        except ValueError:
            continue
        raise AssertionError(data)


def exploit(m):
    asked, zeros = [], np.zeros
    np.zeros = lambda size, dtype: asked.append(size) or zeros(min(size, 10), dtype)
    try:
        m.read_height_map(height_map(100_000, 100_000))
    except ValueError:
        pass
    assert all(size < 100_000_000 for size in asked)
