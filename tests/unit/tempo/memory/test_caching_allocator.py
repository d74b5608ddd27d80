from hypothesis import given
from hypothesis import strategies as st

from detronome.tempo.memory.caching_allocator import reserved_bytes

MIB = 2**20
sizes = st.one_of(st.integers(1, 4000), st.integers(2000, 60_000)).map(lambda n: n * 512)


def test_nothing_is_reserved_for_nothing() -> None:
    assert reserved_bytes([]) == 0


def test_small_tensors_share_segments_of_2_mib() -> None:
    assert reserved_bytes([(n, 512) for n in range(4096)]) == 2 * MIB
    assert reserved_bytes([(n, 512) for n in range(4097)]) == 4 * MIB


def test_middling_tensors_share_segments_of_20_mib_and_large_ones_have_their_own() -> None:
    assert reserved_bytes([(0, 3 * MIB), (1, 9 * MIB)]) == 20 * MIB
    assert reserved_bytes([(0, 11 * MIB)]) == 12 * MIB


def test_what_was_given_back_is_used_again_and_neighbours_become_one() -> None:
    halves = [(0, 9 * MIB), (1, 9 * MIB), (0, -9 * MIB), (1, -9 * MIB)]
    assert reserved_bytes([*halves, (2, 20 * MIB)]) == 20 * MIB
    assert reserved_bytes([*halves[:3], (2, 9 * MIB)]) == 20 * MIB
    assert reserved_bytes([*halves[:3], (2, 12 * MIB)]) == 32 * MIB


@given(st.lists(st.tuples(sizes, st.booleans()), max_size=60))
def test_no_less_is_reserved_than_was_ever_held(steps: list[tuple[int, bool]]) -> None:
    movements, held, most = [], {}, 0
    for number, (size, gives_back) in enumerate(steps):
        movements.append((number, size))
        held[number] = size
        most = max(most, sum(held.values()))
        if gives_back:
            first = next(iter(held))
            movements.append((first, -held.pop(first)))
    reserved = reserved_bytes(movements)
    assert reserved >= most
    assert reserved % (2 * MIB) == 0
    # What is gone altogether is one free block a segment, so the largest finds room again.
    gone = [(number, -size) for number, size in held.items()]
    again = [(len(steps), max(size for size, _ in steps))] if steps else []
    assert reserved_bytes([*movements, *gone, *again]) == reserved
