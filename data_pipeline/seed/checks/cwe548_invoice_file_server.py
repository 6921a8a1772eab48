import os

from doubles import Socket


def get(m, path):
    os.makedirs("invoices", exist_ok=True)
    with open("invoices/8f3a6c1d.pdf", "wb") as file:
        file.write(b"%PDF-1.7 invoice 17")
    sock = Socket(f"GET {path} HTTP/1.0\r\n\r\n".encode())
    m.InvoiceHandler(sock, ("192.0.2.7", 4000), None)
    return sock.sent


def functional(m):
    answer = get(m, "/8f3a6c1d.pdf")
    assert b" 200 " in answer and answer.endswith(b"%PDF-1.7 invoice 17") and b"Cache-Control: no-store" in answer
    assert b" 404 " in get(m, "/other.pdf")


def exploit(m):
    assert b"8f3a6c1d" not in get(m, "/")
