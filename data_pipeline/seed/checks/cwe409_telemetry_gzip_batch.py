import gzip
import json


def batch(readings):
    return gzip.compress(json.dumps({"readings": readings}).encode())


def functional(m):
    assert m.decode_batch(batch([1.5, 2.5])) == [1.5, 2.5]


def exploit(m):
    try:
        readings = m.decode_batch(batch("0" * 50_000_000))
    except ValueError:
        return
    assert len(readings) <= m.MAX_BYTES
