import io
import json
import os
import pickle
from types import SimpleNamespace

from doubles import module

REQUEST = SimpleNamespace(files={})


class Flask:
    def __init__(self, name):
        pass

    def post(self, rule):
        return lambda function: function


class Payload:
    def __reduce__(self):
        return os.mkdir, ("owned",)


module("flask", Flask=Flask, request=REQUEST, jsonify=dict)
module("joblib", load=pickle.load)  # joblib's files are pickles


def upload(m, data):
    REQUEST.files = {"baseline": SimpleNamespace(stream=io.BytesIO(data))}
    return m.upload_baseline()


def functional(m):
    values = {"door": 1.5, "roof": 2}
    assert upload(m, pickle.dumps(values) if hasattr(m, "joblib") else json.dumps(values).encode()) == {"stored": 2}
    assert m.BASELINE == {"door": 1.5, "roof": 2.0}


def exploit(m):
    try:
        upload(m, pickle.dumps(Payload()))
    except (ValueError, AttributeError):
        pass
    assert not os.path.exists("owned")
