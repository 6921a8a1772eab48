from xmlrpc.client import Fault, dumps, loads


def call(dispatcher, name, *arguments):
    return loads(dispatcher._marshaled_dispatch(dumps(arguments, name)))[0][0]


def functional(m):
    house = m.Greenhouse()
    dispatcher = m.make_dispatcher(house)
    assert call(dispatcher, "set_target", 21.5) == 21.5 == house.target
    assert call(dispatcher, "set_target", 99) == 30.0
    assert call(dispatcher, "temperature") == 30.0
    house.log.append(19.0)
    assert call(dispatcher, "temperature") == 19.0


def exploit(m):
    house = m.Greenhouse()
    house.log.append(19.0)
    for name, arguments in (("erase_log", ()), ("load_firmware", ("/tmp/evil.bin",))):
        try:
            call(m.make_dispatcher(house), name, *arguments)
        except Fault:
            pass
    assert house.log == [19.0] and house.firmware == "builtin"
