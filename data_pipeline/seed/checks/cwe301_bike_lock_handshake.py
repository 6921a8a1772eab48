KEY = b"0123456789abcdef0123456789abcdef"


def functional(m):
    lock, phone = m.Party(KEY, "lock", "phone"), m.Party(KEY, "phone", "lock")
    answer = phone.answer(lock.challenge())
    assert lock.accepts(answer) and not lock.accepts(answer)
    assert phone.accepts(lock.answer(phone.challenge()))
    stranger = m.Party(b"x" * 32, "phone", "lock")
    assert not lock.accepts(stranger.answer(lock.challenge()))


def exploit(m):
    lock = m.Party(KEY, "lock", "phone")
    nonce = lock.challenge()
    assert not lock.accepts(lock.answer(nonce))
