"""LSH by sorted hashes against rensa's own index, a row at a time."""

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from rensa import RMinHash, RMinHashLSH

from tometune.data.near_duplicates import NOBODY, like_an_earlier

texts = st.lists(st.lists(st.sampled_from("abcdefgh"), min_size=1, max_size=8), max_size=25)


@given(texts, st.integers(0, 6), st.sampled_from([0.5, 0.75, 0.8, 1.0]))
@settings(max_examples=100, deadline=None)
def test_the_same_rows_as_by_rensas_index(runs: list[list[str]], fixed: int, threshold: float) -> None:
    fixed = min(fixed, len(runs))
    made = RMinHash.from_token_sets(runs, 128, 42)
    index, expected = RMinHashLSH(threshold, 128, 16), []
    for number, signature in enumerate(made):
        near = [] if number < fixed else [n for n in index.query(signature) if signature.jaccard(made[n]) >= threshold]
        expected.append(min(near, default=NOBODY))
        if not near:
            index.insert(number, signature)
    matrix = np.array([signature.digest() for signature in made], dtype=np.uint32).reshape(-1, 128)
    told: list[int] = []
    assert like_an_earlier(matrix, fixed, threshold, 16, told.append).tolist() == expected
    assert sum(told) == len(runs)
