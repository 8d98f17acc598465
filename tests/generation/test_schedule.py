"""The schedule, without tensors: every token is computed, no page is lost, and the same beginning is shared."""

import random

import pytest

from groundup.errors import SettingsError
from groundup.generation.schedule import Pages, Schedule, Scheduled, Work


def finish(work: Work[Scheduled]) -> None:
    """As an engine does: what was computed is kept, and a token comes after the last."""
    request = work.request
    if work.end == len(request.ids):
        request.ids.append(request.ids[-1] + 1)


def run(schedule: Schedule[Scheduled], lengths: dict[Scheduled, int]) -> list[list[Work[Scheduled]]]:
    """All steps until each request has the length that is wanted of it."""
    steps = []
    while schedule.running or schedule.waiting:
        works = schedule.plan()
        assert works, "somebody always gets on"
        steps.append(works)
        for work in works:
            finish(work)
            schedule.computed(work, min(work.end, len(work.request.ids) - 1))
            if len(work.request.ids) >= lengths[work.request]:
                schedule.remove(work.request)
    return steps


@pytest.mark.parametrize("seed", range(20))
def test_random_requests_compute_their_tokens_in_order_and_leave_no_page_held(seed: int) -> None:
    draws = random.Random(seed)
    pages = Pages(count=draws.randint(8, 20), size=draws.choice([1, 2, 4]))
    schedule = Schedule[Scheduled](pages, most_requests=draws.randint(1, 6), most_tokens=draws.randint(1, 12))
    most = pages.count * pages.size
    requests = [Scheduled([draws.randrange(3) for _ in range(draws.randint(1, most // 2))]) for _ in range(15)]
    wanted = {request: draws.randint(len(request.ids) + 1, most) for request in requests}
    for request in requests:
        schedule.add(request)
    for works in run(schedule, wanted):
        assert sum(len(work.ids) for work in works) <= schedule.most_tokens
        assert len({id(work.request) for work in works}) == len(works) <= schedule.most_requests
        for work in works:
            assert work.ids == work.request.ids[work.first : work.end], "tokens that it has, at their positions"
    assert all(len(request.ids) == wanted[request] for request in requests)
    assert pages.held == 0


def test_a_thousand_requests_of_which_half_are_cancelled_leave_no_page_held() -> None:
    draws = random.Random(0)
    pages = Pages(count=64, size=4)
    schedule = Schedule[Scheduled](pages, most_requests=16, most_tokens=40)
    requests = [Scheduled([draws.randrange(2) for _ in range(draws.randint(1, 60))]) for _ in range(1000)]
    for request in requests:
        schedule.add(request)
    cancelled = draws.sample(requests, 500)
    wanted = {request: len(request.ids) + draws.randint(1, 9) for request in requests}
    while schedule.running or schedule.waiting:
        for work in schedule.plan():
            finish(work)
            schedule.computed(work, min(work.end, len(work.request.ids) - 1))
            if len(work.request.ids) >= wanted[work.request]:
                schedule.remove(work.request)
        for _ in range(draws.randint(0, 3)):
            if cancelled:
                schedule.remove(cancelled.pop())
    assert pages.held == 0


def test_a_beginning_that_is_known_is_shared_and_not_computed_again() -> None:
    pages = Pages(count=10, size=2)
    schedule = Schedule[Scheduled](pages, most_requests=4, most_tokens=100)
    first = Scheduled([1, 2, 3, 4, 5])
    schedule.add(first)
    (work,) = schedule.plan()
    finish(work)
    schedule.computed(work, 5)
    second, other = Scheduled([1, 2, 3, 4, 9]), Scheduled([1, 2, 9, 4, 5])
    schedule.add(second)
    schedule.add(other)
    works = {id(work.request): work for work in schedule.plan()}
    assert works[id(second)].ids == [9] and second.pages[:2] == first.pages[:2]
    assert works[id(other)].ids == [9, 4, 5] and other.pages[0] == first.pages[0] and other.pages[1] != first.pages[1]
    for request in (first, second, other):
        schedule.remove(request)
    again = Scheduled([1, 2, 3, 4, 5])
    schedule.add(again)
    assert [work.ids for work in schedule.plan()] == [[5]], "pages that nobody holds are known until they are taken"


def test_pages_with_the_same_tokens_after_another_beginning_are_not_mixed_up() -> None:
    pages = Pages(count=10, size=2)
    for ids in ([1, 2, 7, 8], [3, 4, 7, 8]):
        taken = pages.take(2)
        assert taken is not None
        pages.remember(taken, ids, held=4)
        pages.release(taken)
    one, other = pages.hold_known([1, 2, 7, 8, 0]), pages.hold_known([3, 4, 7, 8, 0])
    assert len(one) == len(other) == 2 and not {*one} & {*other}


def test_what_writes_goes_before_prompts_and_the_last_to_come_gives_way() -> None:
    pages = Pages(count=4, size=2)
    schedule = Schedule[Scheduled](pages, most_requests=4, most_tokens=4)
    old, new = Scheduled([1, 2, 3]), Scheduled([4, 5, 6, 7])
    schedule.add(old)
    schedule.add(new)
    steps = []
    for _ in range(3):
        works = schedule.plan()
        steps.append([(work.request is old, len(work.ids)) for work in works])
        for work in works:
            finish(work)
            schedule.computed(work, min(work.end, len(work.request.ids) - 1))
    assert steps[0] == [(True, 3), (False, 1)], "the rest of the step goes to the second prompt"
    assert steps[1] == [(True, 1), (False, 3)]
    assert steps[2] == [(True, 1)], "its third page is the one that the other would need: that one waits"
    assert schedule.waiting[0] is new and not new.pages and new.held == 0


def test_a_request_that_no_cache_could_hold_is_refused() -> None:
    schedule = Schedule[Scheduled](Pages(count=2, size=4), most_requests=1, most_tokens=4)
    with pytest.raises(SettingsError, match="9 tokens does not fit the cache of 2 pages of 4"):
        schedule.add(Scheduled([0] * 9))


def test_a_beginning_that_is_being_computed_is_waited_for_and_others_pass() -> None:
    schedule = Schedule[Scheduled](Pages(count=9, size=2), most_requests=4, most_tokens=8)
    first, alike, other = Scheduled([1, 2, 3, 4, 5]), Scheduled([1, 2, 3, 4, 6]), Scheduled([7, 8])
    for request in (first, alike, other):
        schedule.add(request)
    works = schedule.plan()
    assert [(work.request, len(work.ids)) for work in works] == [(first, 5), (other, 2)]
    assert [*schedule.waiting] == [alike]
    for work in works:
        schedule.computed(work, work.end)
    assert [(work.request, work.ids) for work in schedule.plan() if work.request is alike] == [(alike, [6])]


def test_no_more_is_shared_than_is_allowed() -> None:
    pages = Pages(count=9, size=2)
    schedule = Schedule[Scheduled](pages, most_requests=4, most_tokens=8)
    schedule.add(Scheduled([1, 2, 3, 4, 5, 6]))
    for work in schedule.plan():
        schedule.computed(work, work.end)
    told = Scheduled([1, 2, 3, 4, 5, 6], shared=4)  # the scores after the fourth are wanted
    schedule.add(told)
    assert [work.ids for work in schedule.plan() if work.request is told] == [[3, 4, 5, 6]]
