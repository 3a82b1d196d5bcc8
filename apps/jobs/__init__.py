"""The queue of jobs: a SQLite file, workers that run each job as a process of its own, and the runs that come out.

`store` is the queue, `settings` what a job may be asked, `worker` what runs it (with `commands`, `child` and
`progress`), `gallery` the runs. Importing any of it is light: torch loads when settings are checked.
"""
