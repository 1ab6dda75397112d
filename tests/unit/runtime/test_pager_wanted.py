"""The order in which missing pages are asked for: who waits comes first, its neighbourhood next, and all come once."""

from __future__ import annotations

import random

from runtime.pager.wanted import BEFORE, BEHIND, NEAR, PIECE, WINDOW, Ask, Range, Wanted

PAGE = 4096
MIB = 1 << 20
BASE = 1 << 30


def pages(ranges: tuple[Range, ...]) -> set[int]:
    return {page for start, end in ranges for page in range(start, end, PAGE)}


def everything(wanted: Wanted) -> list[Ask]:
    found = []
    while ask := wanted.next():
        found.append(ask)
    return found


def test_a_page_that_is_waited_for_is_asked_for_before_all_others() -> None:
    wanted = Wanted({1: [(BASE, BASE + 64 * MIB)]})
    assert wanted.next() == Ask(1, ((BASE, BASE + PIECE),))
    address = BASE + 40 * MIB
    wanted.fault(1, address)
    assert wanted.next() == Ask(1, ((address, address + NEAR),), urgent=True)


def test_then_its_neighbourhood_and_the_rest_from_there_on() -> None:
    wanted = Wanted({1: [(BASE, BASE + 64 * MIB)]})
    address = BASE + 40 * MIB
    wanted.fault(1, address)
    wanted.next()
    near, rest = wanted.next(), wanted.next()
    assert near == Ask(1, ((address - BEFORE, address), (address + NEAR, address + BEHIND)))
    assert rest is not None and rest.ranges[0][0] == address + BEHIND


def test_the_last_of_several_faults_goes_on_with_its_neighbourhood() -> None:
    wanted = Wanted({1: [(BASE, BASE + MIB)], 2: [(BASE, BASE + 64 * MIB)]})
    wanted.fault(1, BASE)
    wanted.fault(2, BASE + 32 * MIB)
    first, second, near = wanted.next(), wanted.next(), wanted.next()
    assert [(ask.task, ask.urgent) for ask in (first, second, near) if ask] == [
        (1, True),
        (2, True),
        (2, False),
    ]


def test_a_page_already_under_way_is_asked_for_again_when_somebody_waits_but_only_once() -> None:
    wanted = Wanted({1: [(BASE, BASE + MIB)]})
    wanted.next()
    wanted.fault(1, BASE)
    wanted.fault(1, BASE)
    wanted.fault(1, BASE + PAGE)  # comes with the first
    assert wanted.next() == Ask(1, ((BASE, BASE + NEAR),), urgent=True)
    assert wanted.next() is None


def test_what_has_come_is_not_asked_for_and_not_waited_for() -> None:
    wanted = Wanted({1: [(BASE, BASE + 4 * PAGE)]})
    wanted.arrived(1, [(BASE, BASE + 2 * PAGE)])
    wanted.fault(1, BASE)
    assert everything(wanted) == [Ask(1, ((BASE + 2 * PAGE, BASE + 4 * PAGE),))]
    assert wanted.missing == 2 * PAGE
    wanted.arrived(1, [(BASE + 2 * PAGE, BASE + 4 * PAGE)])
    wanted.arrived(1, [(BASE + 2 * PAGE, BASE + 4 * PAGE)])  # twice: asked for twice
    wanted.arrived(9, [(BASE, BASE + PAGE)])  # of nobody
    assert wanted.done and wanted.missing == 0


def test_no_more_than_a_window_is_under_way_but_for_who_waits() -> None:
    wanted = Wanted({1: [(BASE, BASE + 4 * WINDOW)]})
    asked = everything(wanted)
    size = sum(len(pages(ask.ranges)) * PAGE for ask in asked)
    assert WINDOW <= size < WINDOW + PIECE
    wanted.fault(1, BASE + 3 * WINDOW)
    ask = wanted.next()
    assert ask is not None and ask.urgent
    assert wanted.next() is None
    wanted.arrived(1, [(BASE, BASE + PIECE)])
    assert wanted.next() is not None


def test_whatever_happens_every_page_is_asked_for() -> None:
    chance = random.Random(5)
    for _ in range(60):
        owed = {
            task: [
                (start, start + PAGE * chance.randrange(1, 40))
                for start in range(BASE, BASE + 40 * MIB, MIB)
                if chance.random() < 0.5
            ]
            for task in range(chance.randrange(1, 4))
        }
        wanted = Wanted(owed)
        left = {task: pages(tuple(ranges)) for task, ranges in owed.items()}
        flight: list[Ask] = []
        while not wanted.done:
            if chance.random() < 0.2:
                wanted.fault(chance.randrange(4), BASE + chance.randrange(10_000) * PAGE)
            ask = wanted.next()
            if ask is not None:
                assert pages(ask.ranges) <= pages(tuple(owed[ask.task]))
                flight.append(ask)
            else:
                assert flight, (
                    "something is missing, nothing is under way, and nothing is asked for"
                )
            while flight and (ask is None or chance.random() < 0.4):
                ask = flight.pop(chance.randrange(len(flight)))
                wanted.arrived(ask.task, ask.ranges)
                left[ask.task] -= pages(ask.ranges)
        assert not any(left.values())
