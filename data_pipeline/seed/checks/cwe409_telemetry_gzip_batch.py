import gzip
import json


def functional(m):
    readings = [{"t": 1, "v": 0.5}]
    assert m.decode_batch(gzip.compress(json.dumps({"readings": readings}).encode())) == readings


def exploit(m):
    packed = gzip.compress(b'{"readings": [' + b" " * 40_000_000 + b"]}")
    try:
        m.decode_batch(packed)
    except ValueError:
        return
    raise AssertionError("a small batch filled the memory")
