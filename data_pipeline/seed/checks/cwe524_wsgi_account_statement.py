def get(m, account):
    m.STATEMENTS["DE1"] = "1 March: 12.50 €"
    answer = []
    environ = {} if account is None else {"bank.account": account}
    body = b"".join(m.statement_app(environ, lambda status, headers: answer.extend([status[:3], dict(headers)])))
    return answer[0], answer[1], body.decode()


def functional(m):
    status, headers, body = get(m, "DE1")
    assert status == "200" and body == "1 March: 12.50 €" and headers["Content-Length"] == str(len(body.encode()))
    assert get(m, None)[0] == "401" and get(m, "DE2")[0] == "404"


def exploit(m):
    _, headers, _ = get(m, "DE1")
    rules = {rule.strip() for rule in headers.get("Cache-Control", "").split(",")}
    assert "no-store" in rules and "public" not in rules
