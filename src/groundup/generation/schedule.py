"""Schedule: which requests compute which of their tokens next, and in which pages. Plain Python, no tensors.

The cache of keys and values is cut into pages of a few tokens (Kwon et al. 2023, arXiv:2309.06180). A request holds the
pages of its tokens; full ones whose tokens another request begins with too are held by both. In each step every request
that writes computes one token, and what is left of the step's tokens goes to prompts, chunk by chunk.
"""

from collections import OrderedDict, deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, TypeVar

from groundup.errors import SettingsError


@dataclass(eq=False)
class Scheduled:
    """What a schedule knows of a request."""

    ids: list[int]
    """What it reads: its prompt, and what was chosen so far."""
    proposed: list[int] = field(default_factory=list)
    """Guesses of what comes after `ids`, which are computed with them."""
    held: int = 0
    """The first so many of `ids` have their keys and values in the cache."""
    pages: list[int] = field(default_factory=list)
    """Those of its tokens, in order."""
    shared: int | None = None
    """The first so many of `ids`, all if None, may be taken from others that begin alike; the last of them may not, as
    its scores are wanted."""

    @property
    def unread(self) -> int:
        return len(self.ids) + len(self.proposed) - self.held


R = TypeVar("R", bound=Scheduled)


@dataclass(frozen=True, eq=False)
class Work(Generic[R]):
    """Tokens that a request computes in this step."""

    request: R
    first: int
    """Position of the first."""
    ids: list[int]

    @property
    def end(self) -> int:
        return self.first + len(self.ids)


class Pages:
    """Which pages are free, which are held by how many requests, and what is in those that are full.

    Args:
        count: pages that there are.
        size: tokens of a page.

    >>> pages = Pages(count=3, size=2)
    >>> mine = pages.take(2)
    >>> pages.remember(mine, [5, 6, 7, 8], held=4)
    >>> pages.hold_known([5, 6, 9, 9]) == mine[:1]  # the first two tokens are known
    True
    >>> pages.release(mine)
    >>> pages.held
    1
    """

    def __init__(self, count: int, size: int) -> None:
        self.count, self.size = count, size
        self._free = OrderedDict.fromkeys(range(count))
        """In the order in which they are taken: what was of use last is forgotten last."""
        self._holders = [0] * count
        self._known: dict[tuple[int, tuple[int, ...]], int] = {}
        """Number of what comes before (0 for nothing) and the tokens of a page → the page."""
        self._number: dict[int, int] = {}
        """Page → a number that no other content had or will have."""
        self._key: dict[int, tuple[int, tuple[int, ...]]] = {}
        self._numbers = 0

    @property
    def held(self) -> int:
        return self.count - len(self._free)

    def take(self, n: int) -> list[int] | None:
        """Hold `n` free pages, and forget what was in them; None if there are not so many."""
        if n > len(self._free):
            return None
        taken = [self._free.popitem(last=False)[0] for _ in range(n)]
        for page in taken:
            self._holders[page] = 1
        self.forget(taken)
        return taken

    def forget(self, pages: Iterable[int]) -> list[int]:
        """Those of the pages that nobody else holds; what is in them is not known any more."""
        own = [page for page in pages if self._holders[page] == 1]
        for page in own:
            if page in self._key:
                del self._known[self._key.pop(page)], self._number[page]
        return own

    def release(self, pages: Sequence[int]) -> None:
        """Let go of pages, the last first: what is nearer to the beginning is of use to more."""
        for page in reversed(pages):
            self._holders[page] -= 1
            if not self._holders[page]:
                self._free[page] = None

    def hold_known(self, ids: Sequence[int]) -> list[int]:
        """Hold the pages that have the beginning of `ids`, in order: full ones, but for the last token, which has to be
        computed for what comes after it."""
        found: list[int] = []
        before = 0
        for tokens in self._full(ids, len(ids) - 1):
            page = self._known.get((before, tokens))
            if page is None:
                break
            before = self._number[page]
            self._holders[page] += 1
            self._free.pop(page, None)
            found.append(page)
        return found

    def remember(self, pages: Sequence[int], ids: Sequence[int], held: int) -> None:
        """Note what is in the full ones of a request's pages, of whose `ids` the first `held` are computed."""
        before = 0
        for page, tokens in zip(pages, self._full(ids, held), strict=False):
            key = before, tokens
            if page not in self._number and key not in self._known:
                self._numbers += 1
                self._known[key], self._key[page], self._number[page] = page, key, self._numbers
            before = self._number[self._known.get(key, page)]

    def _full(self, ids: Sequence[int], end: int) -> Iterator[tuple[int, ...]]:
        return (tuple(ids[at : at + self.size]) for at in range(0, end - self.size + 1, self.size))


