CLAIMS = {"sub": "ada", "exp": 1000, "aud": ["reports", "billing"]}


def functional(m):
    assert m.subject(CLAIMS, "billing", 1029) == "ada"
    assert m.subject({**CLAIMS, "aud": "billing"}, "billing", 0) == "ada"
    for claims in ({**CLAIMS, "exp": 10}, {**CLAIMS, "aud": []}, {**CLAIMS, "aud": "reports"}, {"sub": "ada"}):
        try:
            m.subject(claims, "billing", 900)
        except m.TokenError:
            continue
        raise AssertionError(claims)


def exploit(m):
    try:
        m.subject({**CLAIMS, "aud": "billing-sandbox"}, "billing", 0)
    except m.TokenError:
        return
    raise AssertionError("a token for another service")
