import pytest

from tagsmith.tuning.halving import FEWEST, Cost, Rung, plan_ladder

ROWS = 9 * FEWEST


def costs(count, *, learning=8.0, answering=1.0):
    return [Cost(learning, answering)] * count


def test_with_time_for_all_of_them_there_is_one_rung():
    ladder = plan_ladder(costs(6), left=100.0, rows=ROWS)
    assert ladder.entrants == tuple(range(6))
    assert ladder.rungs == (Rung(1.0, 6),)


def test_with_less_time_more_recipes_enter_and_the_best_of_them_climb():
    ladder = plan_ladder(costs(9, learning=9.0), left=70.0, rows=ROWS)  # seven fit on all rows
    assert ladder.entrants == tuple(range(9))
    assert ladder.rungs == (Rung(1 / 3, 9), Rung(1.0, 3))
    hurried = plan_ladder(costs(9, learning=9.0), left=55.0, rows=ROWS)
    assert hurried.rungs == (Rung(1 / 9, 9), Rung(1 / 3, 3), Rung(1.0, 2))


@pytest.mark.parametrize("left", [0.0, 5.0, 9.0, 20.0, 33.0, 47.0, 60.0, 71.0])
def test_no_ladder_takes_longer_than_there_is_time_whoever_climbs(left):
    made = [Cost(float(i), 0.5) for i in (9, 3, 7, 1, 5, 8, 2)]
    ladder = plan_ladder(made, left, rows=ROWS)
    entered = [made[i] for i in ladder.entrants]
    dearest = sum(
        sum(sorted((cost.on(rung.share) for cost in entered), reverse=True)[: rung.entrants]) for rung in ladder.rungs
    )
    assert dearest <= left
    assert ladder.rungs[-1].share == 1.0
    assert ladder.rungs[0].entrants == len(entered)


def test_more_time_never_lets_fewer_in():
    entered = [len(plan_ladder(costs(9), float(left), rows=ROWS).entrants) for left in range(0, 90, 3)]
    assert entered == sorted(entered)


def test_one_that_is_too_dear_leaves_its_place_to_a_cheaper_one():
    assert plan_ladder([Cost(100.0, 0.0), Cost(1.0, 0.0)], left=10.0, rows=ROWS).entrants == (1,)


@pytest.mark.parametrize(("rows", "lowest"), [(ROWS, 1 / 9), (ROWS - 1, 1 / 3), (3 * FEWEST, 1 / 3), (FEWEST, 1.0)])
def test_no_rung_has_so_few_rows_that_they_tell_nothing(rows, lowest):
    ladder = plan_ladder(costs(9, learning=9.0, answering=0.0), left=40.0, rows=rows)
    assert ladder.rungs[0].share == lowest
    assert ladder.rungs[-1].share == 1.0
