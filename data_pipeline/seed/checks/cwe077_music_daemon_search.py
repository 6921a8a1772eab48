class Player:
    """Answers each line that is written as the daemon would."""

    def __init__(self):
        self.commands = []

    def write(self, text):
        self.commands += text.split("\n")[:-1]

    def flush(self):
        pass

    def __iter__(self):
        known = self.commands[0] == 'find artist "The \\"Quoted\\""'
        return iter(["file: a.ogg\n", "Title: First\n", "Title: Second\n", "OK\n"] if known else ["ACK [5@0] {find}\n"])


def functional(m):
    assert m.titles_by(Player(), 'The "Quoted"') == ["First", "Second"]
    try:
        m.titles_by(Player(), "nobody")
    except RuntimeError:
        return
    raise AssertionError("an error passed as an answer")


def exploit(m):
    player = Player()
    try:
        m.titles_by(player, "x\nclear\nstop")
    except (ValueError, RuntimeError):
        pass
    assert len(player.commands) <= 1
