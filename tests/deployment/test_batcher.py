import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tagsmith.deployment.batcher import BUCKETS, Batcher, Bounds, Full


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


def batcher_of(**bounds):
    clock = Clock()
    return Batcher(Bounds(**bounds), clock=clock), clock


def add(batcher, *sizes, deadline=math.inf):
    return [batcher.add([(size, size)], deadline=deadline)[0] for size in sizes]


def cost(tokens):
    return next((width for width in BUCKETS if width >= tokens), tokens)


def test_a_text_goes_out_at_once_when_the_engine_rests():
    batcher, _ = batcher_of(max_wait_s=1.0)
    (text,) = add(batcher, 5)
    assert batcher.due_at() == 100.0
    assert batcher.take() == [text]


def test_nothing_goes_out_while_a_batch_is_out():
    batcher, clock = batcher_of()
    add(batcher, 5)
    batcher.take()
    add(batcher, 5)
    clock.now += 10
    assert batcher.take() == []
    assert batcher.due_at() is None


def test_each_lane_of_an_engine_has_a_batch_of_its_own():
    clock = Clock()
    batcher = Batcher(Bounds(max_wait_s=1.0), clock=clock, lanes=2)
    (first,) = add(batcher, 5)
    assert batcher.take() == [first]
    (second,) = add(batcher, 5)
    assert not batcher.busy
    assert batcher.take() == [second]
    add(batcher, 5)
    assert batcher.busy
    assert batcher.take() == []
    batcher.finished()
    clock.now += 1.0
    assert len(batcher.take()) == 1


def test_what_waits_is_shared_out_among_free_lanes():
    batcher = Batcher(Bounds(), clock=Clock(), lanes=2)
    add(batcher, *[8] * 10)
    assert [len(batcher.take()), len(batcher.take()), len(batcher.take())] == [5, 5, 0]


def test_one_free_lane_takes_all_that_fits():
    batcher = Batcher(Bounds(), clock=Clock(), lanes=2)
    add(batcher, 8)
    batcher.take()
    add(batcher, *[8] * 10)
    assert len(batcher.take()) == 10


def test_texts_that_gathered_while_the_engine_worked_go_out_together_when_it_ends():
    batcher, clock = batcher_of(max_wait_s=0.002)
    add(batcher, 5)
    batcher.take()
    gathered = add(batcher, 5, 6, 7)
    clock.now += 0.5
    batcher.finished()
    assert batcher.take() == gathered


def test_a_text_that_comes_right_after_a_batch_waits_for_company_and_no_longer_than_told():
    batcher, clock = batcher_of(max_wait_s=0.002)
    add(batcher, 5)
    batcher.take()
    batcher.finished()
    clock.now += 0.001
    (first,) = add(batcher, 5)
    assert batcher.take() == []
    assert batcher.due_at() == pytest.approx(clock.now + 0.002)
    clock.now += 0.001
    (second,) = add(batcher, 5)
    clock.now += 0.00101
    assert batcher.take() == [first, second]


def test_a_full_batch_waits_for_nobody():
    batcher, _ = batcher_of(max_wait_s=1.0, batch_texts=3)
    add(batcher, 5)
    batcher.take()
    batcher.finished()
    full = add(batcher, 5, 5, 5)
    assert batcher.take() == full


def test_texts_of_the_length_of_the_oldest_come_before_older_ones_of_another():
    batcher, _ = batcher_of(batch_tokens=48)
    oldest, other, like = add(batcher, 5, 40, 8)
    assert batcher.take() == [oldest, like]
    batcher.finished()
    assert [other] == [each for line in batcher._lines.values() for each in line if each.here]


def test_a_text_that_is_longer_than_a_batch_goes_alone():
    batcher, _ = batcher_of(batch_tokens=16)
    long, _short = add(batcher, 900, 3)
    assert batcher.take() == [long]


def test_there_is_room_for_so_many_texts_and_tokens():
    batcher, _ = batcher_of(queue_texts=3, queue_tokens=100)
    batcher.add([("a", 10), ("b", 10)])
    with pytest.raises(Full):
        batcher.add([("c", 1), ("d", 1)])
    with pytest.raises(Full):
        batcher.add([("c", 81)])
    batcher.add([("c", 80)])
    assert (batcher.texts, batcher.tokens) == (3, 100)


def test_what_is_refused_leaves_nothing_in_the_queue():
    batcher, _ = batcher_of(queue_texts=1)
    with pytest.raises(Full):
        batcher.add([("a", 1), ("b", 1)])
    assert (len(batcher), batcher.take()) == (0, [])


def test_a_text_that_is_taken_back_never_goes_out():
    batcher, _ = batcher_of()
    first, second = add(batcher, 5, 6)
    assert batcher.cancel(first)
    assert not batcher.cancel(first)
    assert batcher.take() == [second]
    assert not batcher.cancel(second)
    assert (batcher.texts, batcher.tokens) == (0, 0)


