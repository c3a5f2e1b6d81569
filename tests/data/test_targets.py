from functools import partial

import numpy as np
import pytest

from rankdistillm.data.targets import (
    check_pairing,
    learns_from_judgements,
    make_targets,
    targets_for,
    transform_targets,
)
from rankdistillm.errors import InputError
from rankdistillm.losses import (
    LOSSES,
    WeightedSum,
    approx_mrr_loss,
    approx_ndcg_loss,
    consumed_by,
    info_nce_loss,
    kl_loss,
    margin_mse_loss,
    ranknet_loss,
)

SCORES = np.array([9.0, 7.5, 7.5, 1.0])
RELEVANCE = np.array([np.nan, 3.0, 0.0, 1.0])
CHOSEN = np.array([0, 1, 3])


def test_targets_are_higher_is_better():
    assert make_targets("rank", None, CHOSEN, SCORES, RELEVANCE).tolist() == [4, 3, 1]
    assert make_targets("score", None, CHOSEN, SCORES, RELEVANCE).tolist() == [9, 7.5, 1]
    assert make_targets("relevance", None, CHOSEN, SCORES, RELEVANCE).tolist() == [0, 3, 1]


def test_what_is_not_known_is_nan():
    judged = make_targets("judged", None, CHOSEN, SCORES, RELEVANCE)
    np.testing.assert_array_equal(judged, [np.nan, 3, 1])
    unranked = np.array([9.0, 7.5, np.nan, np.nan])
    for kind, expected in (("rank", [4, 3, np.nan]), ("score", [9, 7.5, np.nan])):
        np.testing.assert_array_equal(
            make_targets(kind, None, CHOSEN, unranked, RELEVANCE), expected
        )
    transformed = transform_targets("reciprocal_rank", np.array([3.0, np.nan, 5.0]))
    np.testing.assert_array_equal(transformed, np.array([1 / 2, np.nan, 1], dtype=np.float32))


def mixture(*targets):
    return WeightedSum([ranknet_loss, info_nce_loss], targets=targets)


def test_each_loss_of_a_mixture_is_checked_with_its_own_targets():
    assert targets_for(mixture("rank", "judged"), "score") == ("rank", "judged")
    assert targets_for(WeightedSum([ranknet_loss]), "score") == "score"
    check_pairing(mixture("rank", "judged"), "score", None)
    # The transform is for the teacher's targets: judgements keep telling relevant passages apart.
    check_pairing(mixture("rank", "relevance"), "rank", "log2_rank")
    with pytest.raises(InputError, match=r"consumes a gain, but loss\.targets\[1\]=rank"):
        check_pairing(mixture("rank", "rank"), "relevance", None)
    with pytest.raises(InputError, match=r"loss\.targets\[0\]=ranks is not one of"):
        check_pairing(mixture("ranks", "judged"), "rank", None)


def test_a_plain_loss_takes_no_targets_with_gaps():
    with pytest.raises(InputError, match="only loss=mixed takes"):
        check_pairing(ranknet_loss, "judged", None)


def test_transforms_count_ranks_in_the_list_with_ties_averaged():
    targets = np.array([4.0, 2.0, 2.0, 1.0])
    assert transform_targets(None, targets) is targets
    assert transform_targets("reciprocal_rank", targets) == pytest.approx([1, 0.4, 0.4, 0.25])
    discounts = 1 / np.log2(1 + np.array([1, 2.5, 2.5, 4]))
    assert transform_targets("log2_rank", targets) == pytest.approx(discounts)


@pytest.mark.parametrize(
    ("loss", "kind", "transform"),
    [
        (ranknet_loss, "rank", None),
        (ranknet_loss, "score", None),
        (kl_loss, "score", None),
        (kl_loss, "rank", "log2_rank"),
        (approx_ndcg_loss, "relevance", None),
        (partial(margin_mse_loss, margin=1.0), "rank", None),
    ],
)
def test_sensible_pairings_pass(loss, kind, transform):
    check_pairing(loss, kind, transform)


@pytest.mark.parametrize(
    ("loss", "kind", "said"),
    [
        (kl_loss, "rank", "consumes a score.*targets=score or relevance.*transform"),
        (approx_ndcg_loss, "rank", "consumes a gain.*targets=relevance"),
        (approx_ndcg_loss, "score", "consumes a gain"),
        (partial(margin_mse_loss, margin="targets"), "rank", "consumes a score"),
        (ranknet_loss, "ranks", "targets=ranks is not one of rank, score, relevance"),
    ],
)
def test_senseless_pairings_are_refused_with_the_remedy(loss, kind, said):
    with pytest.raises(InputError, match=said):
        check_pairing(loss, kind, None)


def test_unknown_transform_names_the_known_ones():
    with pytest.raises(InputError, match="transform=log is not one of reciprocal_rank, log2_rank"):
        check_pairing(ranknet_loss, "rank", "log")


@pytest.mark.parametrize("transform", ["log2_rank", "reciprocal_rank"])
@pytest.mark.parametrize("loss", [info_nce_loss, approx_mrr_loss])
def test_a_transform_that_leaves_nothing_to_learn_is_refused(loss, transform):
    with pytest.raises(InputError, match="makes every passage relevant"):
        check_pairing(loss, "rank", transform)


SEE_GRADES = ("approx_ndcg", "bce", "lambda", "neural_ndcg")
LEARN_FROM_RANKS = [n for n in LOSSES if n in SEE_GRADES or consumed_by(LOSSES[n]) != {"gain"}]


@pytest.mark.parametrize("transform", ["log2_rank", "reciprocal_rank"])
@pytest.mark.parametrize("name", LEARN_FROM_RANKS)
def test_other_losses_accept_transformed_ranks(name, transform):
    check_pairing(LOSSES[name], "rank", transform)


def test_the_transform_of_a_mixture_is_for_the_teachers_targets():
    made = make_targets(("rank", "judged"), "reciprocal_rank", CHOSEN, SCORES, RELEVANCE)
    expected = np.array([[1, 1 / 2, 1 / 3], [np.nan, 3, 1]], dtype=np.float32)
    np.testing.assert_array_equal(made, expected)
    assert made.dtype == np.float32


def test_only_targets_without_the_teacher_learn_from_judgements():
    assert learns_from_judgements("relevance")
    assert learns_from_judgements(("relevance", "judged"))
    assert not learns_from_judgements(("rank", "judged"))
    assert not learns_from_judgements("score")
