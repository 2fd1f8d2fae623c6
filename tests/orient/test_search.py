"""The search for turns: groups of photos, the turn of each group relative to the largest, and photos that cannot be decided."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import pytest

from sfm_lightglue.orient.groups import find_groups
from sfm_lightglue.orient.search import MAX_FAILURES, Search, max_failures, neighbours_of, settle
from sfm_lightglue.orient.trials import Outcome
from sfm_lightglue.products import Pair

# --- groups ------------------------------------------------------------------------------------------------------------------


def test_photos_that_verify_well_form_a_group() -> None:
    pairs = {Pair("a", "b"): 1000, Pair("b", "c"): 700, Pair("d", "e"): 500, Pair("a", "f"): 0}
    assert find_groups("fedcba", pairs) == [["b", "a", "c"], ["d", "e"], ["f"]]


def test_a_pair_of_half_a_turn_does_not_join_two_groups() -> None:
    """As in fountain-P11: 20 to 50 inliers between photos that differ by half a turn, 800 to 1,300 in the groups."""
    pairs = {Pair("a", "b"): 1338, Pair("b", "c"): 1275, Pair("d", "e"): 1376, Pair("a", "d"): 23, Pair("c", "e"): 54}
    assert find_groups("abcde", pairs) == [["b", "a", "c"], ["e", "d"]]


def test_a_photo_with_only_a_weak_pair_is_a_group_of_its_own() -> None:
    pairs = {Pair("a", "b"): 1200, Pair("b", "c"): 1100, Pair("c", "d"): 42}
    assert find_groups("abcd", pairs) == [["b", "a", "c"], ["d"]]


def test_photos_far_apart_in_a_walk_are_one_group() -> None:
    pairs = {Pair(str(i), str(i + 1)): 100 + 50 * i for i in range(8)}
    assert len(find_groups(map(str, range(9)), pairs)) == 1


def test_nothing_verified_gives_groups_of_one() -> None:
    assert find_groups("cab", {}) == [["a"], ["b"], ["c"]]
    assert find_groups("", {}) == []


# --- the search --------------------------------------------------------------------------------------------------------------


class Scene:
    """Photos at places on a line, with true turns. Photos overlap if they are at most 1 apart, and match in the same turn."""

    def __init__(self, places: Mapping[str, float], turns: Mapping[str, int]) -> None:
        self.places, self.turns = places, turns
        self.calls: list[tuple[str, tuple[str, ...]]] = []

    def compare(self, name: str, partners: Sequence[str], turns: Mapping[str, int]) -> Outcome:
        self.calls.append((name, tuple(partners)))
        inliers = [0, 0, 0, 0]
        for partner in partners:
            if abs(self.places[name] - self.places[partner]) <= 1:
                upright = (turns[partner] - self.turns[partner]) % 4  # how far the partner is from upright
                inliers[(self.turns[name] + upright) % 4] += 100
        return Outcome(tuple(inliers))


def test_every_group_gets_its_turn_relative_to_the_largest() -> None:
    turns = {"a": 1, "b": 1, "c": 1, "d": 3, "e": 3, "f": 0, "g": 2}
    scene = Scene(dict.fromkeys(turns, 0.0), turns)
    search = Search(scene.compare, ["a", "b", "c"], {})
    search.run([["d", "e"], ["f"], ["g"]], MAX_FAILURES)
    assert search.turns == {"a": 0, "b": 0, "c": 0, "d": 2, "e": 2, "f": 3, "g": 1}
    assert sorted(search.group) == sorted(turns)


def test_a_group_that_overlaps_only_with_another_one_is_tried_again_after_that_one() -> None:
    turns = {"a": 0, "b": 0, "c": 1, "d": 2, "e": 3}
    scene = Scene({"a": 0, "b": 0.5, "c": 1.4, "d": 3.0, "e": 2.2}, turns)
    search = Search(scene.compare, ["a", "b"], {})
    search.run([["d"], ["e"], ["c"]], MAX_FAILURES)
    assert search.turns == turns
    pairs = [(name, partner) for name, partners in scene.calls for partner in partners]
    assert len(pairs) == len(set(pairs)), "no photo is tried with the same partner twice"


def test_photos_that_do_not_overlap_keep_their_turn() -> None:
    scene = Scene({"a": 0, "b": 0, "z": 9}, {"a": 0, "b": 0, "z": 1})
    search = Search(scene.compare, ["a", "b"], {})
    search.run([["z"]], MAX_FAILURES)
    assert "z" not in search.turns and search.outcomes["z"].inliers == (0, 0, 0, 0)


def test_the_search_ends_after_some_failures() -> None:
    names = [f"{i:03}" for i in range(100)]
    scene = Scene({"a": 0, **{name: 9.0 for name in names}}, dict.fromkeys(["a", *names], 0))
    search = Search(scene.compare, ["a"], {})
    search.run([[name] for name in names], 7)
    assert len(scene.calls) == 7


def test_little_is_tried_if_no_pair_is_verified() -> None:
    assert max_failures(1, 4950) == 3
    assert max_failures(2, 10) == MAX_FAILURES and max_failures(50, 4950) == 99


def test_the_progress_counts_each_photo_once() -> None:
    scene, counts = Scene({"a": 0, "b": 0, "y": 8, "z": 8, "c": 0.5}, dict.fromkeys("abcyz", 0)), []
    Search(scene.compare, ["a", "b"], {}, progress=counts.append).run([["y", "z"], ["c"]], MAX_FAILURES)
    assert len(scene.calls) == 5, "the first group is tried again after c has joined"
    assert counts == [2, 1]


def test_partners_are_neighbours_of_the_run_and_others_evenly_spaced() -> None:
    names = [f"{i:03}" for i in range(100)]
    scene = Scene({"z": 0, **{name: 0.0 for name in names}}, dict.fromkeys(["z", *names], 0))
    neighbours = neighbours_of([Pair("z", "050", score=0.2), Pair("007", "z", score=0.9), Pair("z", "unknown")])
    Search(scene.compare, names, neighbours).run([["z"]], MAX_FAILURES)
    partners = scene.calls[0][1]
    assert partners[:2] == ("007", "050") and len(partners) == len(set(partners)) == 12
    assert max(int(partner) for partner in partners) > 80


@pytest.mark.parametrize(
    ("inliers", "clear"),
    [((0, 0, 621, 0), True), ((0, 0, 29, 0), False), ((0, 100, 34, 0), False), ((33, 100, 0, 0), True), ((0, 0, 0, 0), False)],
)
def test_only_a_clear_turn_counts(inliers: tuple[int, ...], clear: bool) -> None:
    assert Outcome(inliers).is_clear == clear


def test_the_largest_group_and_photos_that_exif_turns_vote_for_what_is_upright() -> None:
    turns = {"a": 0, "b": 0, "c": 0, "d": 1, "e": 1, "f": 1, "g": 2}
    largest = ["a", "b", "c"]
    assert settle(turns, largest, []) == 0
    assert settle(turns, largest, ["d"]) == 0, "one old note does not turn three photos"
    assert settle(turns, largest, ["d", "e", "g"]) == 0
    assert settle(turns, largest, ["d", "e", "f"]) == 1, "as many either way: EXIF counts more"
    assert settle(turns, largest, ["a", "b", "c", "d", "e", "f"]) == 0, "EXIF on both sides: the larger group stays"
    assert settle(turns, largest, ["d", "e", "unknown"]) == 0
