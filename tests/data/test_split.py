import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kdedge.data.split import base_novel, few_shot


@pytest.mark.parametrize(
    ("n_classes", "n_base"), [(2, 1), (10, 5), (37, 19), (47, 24), (101, 51), (397, 199)]
)
def test_the_first_half_is_base_and_takes_the_odd_class(n_classes, n_base):
    base, novel = base_novel(n_classes)
    assert (len(base), len(novel)) == (n_base, n_classes - n_base)
    assert [*base, *novel] == list(range(n_classes))


def coop_few_shot(items, shots, seed):
    """CoOp's protocol as its paper's code states it: one global stream, groups as they appear."""
    random.seed(seed)
    groups = {}
    for item in items:
        groups.setdefault(item[1], []).append(item)
    chosen = []
    for group in groups.values():
        chosen.extend(random.sample(group, shots) if len(group) >= shots else group)
    return [index for index, _ in chosen]


@given(
    labels=st.lists(st.integers(0, 6), max_size=80),
    shots=st.integers(1, 16),
    seed=st.integers(0, 2**32 - 1),
)
def test_few_shot_is_coops_draw(labels, shots, seed):
    state = random.getstate()
    try:
        expected = coop_few_shot(list(enumerate(labels)), shots, seed)
    finally:
        random.setstate(state)
    assert expected == few_shot(labels, range(len(labels)), shots=shots, stream=random.Random(seed))


def test_few_shot_draws_from_the_given_images_only_and_leaves_the_global_stream_alone():
    before = random.getstate()
    chosen = few_shot([0, 1] * 10, range(0, 20, 2), shots=3, stream=random.Random(1))
    assert random.getstate() == before
    assert len(chosen) == 3
    assert all(i % 2 == 0 for i in chosen)