def test_a_text_whose_deadline_passes_is_handed_back_and_never_goes_out():
    batcher, clock = batcher_of()
    (late,) = add(batcher, 5, deadline=101.0)
    (patient,) = add(batcher, 5, deadline=102.0)
    clock.now = 101.0
    assert batcher.expired() == [late]
    assert batcher.expired() == []
    assert batcher.take() == [patient]


STEPS = st.lists(
    st.one_of(
        st.tuples(st.just("add"), st.lists(st.integers(1, 300), min_size=1, max_size=5), st.sampled_from([0.05, 1e9])),
        st.tuples(st.just("wait"), st.sampled_from([0.0005, 0.001, 0.002, 0.01, 0.1])),
        st.tuples(st.just("finish")),
        st.tuples(st.just("cancel"), st.integers(0, 50)),
    ),
    max_size=60,
)


class Simulation:
    """A batcher under arrivals, cancellations and an engine, which checks its promises at each step."""

    bounds = Bounds(batch_texts=6, batch_tokens=256, max_wait_s=0.002, queue_texts=12, queue_tokens=900)

    def __init__(self):
        self.clock = Clock()
        self.batcher = Batcher(self.bounds, clock=self.clock)
        self.inside, self.gone = [], []
        self.rested_since = -math.inf

    def step(self, name, *arguments):
        getattr(self, name)(*arguments)
        self.pump()

    def add(self, sizes, patience):
        room = len(self.inside) + len(sizes) <= 12 and sum(w.tokens for w in self.inside) + sum(sizes) <= 900
        try:
            added = self.batcher.add([(None, size) for size in sizes], deadline=self.clock.now + patience)
        except Full:
            assert not room
            return
        assert room
        self.inside += added

    def wait(self, seconds):
        end = self.clock.now + seconds
        while (due := self.batcher.due_at()) is not None and due <= end:  # as a timer would
            self.clock.now = max(self.clock.now, due)
            self.pump()
        self.clock.now = end

    def finish(self):
        if self.batcher.busy:
            self.batcher.finished()
            self.rested_since = self.clock.now

    def cancel(self, place):
        if self.inside:
            waiting = self.inside.pop(place % len(self.inside))
            assert self.batcher.cancel(waiting)
            self.gone.append(waiting)

    def pump(self):
        for late in self.batcher.expired():
            assert late.deadline <= self.clock.now
            self.inside.remove(late)
            self.gone.append(late)
        assert all(waiting.deadline > self.clock.now for waiting in self.inside)
        was_busy = self.batcher.busy
        oldest = min(self.inside, key=lambda waiting: waiting.number, default=None)
        batch = self.batcher.take()
        if batch:
            self.check(batch, oldest)
        elif oldest is not None and not was_busy:
            assert self.clock.now - oldest.arrived < self.bounds.max_wait_s
            assert oldest.arrived - self.rested_since < self.bounds.max_wait_s, "it rested, and had to go out at once"
        assert len(self.batcher) == len(self.inside)
        assert self.batcher.tokens == sum(waiting.tokens for waiting in self.inside)

    def check(self, batch, oldest):
        assert oldest in batch
        assert len(batch) <= self.bounds.batch_texts
        assert len(batch) == 1 or sum(cost(waiting.tokens) for waiting in batch) <= self.bounds.batch_tokens
        for waiting in batch:
            self.inside.remove(waiting)
            self.gone.append(waiting)
        # What goes out was near its turn: what is older and stays could not fill two batches.
        for waiting in batch:
            older = [other for other in self.inside if other.number < waiting.number]
            assert sum(cost(other.tokens) for other in older) < 2 * self.bounds.batch_tokens


@given(STEPS)
def test_every_text_goes_out_once_in_time_and_within_bounds(steps):
    simulation = Simulation()
    for step in steps:
        simulation.step(*step)
    while simulation.inside:
        simulation.finish()
        simulation.wait(0.01)
        simulation.pump()
    assert len(simulation.gone) == len({id(waiting) for waiting in simulation.gone})


@given(st.lists(st.integers(1, 300), min_size=1, max_size=40))
def test_no_text_is_overtaken_for_long(sizes):
    """However many texts of fitting lengths keep coming, each goes out within two batches of its turn."""
    batcher, clock = batcher_of(batch_tokens=256, queue_texts=10_000, queue_tokens=10**6)
    add(batcher, 290)
    before = add(batcher, *sizes)
    (rare,) = add(batcher, 3)
    rounds = 0
    while rare.here:
        add(batcher, *sizes)
        batcher.take()
        batcher.finished()
        clock.now += 1
        rounds += 1
    assert rounds <= len(before) + 2
