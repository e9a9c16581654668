"""The virtual clock: durations from seeds alone, between the bounds that the spread gives."""

import math

import numpy as np
import pytest

from fedddpm_app.peers.clock import VirtualClock, next_to_end


def test_with_a_spread_of_one_a_step_takes_a_second():
    clock = VirtualClock(7, 1.0)
    assert [clock.duration(peer, number, 12) for peer in range(3) for number in (1, 5)] == [12.0] * 6


def test_speeds_are_log_uniform_between_the_bounds():
    clock = VirtualClock(3, 4.0)
    logs = np.log([clock.speed(peer) for peer in range(2000)])
    assert logs.min() >= -math.log(4)
    assert logs.max() <= 0
    assert np.histogram(logs, 4, (-math.log(4), 0))[0] == pytest.approx([500] * 4, abs=80)  # 4 standard deviations


def test_a_training_takes_its_steps_at_the_speed_of_its_peer_give_or_take_three_percent():
    clock = VirtualClock(3, 4.0)
    factors = [clock.duration(1, number, 50) * clock.speed(1) / 50 for number in range(1, 200)]
    assert min(factors) >= 0.97
    assert max(factors) <= 1.03
    assert len(set(factors)) == len(factors)
    assert clock.duration(1, 4, 100) == 2 * clock.duration(1, 4, 50)


def test_the_same_seed_gives_the_same_times_in_any_order_and_another_seed_others():
    asked = [(peer, number) for peer in range(3) for number in (1, 2)]
    times = {each: VirtualClock(1, 2.0).duration(*each, 10) for each in asked}
    clock = VirtualClock(1, 2.0)
    assert {each: clock.duration(*each, 10) for each in reversed(asked)} == times
    assert {each: VirtualClock(2, 2.0).duration(*each, 10) for each in asked} != times


def test_all_that_end_first_are_next_in_the_order_of_their_numbers():
    assert next_to_end({2: 5.0, 0: 7.0, 1: 5.0}) == [1, 2]
    assert next_to_end({4: 1.0}) == [4]
