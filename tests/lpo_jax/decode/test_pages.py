"""Pages of a cache: none is lost, none is shared that shouldn't be, and rows that come, grow and go never hold more than there is."""

from collections import Counter

import numpy as np
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, precondition, rule

from lpo_jax.decode.pages import Pages
from lpo_jax.decode.tables import Tables, chunk_widths
from lpo_jax.model.attention import NO_PAGE

SLOTS, LONGEST = 4, 24


class Device:
    """What the devices would hold: of each page the tokens that its keys and values follow from, slot by slot."""

    def __init__(self, tables):
        self.tables = tables
        self.pages = [[[None] * SLOTS for _ in range(pool.count)] for pool in tables.pools]

    def prefill(self, each=1):
        while (chunks := self.tables.next_chunks(each)) is not None:
            assert chunks.tokens.shape[1] in chunk_widths(SLOTS) and not (chunks.starts % SLOTS).any()
            for i, start in enumerate(chunks.starts):
                if chunks.table[i, 0] != NO_PAGE:
                    page, before = chunks.table[i, start // SLOTS], chunks.table[i, : start // SLOTS]
                    front = self.pages[i // each][before[-1]][-1] if start else (("adapter", int(chunks.adapters[i])),)
                    for slot, token in enumerate(chunks.tokens[i]):
                        front = (*front, int(token))
                        self.pages[i // each][page][slot] = front

    def begin(self, row):
        copy = self.tables.begin(row)
        for part, (source, target) in enumerate(zip(*copy, strict=True)):
            if target != NO_PAGE:
                self.pages[part][target] = list(self.pages[part][source])


class Machine(RuleBasedStateMachine):
    """Rows come with prompts of common beginnings, are read, begin, grow, are put back or leave, in two parts of few pages."""

    def __init__(self):
        super().__init__()
        self.tables = Tables(6, 2, 10, SLOTS, LONGEST)
        self.device, self.texts, self.begun = Device(self.tables), {}, set()

    @rule(row=st.integers(0, 5), kind=st.integers(0, 2), length=st.integers(1, 20), adapter=st.integers(0, 1), ahead=st.integers(0, 4))
    def admit(self, row, kind, length, adapter, ahead):
        if row in self.texts:
            return
        prompt = [kind] * min(length, 9) + [9] * (length - 9)
        alone = not any(self.tables.part(other) == self.tables.part(row) for other in self.texts)
        if self.tables.admit(row, prompt, adapter, min(length + 1 + ahead, LONGEST)):
            self.texts[row] = prompt, adapter
        else:
            assert not alone, "a text that fits alone was refused"

    @rule(each=st.integers(1, 3))
    def prefill(self, each):
        self.device.prefill(each)

    @rule()
    def begin(self):
        for row in self.tables.ready():
            self.device.begin(row)
            self.begun.add(row)
            self.check(row)

    @precondition(lambda self: self.begun)
    @rule(data=st.data(), more=st.integers(1, 9))
    def grow(self, data, more):
        """The row goes on writing, from its prompt's last token on; the latest of its part make room."""
        row = data.draw(st.sampled_from(sorted(self.begun)))
        (prompt, _), part = self.texts[row], self.tables.part(row)
        length = min(len(prompt) + more, LONGEST)
        while row in self.texts and not self.tables.grow(row, length):
            self.leave_row(self.tables.latest(part))
        if row in self.texts:
            table = self.tables.table[row]
            for position in range(len(prompt) - 1, length):
                self.device.pages[part][table[position // SLOTS]][position % SLOTS] = ("own", row, position)
            self.check(row)

    @precondition(lambda self: self.texts)
    @rule(data=st.data())
    def leave(self, data):
        self.leave_row(data.draw(st.sampled_from(sorted(self.texts))))

    def leave_row(self, row):
        self.tables.leave(row)
        del self.texts[row]
        self.begun.discard(row)

    def check(self, row):
        """Where a row has begun, its prompt is in its pages."""
        (prompt, adapter), part = self.texts[row], self.tables.part(row)
        for position in range(len(prompt) - 1):
            page = self.tables.table[row, position // SLOTS]
            assert self.device.pages[part][page][position % SLOTS] == (("adapter", adapter), *prompt[: position + 1])

    @invariant()
    def everything_is_somewhere(self):
        for row in self.begun:
            self.check(row)
        for part, pool in enumerate(self.tables.pools):
            check_pool(self.tables, part, pool)


def check_pool(tables, part, pool):
    """Each page is free, idle or held by so many texts as say so; what one writes to it has for itself."""
    holders, own = Counter(), Counter()
    for row, text in tables._texts.items():
        if tables.part(row) == part:
            holders.update(text.shared)
            own.update(text.own)
    assert not own.keys() & holders.keys() and max(own.values(), default=1) == 1
    assert pool._holders == holders | own
    free, idle = set(pool._free), set(pool._idle)
    assert len(free) == len(pool._free) and not free & idle and not (free | idle) & pool._holders.keys()
    assert len(free) + len(idle) + pool.held == pool.count
    assert idle <= pool._filled <= pool._names.keys() == set(pool._by_name.values())


TestMachine = Machine.TestCase
TestMachine.settings = settings(max_examples=60, stateful_step_count=40, deadline=None)


def simulate(requests, rows, parts, pages, seed):
    """Requests of random lengths with cancels through the tables, as a session does it; (how many were put back, most pages held)."""
    rng = np.random.default_rng(seed)
    tables = Tables(rows, parts, pages, SLOTS, 64)
    waiting, work, done, put_back, most = list(range(requests)), {}, set(), 0, 0
    prompts = {i: [int(rng.integers(3))] * int(rng.integers(1, 30)) + rng.integers(9, size=rng.integers(1, 8)).tolist() for i in waiting}
    new = {i: int(rng.integers(1, 65 - len(prompts[i]))) for i in waiting}
    cancelled = set(np.flatnonzero(rng.random(requests) < 0.1).tolist())
    while waiting or work:
        for row in range(rows):
            if waiting and row not in work and tables.admit(row, prompts[waiting[0]], 0, len(prompts[waiting[0]]) + 1):
                work[row] = [waiting.pop(0), 0]
        for _ in range(3):
            tables.next_chunks(1)
        begun = [row for row in tables.ready() if tables.begin(row)]
        for row in begun:
            work[row][1] = 1
        for row in tables.in_order():
            if row not in work or not work[row][1]:
                continue
            request, length = work[row]
            length = min(length + 8, new[request])
            while row in work and not tables.grow(row, len(prompts[request]) + length):
                latest = tables.latest(tables.part(row))
                waiting.insert(0, work.pop(latest)[0])
                tables.leave(latest)
                put_back += 1
            if row in work:
                work[row][1] = length
        most = max(most, *(pool.held for pool in tables.pools))
        for row, (request, length) in list(work.items()):
            if length == new[request] or (request in cancelled and rng.random() < 0.3):
                done.add(request)
                tables.leave(row)
                del work[row]
    for part, pool in enumerate(tables.pools):
        assert pool.held == 0 and pool.available == pool.count
        check_pool(tables, part, pool)
    assert done == set(range(requests))
    return put_back, most


@pytest.mark.parametrize("requests", [300, pytest.param(10_000, marks=pytest.mark.slow)])
def test_requests_through_few_pages(requests):
    put_back, most = simulate(requests, 8, 2, 20, 0)
    assert put_back > 0 and most <= 20
    assert simulate(requests, 8, 2, 4 * 17, 1)[0] == 0  # with pages for all, nobody goes back


def test_a_beginning_is_kept_until_its_memory_is_needed():
    pages = Pages(3)
    first = pages.take("a")
    pages.fill(first)
    pages.leave(first)
    assert pages.available == 3 and pages.named("a") == first
    others = [pages.take(), pages.take()]
    pages.hold(first)
    assert pages.available == 0 and pages.named("a") == first
    pages.leave(first)
    assert pages.take() == first and pages.named("a") is None
    pages.leave(others[0])
    unfilled = pages.take("b")
    pages.leave(unfilled)
    assert pages.named("b") is None, "nobody has read it"
