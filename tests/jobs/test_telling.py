"""What a person is told of a round."""

from jobs.telling import bracketed, stopped_slices


def test_an_interval_that_is_not_there_is_a_dash() -> None:
    assert (bracketed(-0.01, 0.02), bracketed(None, None)) == ("[-0.0100, +0.0200]", "[–]")


def test_a_slice_that_stopped_is_told_with_its_reasons_and_what_was_lost() -> None:
    counts = (
        ("gut/polyp", "kept", 34),
        ("gut/polyp", "not visible", 20),
        ("gut/polyp", "off object", 11),
        ("gut/polyp", "out of band", 3),
        ("gut/polyp", "slice stopped", 832),
        ("gut/ulcer", "kept", 40),
        ("gut/ulcer", "blurred", 2),
    )
    (line,) = stopped_slices(counts)
    assert line == (
        "gut/polyp stopped: 31 of 68 were no true pairs (not visible 20, off object 11); 832 more went unused (gate.stop_invalid)"
    )
    assert stopped_slices(counts[5:]) == []
