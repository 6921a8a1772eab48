def functional(m):
    cookies = m.RoleCookie(b"k" * 32)
    assert cookies.role_of(cookies.make("ada", "editor")) == "editor"
    assert cookies.role_of(cookies.make("bo|admin", "member")) == "member"
    assert cookies.role_of("") == cookies.role_of("admin") == "guest"


def exploit(m):
    cookies = m.RoleCookie(b"k" * 32)
    real = cookies.make("eve", "member")
    assert cookies.role_of(real.replace("member", "admin")) == "guest"
    assert cookies.role_of("eve|admin|") == "guest"
