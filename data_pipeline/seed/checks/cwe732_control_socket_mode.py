import os
import socket


def functional(m):
    for _ in range(2):
        with m.open_control_socket("control.sock") as server, socket.socket(socket.AF_UNIX) as client:
            client.connect("control.sock")
            connection, _address = server.accept()
            client.sendall(b"warmer")
            assert connection.recv(100) == b"warmer"
            connection.close()


def exploit(m):
    os.umask(0o022)
    m.open_control_socket("control.sock").close()
    assert os.stat("control.sock").st_mode & 0o007 == 0
