from fedddpm_app.seeding import derive_seed, split_seed


def test_seeds_differ_in_every_part_and_repeat():
    seeds = [
        derive_seed(0, "a"),
        derive_seed(1, "a"),
        derive_seed(0, "b"),
        derive_seed(0, "a", 0),
        derive_seed(0, "a", 1),
        derive_seed(0, "a", 1, 0),
        derive_seed(0, "a", 0, 1),
    ]
    assert len(set(seeds)) == len(seeds)
    assert all(0 <= seed < 2**63 for seed in seeds)
    assert derive_seed(0, "a", 0, 1) == seeds[-1]


def test_a_seed_splits_into_different_ones_that_repeat():
    streams = split_seed(derive_seed(0, "a"), 3)
    assert len({*streams, *split_seed(derive_seed(1, "a"), 3)}) == 6
    assert streams == split_seed(derive_seed(0, "a"), 3)
    assert all(0 <= seed < 2**63 for seed in streams)
