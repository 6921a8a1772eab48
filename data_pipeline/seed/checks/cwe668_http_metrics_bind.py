import io
import ipaddress


class Socket:
    def __init__(self):
        self.sent = b""

    def makefile(self, *mode):
        return io.BytesIO(b"GET /metrics HTTP/1.0\r\n\r\n")

    def sendall(self, data):
        self.sent += data


def functional(m):
    m.COUNTERS["jobs_done"] = 3
    sock = Socket()
    m.MetricsHandler(sock, ("127.0.0.1", 4000), None)
    assert b" 200 " in sock.sent and sock.sent.endswith(b"\r\n\r\njobs_done 3\njobs_failed 0\n")


def exploit(m):
    places = []

    class Server:
        def __init__(self, address, handler):
            places.append(address)

        def serve_forever(self):
            return None

    m.ThreadingHTTPServer = Server
    m.serve_metrics(9100)
    assert places[0][1] == 9100 and ipaddress.ip_address(places[0][0]).is_loopback
