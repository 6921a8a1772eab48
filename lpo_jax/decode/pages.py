"""Who holds which page of a cache: on the host, for one part of the devices' pages.

A page that holds the beginning of a prompt has a name, made of all the tokens up to its end. Whoever comes with the same beginning holds the same
page. Such a page stays when its last holder leaves, until its memory is needed: the one left longest ago goes first.
"""

from collections import OrderedDict
from collections.abc import Hashable


class Pages:
    """`count` pages, numbered from 0."""

    def __init__(self, count: int):
        self.count = count
        self._free = list(range(count))[::-1]
        self._holders: dict[int, int] = {}  # of each page that is held
        self._idle: OrderedDict[int, None] = OrderedDict()  # named and filled, held by nobody; the one left longest ago in front
        self._names: dict[int, Hashable] = {}
        self._by_name: dict[Hashable, int] = {}
        self._filled: set[int] = set()  # of those with a name

    @property
    def available(self) -> int:
        """How many can be taken."""
        return len(self._free) + len(self._idle)

    @property
    def held(self) -> int:
        return len(self._holders)

    def named(self, name: Hashable) -> int | None:
        """The page of this name, if there is one."""
        return self._by_name.get(name)

    def is_idle(self, page: int) -> bool:
        """Is it counted among the available ones?"""
        return page in self._idle

    def take(self, name: Hashable | None = None) -> int:
        """Hold a page, of this name from now on; one must be available, and none have the name."""
        if self._free:
            page = self._free.pop()
        else:
            page, _ = self._idle.popitem(last=False)
            self._forget(page)
        self._holders[page] = 1
        if name is not None:
            assert name not in self._by_name
            self._names[page], self._by_name[name] = name, page
        return page

    def hold(self, page: int) -> None:
        """Hold a page that has a name once more."""
        assert page in self._names
        self._idle.pop(page, None)
        self._holders[page] = self._holders.get(page, 0) + 1

    def leave(self, page: int) -> None:
        """Hold a page no longer."""
        self._holders[page] -= 1
        if self._holders[page]:
            return
        del self._holders[page]
        if page in self._filled:
            self._idle[page] = None
        else:
            self._forget(page)
            self._free.append(page)

    def fill(self, page: int) -> None:
        """A named page holds its tokens from now on."""
        assert page in self._names
        self._filled.add(page)

    def is_filled(self, page: int) -> bool:
        return page in self._filled

    def _forget(self, page: int) -> None:
        name = self._names.pop(page, None)
        if name is not None:
            del self._by_name[name]
        self._filled.discard(page)
