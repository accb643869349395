"""What a benchmark's file says of its command."""

from jobs.benchmark import generic


def test_the_told_command_names_no_folder_of_this_machine():
    told = generic(
        [
            "rounds=1",
            "--data",
            "/photos/of/screw",
            "--home",
            "/h/x",
            "--out",
            "/h/x.json",
            "--groups",
            "g.json",
        ]
    )
    assert told == [
        "rounds=1",
        "--data",
        "DATA/screw",
        "--home",
        "DATA/x",
        "--out",
        "x.json",
        "--groups",
        "g.json",
    ]
