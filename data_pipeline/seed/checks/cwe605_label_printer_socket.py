import socket
import threading


def functional(m):
    listener = m.open_port("127.0.0.1", 0)

    def send():
        with socket.create_connection(listener.getsockname()) as client:
            client.sendall(b"SHELF 7")

    thread = threading.Thread(target=send)
    thread.start()
    assert m.next_job(listener) == b"SHELF 7"
    thread.join()
    port = listener.getsockname()[1]
    listener.close()
    m.open_port("127.0.0.1", port).close()


def exploit(m):
    listener = m.open_port("127.0.0.1", 0)
    for option in (None, socket.SO_REUSEADDR, socket.SO_REUSEPORT):
        other = socket.socket()
        if option is not None:
            other.setsockopt(socket.SOL_SOCKET, option, 1)
        try:
            other.bind(listener.getsockname())
            other.listen()
        except OSError:
            continue
        raise AssertionError("a second listener on the port")