class Schedule(Generic[R]):
    """Requests that wait, and those that run.

    Args:
        pages: of the cache.
        most_requests: that run together.
        most_tokens: of a step; prompts that are longer take several.

    >>> schedule = Schedule(Pages(count=8, size=4), most_requests=2, most_tokens=6)
    >>> requests = [Scheduled([1, 2, 3]), Scheduled([4, 5, 6, 7]), Scheduled([8])]
    >>> for request in requests:
    ...     schedule.add(request)
    >>> [(work.request.ids[0], work.ids) for work in schedule.plan()]
    [(1, [1, 2, 3]), (4, [4, 5, 6])]
    """

    def __init__(self, pages: Pages, most_requests: int, most_tokens: int) -> None:
        self.pages, self.most_requests, self.most_tokens = pages, most_requests, most_tokens
        self.waiting: deque[R] = deque()
        self.running: list[R] = []
        """In the order in which they came."""

    def add(self, request: R) -> None:
        """Let it wait for its turn.

        Raises:
            SettingsError: more tokens than there are pages for.
        """
        if self._pages_of(request.unread) > self.pages.count:
            raise SettingsError(
                f"a request of {request.unread:,} tokens does not fit the cache of {self.pages.count:,} pages of "
                f"{self.pages.size}: give the engine more tokens"
            )
        self.waiting.append(request)

    def remove(self, request: R) -> None:
        """It is done, or not wanted any more: its pages are let go of."""
        if request in self.running:
            self.running.remove(request)
        elif request in self.waiting:
            self.waiting.remove(request)
        self.forget(request)

    def forget(self, request: R) -> None:
        """Let go of its pages; its tokens are to be computed again, if it goes on."""
        self.pages.release(request.pages)
        request.pages, request.held = [], 0

    def plan(self) -> list[Work[R]]:
        """The work of one step. A request that finds no page takes those of the last to come, which waits again."""
        works: list[Work[R]] = []
        left = self.most_tokens
        writing_first = sorted(self.running, key=lambda request: request.unread > 1 + len(request.proposed))
        for request in writing_first:
            if left and request in self.running and self._find_room(request, min(request.unread, left), works):
                works.append(_work(request, min(request.unread, left)))
                left -= len(works[-1].ids)
        passed: list[R] = []
        while left and self.waiting and len(self.running) < self.most_requests:
            request = self.waiting[0]
            shared = request.ids[: request.shared]
            request.pages = self.pages.hold_known(shared)
            request.held = len(request.pages) * self.pages.size
            if self._is_coming(shared, request.held + self.pages.size):
                self.forget(request)
                passed.append(self.waiting.popleft())
                continue
            more = self.pages.take(self._pages_of(request.held + request.unread) - len(request.pages))
            if more is None:
                self.forget(request)
                break
            request.pages += more
            self.running.append(self.waiting.popleft())
            works.append(_work(request, min(request.unread, left)))
            left -= len(works[-1].ids)
        self.waiting.extendleft(reversed(passed))
        return works

    def _is_coming(self, ids: list[int], end: int) -> bool:
        """Whether a running request is about to compute the page up to `end` of what begins like this."""
        return len(ids) > end and any(each.held < end and each.ids[:end] == ids[:end] for each in self.running)

    def _find_room(self, request: R, tokens: int, works: Iterable[Work[R]]) -> bool:
        """Give a running request the pages for so many more tokens; False if it had to give way itself."""
        at_work = [work.request for work in works]
        while (more := self.pages.take(self._pages_of(request.held + tokens) - len(request.pages))) is None:
            last = next(each for each in reversed(self.running) if each not in at_work)
            self.running.remove(last)
            self.forget(last)
            self.waiting.appendleft(last)
            if last is request:
                return False
        request.pages += more
        return True

    def computed(self, work: Work[R], kept: int) -> None:
        """Note that a step is done.

        Args:
            kept: of the tokens that the request has computed now, those that stay; what was proposed and refused does
                not.
        """
        request = work.request
        filled = kept // self.pages.size > request.held // self.pages.size
        request.held = kept
        if filled:
            self.pages.remember(request.pages, request.ids, min(kept, len(request.ids)))

    def _pages_of(self, tokens: int) -> int:
        return -(-tokens // self.pages.size)


def _work(request: R, tokens: int) -> Work[R]:
    ids = [*request.ids[request.held :], *request.proposed][:tokens]
    return Work(request, request.held, ids)
