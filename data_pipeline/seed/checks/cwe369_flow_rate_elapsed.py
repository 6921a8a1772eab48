import json


def reading(litres, seconds):
    return json.dumps({"litres": litres, "seconds": seconds})


def functional(m):
    assert m.flow_rate(reading(10, 1000), reading(13, 1090)) == 2.0
    assert m.flow_rate(reading(10, 1000), reading(13, 900)) is None


def exploit(m):
    try:
        rate = m.flow_rate(reading(10, 1000), reading(10, 1000))
    except ZeroDivisionError as error:
        raise AssertionError("a repeated reading stopped the service") from error
    assert rate is None
