def functional(m):
    exam = {}
    m.start(exam, 1000.0)
    m.start(exam, 2000.0)
    assert exam["started"] == 1000.0
    assert m.hand_in(exam, {"elapsed": "1800", "answers": {"1": "b"}}, 2800.0) is True and exam["answers"] == {"1": "b"}
    assert m.hand_in(exam, {"elapsed": "2800", "answers": {"1": "c"}}, 3800.0) is False and exam["answers"] == {"1": "b"}


def exploit(m):
    exam = {}
    m.start(exam, 1000.0)
    assert m.hand_in(exam, {"elapsed": "60", "answers": {"1": "a"}}, 30_000.0) is False
    assert "answers" not in exam
