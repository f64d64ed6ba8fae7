from __future__ import annotations

import pytest

from emoreg.config import (
    ExperienceConfig,
    Float,
    ImageSetConfig,
    StudyConfig,
    TrialConfig,
    without_secrets,
)
from emoreg.errors import ConfigError

SPACE = {"regulation.balance": Float(0.0, 1.0)}


@pytest.mark.parametrize(
    ("text", "masked"),
    [
        ("postgresql://anna:pa55word99@db/studies", "postgresql://anna:***@db/studies"),
        ("postgresql+psycopg://anna:p/w@db/x", "postgresql+psycopg://anna:***@db/x"),
        ("cannot reach postgresql://u:p@ss@127.0.0.1:1/db (why?)", "cannot reach postgresql://u:***@127.0.0.1:1/db (why?)"),
        ("postgresql://anna@server:pw@host/db", "postgresql://anna@server:***@host/db"),
        ("postgresql://u:u@h/u", "postgresql://u:***@h/u"),
        ("redis://:pw?#&:@h", "redis://:***@h"),
        ("--experience.uri=s3://AK:SK%2F@bucket/x?region=a", "--experience.uri=s3://AK:***@bucket/x?region=a"),
        ("s3://AKIA:se/cret+x@bucket/x failed", "s3://AKIA:***@bucket/x failed"),
        ("no 's3://bucket' nor s3://a:b@c?region=x", "no 's3://bucket' nor s3://a:***@c?region=x"),
        ("postgresql://db/x?user=anna&password=pw", "postgresql://db/x?user=anna&password=***"),
        ("postgresql://db/x?sslpassword=p'w&passfile=f", "postgresql://db/x?sslpassword=***&passfile=***"),
        ("'s3://b?secret_key=ab/c+==&region=x'", "'s3://b?secret_key=***&region=x'"),
        ("abfs://c@account/x?sig=a%2Fb", "abfs://c@account/x?sig=***"),
        ("s3://bucket?X-Amz-Signature=0a", "s3://bucket?X-Amz-Signature=***"),
        ("gs://bucket?access_token=abc", "gs://bucket?access_token=***"),
        ("postgresql://anna@db/x", "postgresql://anna@db/x"),
        ("s3://bucket/a:b?endpoint_override=host:9000", "s3://bucket/a:b?endpoint_override=host:9000"),
        ("s3://bucket/mail@host", "s3://bucket/mail@host"),
        ("studies@home:1", "studies@home:1"),
    ],
)
def test_secrets_are_masked_and_nothing_else(text: str, masked: str) -> None:
    assert without_secrets(text) == masked
    assert without_secrets(masked) == masked


def test_what_a_driver_says_of_a_password_is_masked_in_either_spelling() -> None:
    url = "postgresql://anna:p%40ss%2Fw@db/x?sslpassword=h%20sh"
    said = 'password "p@ss/w" of anna is wrong, as is p%40ss%2Fw, or h sh; the passage is open'
    assert without_secrets(said, url) == 'password "***" of anna is wrong, as is ***, or ***; the passage is open'


@pytest.mark.parametrize(
    ("url", "message"),
    [
        ("postgres://u:hu@sh@h/d", r"Write postgresql://: optuna_storage must name .* but it is 'postgres://\.\.\.'"),
        ("postgresql://u:hu@sh@h/d", r"Write @ as %40.* but it is 'postgresql://\.\.\.'"),
        ("postgresql://u:hu sh@h/d", r"Write @ as %40, / as %2F and a blank as %20"),
        ("postgresql://u:hu/sh@h/d", r"the password in optuna_storage must be percent-encoded"),
        ("postgresql://u:hu?sh@sh@h/d", r"Write @ as %40"),
    ],
)
def test_a_url_that_no_database_has_is_refused_without_its_password(url: str, message: str) -> None:
    with pytest.raises(ConfigError, match=message) as refused:
        StudyConfig(search_space=SPACE, optuna_storage=url)
    assert "hu" not in str(refused.value)
    assert "sh" not in str(refused.value).replace("should", "")


@pytest.mark.parametrize("url", ["sqlite:///my studies/a@b@c.db", "postgresql://u:p%40ss@h/d", "postgresql://u:***@h/d"])
def test_a_url_that_a_database_has_is_taken(url: str) -> None:
    assert StudyConfig(search_space=SPACE, optuna_storage=url).optuna_storage == url


def test_passwords_are_hidden_wherever_a_study_has_them() -> None:
    uri = "s3://key:hush@bucket/x?secret_key=hush"
    config = StudyConfig(
        search_space=SPACE,
        storage=uri,
        optuna_storage="postgresql://me:hush@host/db",
        experience=ExperienceConfig(uri=uri),
        warm_start_from=(uri,),
        trial=TrialConfig(task=ImageSetConfig(name="parquet", path=uri)),
    )
    hidden = config.without_password()
    assert "hush" not in repr(hidden)
    assert hidden.optuna_storage == "postgresql://me:***@host/db"
    assert hidden.trial.task.path == "s3://key:***@bucket/x?secret_key=***"
    assert StudyConfig(search_space=SPACE).without_password() == StudyConfig(search_space=SPACE)
