import pytest
from hypothesis import given
from hypothesis import strategies as st

from sbdzsl.config import DetectorSettings, ThresholdRule, parse
from sbdzsl.errors import ConfigError

WORDS = ("false-alarm-rate", "false-alarm-rate:0.01", "max-f1", "zero-misses", "cost:20@0.01", "fixed:3.2", "fixed:-12")


@pytest.mark.parametrize("word", WORDS)
def test_a_rule_is_written_as_it_is_read(word: str) -> None:
    rule = ThresholdRule.parse(word)
    assert str(rule) == word
    assert rule.policy == word.partition(":")[0]


@given(st.floats(1e-6, 1e6), st.floats(1e-6, 1, exclude_max=True))
def test_no_digit_of_a_rule_is_lost(price: float, share: float) -> None:
    rule = ThresholdRule("cost", miss_cost=price, defect_share=share)
    assert ThresholdRule.parse(str(rule)) == rule


def test_equal_rules_have_one_word() -> None:
    assert str(ThresholdRule.parse("fixed:3.20")) == str(ThresholdRule.parse("fixed:32e-1")) == "fixed:3.2"


@pytest.mark.parametrize(
    "word",
    [
        "",
        "f1",
        "max-f1:2",
        "fixed",
        "fixed:",
        "fixed:nan",
        "fixed:inf",
        "fixed:1@2",
        "cost:20",
        "cost:20@1",
        "cost:-1@0.1",
        "cost:20@0.1@3",
        "false-alarm-rate:0",
        "false-alarm-rate:0.5",
        "false-alarm-rate:",
    ],
)
def test_a_word_that_is_no_rule_is_refused(word: str) -> None:
    with pytest.raises(ConfigError, match="threshold policy"):
        ThresholdRule.parse(word)


def test_a_rule_is_a_setting() -> None:
    settings = parse(DetectorSettings, {"threshold_policy": "cost:20@0.01"}, "train.yaml")
    assert settings.threshold_policy == ThresholdRule("cost", miss_cost=20, defect_share=0.01)
    assert parse(DetectorSettings, settings.model_dump(), "bundle.json") == settings
    with pytest.raises(ConfigError, match=r"train\.yaml: threshold_policy: .*PRICE@SHARE"):
        parse(DetectorSettings, {"threshold_policy": "cost:20"}, "train.yaml")
