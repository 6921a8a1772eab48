from doubles import module

open_connections = []


class InvalidCredentials(Exception):
    pass


class Connection:
    """A server that permits unauthenticated binds, as the standard describes them."""

    def __init__(self, uri):
        open_connections.append(self)

    def set_option(self, option, value):
        pass

    def simple_bind_s(self, who, cred):
        if cred and (who, cred) != ("uid=ada,ou=people,dc=lab,dc=example", "pearl"):
            raise InvalidCredentials(who)

    def unbind_s(self):
        open_connections.remove(self)


module("ldap", initialize=Connection, INVALID_CREDENTIALS=InvalidCredentials, OPT_NETWORK_TIMEOUT=0x5005)


def functional(m):
    assert m.log_in("ada", "pearl") == {"name": "ada"}
    assert m.log_in("ada", "coral") is None
    assert m.log_in("ada,ou=x", "pearl") is None
    assert not open_connections


def exploit(m):
    assert m.log_in("ada", "") is None
