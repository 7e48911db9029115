import pytest
from pydantic import ValidationError

from pipeline.retraining.config import NotifyConfig, ScheduleConfig, WatchConfig, WindowConfig


@pytest.mark.parametrize(
    ("section", "values", "message"),
    [
        (ScheduleConfig, {"cron": "0 3 * *"}, "is not a cron expression"),
        (ScheduleConfig, {"cron": "* * * * * *"}, "five fields: minute hour day month weekday"),
        (ScheduleConfig, {"cron": "0 25 * * *"}, "Bad hour"),
        (ScheduleConfig, {"time_zone": "Mars/Olympus"}, "use a name such as Europe/Berlin"),
        (ScheduleConfig, {"time_zone": "../../etc/passwd"}, "is not a time zone"),
        (ScheduleConfig, {"quiet_hours": ["22-6"]}, "write HH:MM-HH:MM"),
        (ScheduleConfig, {"quiet_hours": ["06:00-06:00"]}, "starts and ends at the same time"),
        (ScheduleConfig, {"drift": 0}, "greater than 0"),
        (ScheduleConfig, {"every": 3}, "Extra inputs are not permitted"),
        (WindowConfig, {"last": 0}, "greater than 0"),
        (WindowConfig, {"since": 5, "until": 4}, "the window would be empty"),
        (WindowConfig, {"since": "2026-11-05", "until": "2026-11-04"}, "the window would be empty"),
        (WindowConfig, {"evaluate_newest": True}, "needs last = 2 or more"),
        (WindowConfig, {"warm_start": True}, "so that the gates hold on old spans too"),
        (WindowConfig, {"last": 3, "learn_last": 4}, "learn_last: is more than last"),
        (NotifyConfig, {"webhook": "ftp://host/x", "secret_file": "s"}, "is not an http:// or https:// address"),
        (NotifyConfig, {"webhook": "https://host/a b", "secret_file": "s"}, "is not an http:// or https:// address"),
        (NotifyConfig, {"webhook": "https://host:99999/", "secret_file": "s"}, "is not an http:// or https:// address"),
        (NotifyConfig, {"webhook": "https://me:pw@host/", "secret_file": "s"}, "is not an http:// or https:// address"),
        (NotifyConfig, {"webhook": "https://:80/", "secret_file": "s"}, "is not an http:// or https:// address"),
        (NotifyConfig, {"webhook": "https://host/\u00fc", "secret_file": "s"}, "is not an http:// or https:// address"),
        (WatchConfig, {"metrics_url": "http://host:8501/a b"}, "is not an http:// or https:// address"),
        (WatchConfig, {"metrics_url": "host:8501/metrics"}, "is not an http:// or https:// address"),
        (NotifyConfig, {"webhook": "https://host/x"}, "signing secret"),
        (NotifyConfig, {"events": ["done"]}, "Input should be"),
    ],
)
def test_bad_value_is_named_with_its_remedy(section, values, message) -> None:
    with pytest.raises(ValidationError, match=message.replace("(", r"\(")):
        section(**values)


def test_schedule_without_a_trigger_says_so() -> None:
    assert not ScheduleConfig().any_trigger
    assert ScheduleConfig(on_new_span=True).any_trigger
    assert ScheduleConfig(min_score=0.0).any_trigger


@pytest.mark.parametrize("address", ["http://host:8501/monitoring/prometheus/metrics", "https://[::1]/hook?t=a%20b"])
def test_sound_address_is_taken_as_it_is(address: str) -> None:
    assert WatchConfig(metrics_url=address).metrics_url == address
