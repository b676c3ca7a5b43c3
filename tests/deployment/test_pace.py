import pytest

from tagsmith.deployment.pace import Cost, Pace


class Clock:
    """A clock that stands still until it is moved."""

    def __init__(self):
        self.now = 100.0

    def __call__(self):
        return self.now


COST = Cost(fixed_s=0.01, token_s=0.001)


@pytest.fixture
def clock():
    return Clock()


@pytest.fixture
def pace(clock):
    return Pace(COST, batch_tokens=1000, clock=clock)


def run(pace, clock, tokens, *, slowness=1.0):
    out = pace.began(tokens)
    clock.now += slowness * COST.seconds(tokens)
    pace.ended(out, whole=True)


def test_two_batches_tell_the_cost_of_a_token_and_of_a_batch():
    assert Cost.of((10, 0.02), (1010, 1.02)) == Cost(pytest.approx(0.01), pytest.approx(0.001))
    assert Cost.of((10, 0.02), (1010, 0.01)) == Cost(0.02, 0.0)  # noise made the larger one the faster
    assert Cost.of((10, 0.02), (10, 0.02)) == Cost(0.02, 0.0)


def test_what_waits_takes_its_tokens_and_its_batches(pace):
    assert pace.wait_s(0) == 0
    assert pace.wait_s(2500) == pytest.approx(3 * 0.01 + 2.5)


def test_the_batch_that_is_out_is_waited_for_as_well(pace, clock):
    pace.began(1000)
    assert pace.wait_s(0) == pytest.approx(1.01)
    clock.now += 0.5
    assert pace.wait_s(0) == pytest.approx(0.51)


def test_a_small_batch_tells_of_a_slow_machine_too(pace, clock):
    for _ in range(30):
        run(pace, clock, 5, slowness=4.0)
    assert pace.wait_s(1000) == pytest.approx(4 * 1.01, rel=0.01)


def test_an_engine_that_stands_still_is_noticed_before_its_batch_comes_back(pace, clock):
    pace.began(100)
    clock.now += 10 * COST.seconds(100)
    assert pace.wait_s(1000) == pytest.approx(10 * 1.01)


def test_an_unsteady_machine_is_counted_on_less_than_a_steady_one(pace, clock):
    for number in range(40):
        run(pace, clock, 100, slowness=3.0 if number % 2 else 1.0)
    assert pace.slowness > 2.5


def test_a_batch_that_failed_says_nothing_of_the_pace(pace, clock):
    out = pace.began(100)
    clock.now += 60
    pace.ended(out, whole=False)
    assert pace.slowness == 1.0


def test_batches_shrink_on_a_slow_machine_and_grow_again(pace, clock):
    assert pace.tokens_within(1.0) == 990
    for _ in range(30):
        run(pace, clock, 100, slowness=4.0)
    assert pace.tokens_within(1.0) == pytest.approx(240, abs=3)
    for _ in range(30):
        run(pace, clock, 100, slowness=50.0)
    assert pace.tokens_within(1.0) == 125, "one so small would be all overhead"
    for _ in range(60):
        run(pace, clock, 100)
    assert pace.tokens_within(1.0) == pytest.approx(990, abs=5)


def test_an_engine_whose_tokens_cost_nothing_is_never_waited_for(clock):
    pace = Pace(Cost(), batch_tokens=1000, clock=clock)
    run(pace, clock, 100)
    assert pace.wait_s(10**6) == 0
    assert pace.tokens_within(1.0) == 1000


def test_two_lanes_share_what_waits_and_what_is_out(clock):
    pace = Pace(COST, batch_tokens=1000, clock=clock, lanes=2)
    first, second = pace.began(1000), pace.began(500)
    assert pace.wait_s(1000) == pytest.approx((1.01 + 0.51 + 1.01) / 2)
    clock.now += 0.51
    pace.ended(second, whole=True)
    assert pace.wait_s(0) == pytest.approx(0.5 / 2)
    clock.now += 0.5
    pace.ended(first, whole=True)
    assert pace.slowness == pytest.approx(1.0)
    assert pace.wait_s(0) == 0
