import asyncio


def functional(m):
    async def talk():
        requests = m.Requests(lambda number, text: requests.answer(number, f"{number}:{text}"))
        assert await requests.ask("level", 30) == "1:level"
        assert await requests.ask("battery", 30) == "2:battery"
        requests.answer(99, "late")
        assert requests.pending == {}

    asyncio.run(talk())


def exploit(m):
    async def talk():
        requests = m.Requests(lambda number, text: None)
        for _ in range(20):
            try:
                await requests.ask("level", 0.001)
            except TimeoutError:
                pass
        assert len(requests.pending) == 0

    asyncio.run(talk())
