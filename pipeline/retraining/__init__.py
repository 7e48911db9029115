"""Retraining without anyone watching: when to run, how a run is kept safe, and what follows a push.

config.py        sections [schedule], [window], [retention], [notify], [watch]
cron.py          due times, quiet hours, jitter
decision.py      whether to run now: a pure function of the time, the configuration and what was observed
observe.py       what is there to be seen: spans, the live version, measurements
state.py         what must outlast a crash: triggers, runs, notifications
scheduler.py     one look (`schedule once`), and the loop that looks again and again (`schedule run`)
launch.py        a run, in a process of its own
measure.py       drift, and the live model's score on fresh labels (in a process of its own)
housekeeping.py  backup of the metadata, retention of artifacts
notify.py        hooks: a command, a signed webhook
watch.py         the model server after a push; rollback where a bound is broken
lineage.py       from a version to its data, and from a span to the versions that saw it
"""
