import json


def functional(m):
    queue = []
    assert m.queue_order('{"account": "XX12SAVE", "cents": 2500}', queue) == 2500
    assert m.queue_order('{"account": "XX12SAVE", "cents": 1, "note": "bike"}', queue) == 1
    assert [(order.account, order.note) for order in queue] == [("XX12SAVE", ""), ("XX12SAVE", "bike")]
    for body in ("[]", "{"):
        try:
            m.queue_order(body, queue)
        except ValueError:
            continue
        raise AssertionError(body)


def exploit(m):
    good = {"account": "XX12SAVE", "cents": 100}
    for wrong in ({"cents": -50_000}, {"cents": "1e9"}, {"account": "XX12; all"}, {"note": "x" * 1000}):
        queue = []
        try:
            m.queue_order(json.dumps(good | wrong), queue)
        except ValueError:
            pass
        assert queue == [], wrong
