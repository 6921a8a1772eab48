def functional(m):
    assert m.choose_suite(b"aes128-gcm") == "aes128-gcm"
    assert m.choose_suite(b"rc4-md5") == "rc4-md5"
    assert m.choose_suite(b"serpent CHACHA20-poly1305 aes256-gcm") == "chacha20-poly1305"
    for offer in (b"serpent", b"", b"aes128-gcm " * 200):
        try:
            m.choose_suite(offer)
        except ConnectionError:
            continue
        raise AssertionError(offer)


def exploit(m):
    assert m.choose_suite(b"rc4-md5 aes128-gcm aes256-gcm") == "aes256-gcm"
    assert m.choose_suite(b"rc4-md5 chacha20-poly1305") == "chacha20-poly1305"
