import io


def ask(m, host, address):
    body = f"address={address}".encode()
    environ = {"HTTP_HOST": host, "CONTENT_LENGTH": str(len(body)), "wsgi.input": io.BytesIO(body)}
    tokens, mails = {}, []
    answer = m.send_reset(environ, {"ada@example.org": 7}, tokens, lambda to, text: mails.append((to, text)))
    return answer, tokens, mails


def functional(m):
    answer, tokens, ((to, text),) = ask(m, "choir.example", "Ada%40example.org")
    ((token, (member, _)),) = tokens.items()
    assert to == "ada@example.org" and member == 7 and f"https://choir.example/reset?token={token}" in text
    assert ask(m, "choir.example", "bo@example.org") == (answer, {}, [])


def exploit(m):
    _, _, ((_, text),) = ask(m, "evil.example", "ada%40example.org")
    assert "evil.example" not in text
