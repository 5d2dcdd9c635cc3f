import pytest

from attnbench.errors import UsageError
from attnbench.protocol.band_options import bands_of
from attnbench.protocol.bands import DEFAULT_BANDS, Gate, changed_bands


def test_limits_that_are_given_change_and_the_others_stay():
    bands = bands_of(["norm-ratio.pass_from=0.95", "norm-ratio.pass_to=1.05", "top-1.pass_from=1"])
    assert {part.passes for part in bands[Gate.NORM_RATIO]} == {(0.95, 1.05)}
    assert {part.lives for part in bands[Gate.NORM_RATIO]} == {(0.7, 1.4)}
    assert bands[Gate.LOGIT_KL] == DEFAULT_BANDS[Gate.LOGIT_KL]
    assert changed_bands(bands) == {
        "norm-ratio": "passes from 0.95 to 1.05 and kills below 0.7 or above 1.4",
        "top-1": "passes from 1 and kills below 0.8",
    }


def test_without_options_the_defaults_count():
    assert changed_bands(bands_of([])) == {}


@pytest.mark.parametrize(
    ("option", "said"),
    [
        ("mean-cosin.pass_from=1", "did you mean mean-cosine"),
        ("non-finite.pass_to=3", "no gate with bands"),
        ("top-1.passes=1", "'passes' is no limit"),
        ("top-1", "is no limit"),
        ("top-1.pass_from=high", "is no number"),
        ("top-1.pass_to=1", "has no limit on that side"),
        ("top-1.pass_from=0.5", "must lie within what is not killed"),
        ("top-1.pass_from=nan", "must lie within what is not killed"),
    ],
)
def test_bands_that_make_no_sense_are_refused(option, said):
    with pytest.raises(UsageError, match=said) as refused:
        bands_of([option])
    assert "GATE.LIMIT=NUMBER" in refused.value.hint
