import asyncio
import hashlib
import threading

from doubles import Stream


def functional(m):
    m.derive = lambda password, salt: hashlib.sha256(salt + password.encode()).digest()
    accounts = {"ada": (b"salt", m.derive("correct horse", b"salt"))}
    for line, name, answer in (
        (b"ada correct horse\r\n", "ada", b"welcome\n"),
        (b"ada wrong\n", None, b"denied\n"),
        (b"eve\n", None, b"denied\n"),
    ):
        stream = Stream(line)
        assert asyncio.run(m.login(stream, stream, accounts)) == name and stream.written == answer


def exploit(m):
    others = threading.Event()
    served = []

    def derive(password, salt):
        served.append(others.wait(1.5))
        return b""

    async def chat():
        await asyncio.sleep(0.05)
        others.set()

    async def both():
        stream = Stream(b"eve x\n")
        await asyncio.gather(m.login(stream, stream, {}), chat())

    m.derive = derive
    asyncio.run(both())
    assert served == [True]
