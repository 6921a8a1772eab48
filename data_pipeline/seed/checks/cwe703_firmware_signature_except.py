import logging

from doubles import module

logging.disable(logging.CRITICAL)


class InvalidSignature(Exception):
    pass


class Key:
    def verify(self, signature, image):
        if signature != b"signed " + image:
            raise InvalidSignature


module("cryptography.exceptions", InvalidSignature=InvalidSignature)


def functional(m):
    assert m.is_genuine(Key(), b"image", b"signed image") is True


def exploit(m):
    assert not m.is_genuine(Key(), b"changed", b"signed image")
