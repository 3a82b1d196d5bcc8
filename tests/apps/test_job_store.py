import sqlite3
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from dreamkit_apps.jobs.errors import JobStateError, NotFoundError, QueueError, QueueFullError
from dreamkit_apps.jobs.job import ACTIVE, ENDED, HELD, Progress
from dreamkit_apps.jobs.settings import GenerateSettings
from dreamkit_apps.jobs.store import JobStore, Limits
from hypothesis import given, settings
from hypothesis import strategies as st

from dreamkit.errors import ConfigError

A_MUG = GenerateSettings(prompt="a red mug")


class Clock:
    def __init__(self) -> None:
        self.now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def store(tmp_path: Path, clock: Clock):
    store = JobStore(tmp_path / "queue.sqlite3", clock=clock, busy=0.2)
    yield store
    store.close()


def test_a_job_comes_back_as_it_went_in(store: JobStore, clock: Clock) -> None:
    asked = GenerateSettings(prompt="a “red” mug; DROP TABLE jobs", steps=3, options=("guidance=3",))
    job = store.submit(asked, user="ada", priority=-2)
    assert store.get(job.id) == job
    assert (job.state, job.user, job.priority, job.created) == ("queued", "ada", -2, clock.now)
    assert job.settings == asked.plain()
    assert len(job.id) == 32


def test_a_second_store_sees_the_same_queue(store: JobStore) -> None:
    job = store.submit(A_MUG)
    with_other = JobStore(store.path)
    assert with_other.get(job.id).prompt == "a red mug"
    with_other.cancel(job.id)
    assert store.get(job.id).state == "cancelled"


def test_lists_the_newest_first_in_pages(store: JobStore) -> None:
    for number in range(5):
        store.submit(GenerateSettings(prompt=f"mug {number}"))
    page = store.find(limit=2, offset=1)
    assert [job.prompt for job in page.jobs] == ["mug 3", "mug 2"]
    assert page.total == 5


def test_finds_words_in_any_case_and_script(store: JobStore) -> None:
    for prompt in ("A Red MUG", "eine grüne Straße", "красная кружка", "100% red_mug"):
        store.submit(GenerateSettings(prompt=prompt))
    found = {
        search: [job.prompt for job in store.find(search=search).jobs]
        for search in ("mug red", "STRASSE", "Кружка", "%", "_", "\ud800", "x")
    }
    assert found == {
        "mug red": ["100% red_mug", "A Red MUG"],
        "STRASSE": ["eine grüne Straße"],
        "Кружка": ["красная кружка"],
        "%": ["100% red_mug"],
        "_": ["100% red_mug"],
        "\ud800": [],
        "x": [],
    }


def test_filters_by_state_user_and_kind(store: JobStore) -> None:
    first = store.submit(A_MUG, user="ada")
    store.submit(A_MUG, user="bob")
    store.cancel(first.id)
    assert [job.user for job in store.find(["cancelled"]).jobs] == ["ada"]
    assert [job.user for job in store.find(["queued", "running"]).jobs] == ["bob"]
    assert store.find(user="bob", kind="generate").total == 1
    assert store.find(kind="edit").total == 0
    assert store.counts()["queued"] == 1


@pytest.mark.parametrize(("limit", "offset"), [(0, 0), (501, 0), (10, -1), (10, 2**63)])
def test_refuses_pages_that_cannot_be(store: JobStore, limit: int, offset: int) -> None:
    with pytest.raises(ConfigError):
        store.find(limit=limit, offset=offset)


@pytest.mark.parametrize("user", ["", "x" * 101, "a\nb", "a\ud800"])
def test_refuses_users_that_cannot_be(store: JobStore, user: str) -> None:
    with pytest.raises(ConfigError):
        store.submit(A_MUG, user=user)


def test_the_queue_has_an_end(tmp_path: Path) -> None:
    store = JobStore(tmp_path / "q", Limits(jobs=3, per_user=2))
    first = store.submit(A_MUG, user="ada")
    store.submit(A_MUG, user="ada")
    with pytest.raises(QueueFullError, match="You have 2 jobs"):
        store.submit(A_MUG, user="ada")
    store.submit(A_MUG, user="bob")
    with pytest.raises(QueueFullError, match="The queue is full"):
        store.submit(A_MUG, user="eve")
    store.cancel(first.id)
    store.submit(A_MUG, user="eve")
    with pytest.raises(QueueFullError):  # a retry is no way around it
        store.retry(first.id)


def test_limits_hold_when_many_submit_at_once(tmp_path: Path) -> None:
    path = tmp_path / "q"
    JobStore(path).close()
    refused: list[int] = []

    def submit(number: int) -> None:
        own = JobStore(path, Limits(jobs=10, per_user=10))
        for _ in range(5):
            try:
                own.submit(A_MUG)
            except QueueFullError:
                refused.append(number)
        own.close()

    threads = [threading.Thread(target=submit, args=(number,)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert JobStore(path).find().total == 10
    assert len(refused) == 10


def claimed_prompts(store: JobStore, clock: Clock, count: int) -> list[str]:
    prompts = []
    for _ in range(count):
        clock.now += 1
        job = store.claim("w", 5)
        assert job is not None
        assert store.finish(job.id, "w", "done")
        prompts.append(job.prompt)
    return prompts


def test_priority_goes_before_age(store: JobStore, clock: Clock) -> None:
    for prompt, priority in (("old", 0), ("young", 0), ("urgent", 5), ("later", -5)):
        clock.now += 1
        store.submit(GenerateSettings(prompt=prompt), priority=priority)
    assert claimed_prompts(store, clock, 4) == ["urgent", "old", "young", "later"]
    assert store.claim("w", 5) is None


def test_one_users_many_jobs_do_not_keep_another_waiting(store: JobStore, clock: Clock) -> None:
    for number in range(4):
        store.submit(GenerateSettings(prompt=f"ada {number}"), user="ada")
    clock.now += 10
    assert claimed_prompts(store, clock, 1) == ["ada 0"]
    store.submit(GenerateSettings(prompt="bob"), user="bob")
    clock.now += 10
    assert claimed_prompts(store, clock, 1) == ["ada 1"]  # she waits since her last one began, before bob came
    assert claimed_prompts(store, clock, 3) == ["bob", "ada 2", "ada 3"]


def test_new_users_cannot_starve_old_ones(store: JobStore, clock: Clock) -> None:
    for number in range(2):
        store.submit(GenerateSettings(prompt=f"ada {number}"), user="ada")
    assert claimed_prompts(store, clock, 1) == ["ada 0"]
    for number in range(5):
        clock.now += 1
        store.submit(GenerateSettings(prompt=f"new {number}"), user=f"new {number}")
    assert claimed_prompts(store, clock, 1) == ["ada 1"]


def test_workers_never_get_the_same_job(tmp_path: Path) -> None:
    path = tmp_path / "q"
    store = JobStore(path)
    jobs = {store.submit(A_MUG).id for _ in range(30)}
    taken: list[str] = []

    def work(name: str) -> None:
        own = JobStore(path)
        while (job := own.claim(name, 60)) is not None:
            taken.append(job.id)
        own.close()

    threads = [threading.Thread(target=work, args=(f"w{number}",)) for number in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(taken) == 30
    assert set(taken) == jobs


def test_a_heartbeat_keeps_a_job_and_tells_of_a_cancel(store: JobStore, clock: Clock) -> None:
    job = store.submit(A_MUG)
    store.claim("w", 5)
    for step in range(1, 4):
        clock.now += 4
        assert store.heartbeat(job.id, "w", 5, Progress("optimising", step, 10), run="a~b~c") == "running"
    now = store.get(job.id)
    assert (now.progress.step, now.run, now.attempts) == (3, "a~b~c", 0)
    assert store.cancel(job.id).state == "cancelling"
    assert store.cancel(job.id).state == "cancelling"  # twice is once
    assert store.heartbeat(job.id, "w", 5) == "cancelling"
    assert store.get(job.id).progress.step == 3
    assert store.heartbeat(job.id, "another", 5) is None
    assert store.finish(job.id, "w", "cancelled")
    assert store.heartbeat(job.id, "w", 5) is None


def test_an_expired_lease_puts_the_job_back(store: JobStore, clock: Clock) -> None:
    job = store.submit(A_MUG)
    store.claim("w", 5)
    store.heartbeat(job.id, "w", 5, run="a~b~c")
    clock.now += 6
    again = store.claim("w2", 5)
    assert again is not None
    assert (again.id, again.worker, again.attempts, again.run) == (job.id, "w2", 1, "a~b~c")
    assert store.heartbeat(job.id, "w", 5) is None
    assert not store.finish(job.id, "w", "done")
    assert not store.release(job.id, "w")
    assert store.crash(job.id, "w", "x") is None
    assert store.get(job.id).state == "running"


def test_a_late_heartbeat_revives_a_lease_that_nobody_took(store: JobStore, clock: Clock) -> None:
    job = store.submit(A_MUG)
    store.claim("w", 5)
    clock.now += 600  # the machine slept
    assert store.heartbeat(job.id, "w", 5) == "running"
    assert store.claim("w2", 5) is None


def test_an_expired_cancel_is_a_cancel(store: JobStore, clock: Clock) -> None:
    job = store.submit(A_MUG)
    store.claim("w", 5)
    store.cancel(job.id)
    clock.now += 6
    store.expire()
    assert store.get(job.id).state == "cancelled"


def test_a_job_that_takes_its_workers_along_is_quarantined(store: JobStore, clock: Clock) -> None:
    job = store.submit(A_MUG)
    for _ in range(5):
        assert store.claim("w", 5) is not None
        clock.now += 6
    assert store.claim("w", 5) is None
    now = store.get(job.id)
    assert (now.state, now.attempts, now.crashes) == ("quarantined", 5, 0)
    assert "worker was lost" in (now.error or "")


def test_a_job_that_gets_on_may_lose_any_number_of_workers(store: JobStore, clock: Clock) -> None:
    job = store.submit(A_MUG)
    for step in range(1, 20):
        assert store.claim("w", 5) is not None
        store.heartbeat(job.id, "w", 5, Progress("optimising", step, 100))
        clock.now += 6
    assert store.claim("w", 5) is not None
    assert store.get(job.id).attempts == 19


def test_the_second_crash_quarantines_and_a_retry_clears(store: JobStore) -> None:
    job = store.submit(A_MUG)
    store.claim("w", 5)
    assert store.crash(job.id, "w", "killed by SIGSEGV") == "queued"
    store.claim("w", 5)
    assert store.crash(job.id, "w", "killed by SIGSEGV") == "quarantined"
    now = store.get(job.id)
    assert (now.attempts, now.crashes, now.error) == (2, 2, "killed by SIGSEGV")
    assert now.hint
    assert now.ended
    assert store.claim("w", 5) is None
    again = store.retry(job.id)
    assert (again.state, again.attempts, again.crashes, again.error, again.ended) == ("queued", 0, 0, None, None)


def test_a_stopped_worker_is_no_attempt(store: JobStore) -> None:
    job = store.submit(A_MUG)
    for _ in range(9):
        store.claim("w", 5)
        assert store.release(job.id, "w")
    now = store.get(job.id)
    assert (now.state, now.attempts) == ("queued", 0)
    store.claim("w", 5)
    store.cancel(job.id)
    store.release(job.id, "w")
    assert store.get(job.id).state == "cancelled"


def test_a_retry_keeps_the_run_unless_it_shall_be_fresh(store: JobStore) -> None:
    job = store.submit(A_MUG)
    store.claim("w", 5)
    store.heartbeat(job.id, "w", 5, run="a~b~c")
    store.finish(job.id, "w", "failed", "The disk is full.", "Free some space.")
    now = store.get(job.id)
    assert (now.state, now.error, now.hint) == ("failed", "The disk is full.", "Free some space.")
    store.logs(job.id).mkdir(parents=True)
    assert store.retry(job.id).run == "a~b~c"
    assert store.logs(job.id).is_dir()
    store.cancel(job.id)
    assert store.retry(job.id, fresh=True).run is None
    assert not store.logs(job.id).exists()


def test_what_cannot_be_done_in_a_state_is_refused(store: JobStore) -> None:
    job = store.submit(A_MUG)
    with pytest.raises(JobStateError, match="it is queued"):
        store.retry(job.id)
    store.claim("w", 5)
    with pytest.raises(JobStateError, match="Cancel it first"):
        store.delete(job.id)
    store.finish(job.id, "w", "done", result={"seconds": 3})
    assert store.get(job.id).result == {"seconds": 3}
    for refused in (store.cancel, store.retry):
        with pytest.raises(JobStateError, match="it is done"):
            refused(job.id)
    store.delete(job.id)
    for missing in (store.get, store.cancel, store.retry, store.delete, store.resolve):
        with pytest.raises(NotFoundError):
            missing(job.id)
    with pytest.raises(NotFoundError):
        store.get("\ud800'; --")


def test_an_id_may_be_shortened_where_people_type(store: JobStore) -> None:
    job = store.submit(A_MUG)
    assert store.resolve(job.id[:6]).id == job.id
    for wrong in ("", "abc", "*", "????", f"{job.id}0"):
        with pytest.raises(NotFoundError):
            store.resolve(wrong)


def test_runs_of_active_jobs_are_in_use(store: JobStore) -> None:
    job = store.submit(A_MUG)
    store.claim("w", 5)
    store.heartbeat(job.id, "w", 5, run="a~b~c")
    assert store.uses_run("a~b~c")
    assert not store.uses_run("a~b~d")
    store.finish(job.id, "w", "done")
    assert not store.uses_run("a~b~c")


def test_workers_are_counted_while_they_are_heard_of(store: JobStore, clock: Clock) -> None:
    store.greet("a")
    store.greet("b")
    assert store.workers() == 2
    store.part("a")
    assert store.workers() == 1
    clock.now += 60
    assert store.workers() == 0


def test_a_newer_queue_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "q"
    JobStore(path).close()
    with sqlite3.connect(path) as other:
        other.execute("PRAGMA user_version = 99")
    with pytest.raises(QueueError, match="schema version 99"):
        JobStore(path)


def test_another_programs_database_is_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "bookmarks.sqlite"
    with sqlite3.connect(path) as other:
        other.execute("CREATE TABLE bookmarks (url TEXT)")
    before = path.read_bytes()
    with pytest.raises(QueueError, match="something else"):
        JobStore(path)
    assert path.read_bytes() == before


def test_a_damaged_queue_says_so(tmp_path: Path) -> None:
    path = tmp_path / "q"
    path.write_bytes(b"this is not a database, not at all, it has never been one" * 100)
    with pytest.raises(QueueError, match="damaged or no queue"):
        JobStore(path)
    good = tmp_path / "good"
    store = JobStore(good)
    for number in range(200):
        store.submit(GenerateSettings(prompt=f"mug {number} " + "x" * 1500), user=str(number))
    store.close()
    content = bytearray(good.read_bytes())
    content[4096 * 2 :] = b"\xff" * (len(content) - 4096 * 2)
    good.write_bytes(content)
    with pytest.raises(QueueError, match="damaged"):
        JobStore(good).find(limit=500)


def test_a_file_in_the_way_and_a_missing_right(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(Exception, match="file is in the way"):
        JobStore(tmp_path / "file" / "q")
    (tmp_path / "folder").mkdir()
    with pytest.raises(QueueError, match="can't be opened"):
        JobStore(tmp_path / "folder")


def test_a_locked_queue_says_so_and_nothing_is_lost(store: JobStore) -> None:
    job = store.submit(A_MUG)
    other = sqlite3.connect(store.path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    with pytest.raises(QueueError, match="locked by another process"):
        store.submit(A_MUG)
    assert store.get(job.id) == job  # readers don't wait
    other.execute("ROLLBACK")
    store.submit(A_MUG)
    assert store.find().total == 2


def test_a_full_disk_says_so_and_nothing_is_lost(store: JobStore) -> None:
    first = store.submit(A_MUG)
    connection = store._database._connection
    pages = connection.execute("PRAGMA page_count").fetchone()[0]
    connection.execute(f"PRAGMA max_page_count = {pages}")
    big = GenerateSettings(prompt="mug " * 450)

    def fill() -> None:
        for _ in range(50):
            store.submit(big)

    with pytest.raises(QueueError, match="is full"):
        fill()
    known = store.find().total
    assert store.get(first.id) == first
    connection.execute("PRAGMA max_page_count = 100000")
    store.submit(A_MUG)
    assert store.find().total == known + 1


def test_processes_may_make_the_queue_at_once(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom dreamkit_apps.jobs.store import JobStore\n"
        "from dreamkit_apps.jobs.settings import GenerateSettings\n"
        "for _ in range(5): JobStore(sys.argv[1]).submit(GenerateSettings(prompt='a mug'))"
    )
    path = tmp_path / "new" / "q"
    made = [subprocess.Popen([sys.executable, "-c", code, str(path)]) for _ in range(4)]
    assert [process.wait(60) for process in made] == [0] * 4
    assert JobStore(path).find().total == 20


OPERATIONS = ("claim", "cancel", "retry", "delete", "crash", "release", "done", "failed", "cancelled", "beat", "sleep")


@settings(max_examples=40)
@given(st.lists(st.tuples(st.sampled_from(OPERATIONS), st.integers(0, 2), st.sampled_from("ab")), max_size=40))
def test_whatever_happens_a_job_is_in_one_good_state(
    tmp_path_factory: pytest.TempPathFactory, steps: list[tuple[str, int, str]]
) -> None:
    clock = Clock()
    store = JobStore(tmp_path_factory.mktemp("q") / "q", clock=clock)
    ids = [store.submit(A_MUG).id for _ in range(3)]
    deleted: set[str] = set()
    for operation, index, worker in steps:
        clock.now += 1
        job_id = ids[index]
        try:
            if operation == "claim":
                store.claim(worker, 5)
            elif operation == "sleep":
                clock.now += 10
            elif operation == "beat":
                store.heartbeat(job_id, worker, 5)
            elif operation == "crash":
                store.crash(job_id, worker, "boom")
            elif operation == "release":
                store.release(job_id, worker)
            elif operation in ("done", "failed", "cancelled"):
                store.finish(job_id, worker, operation)
            else:
                getattr(store, operation)(job_id)
                deleted |= {job_id} if operation == "delete" else set()
        except (JobStateError, NotFoundError):
            pass
        jobs = store.find().jobs
        assert {job.id for job in jobs} == set(ids) - deleted
        for job in jobs:
            assert (job.worker is not None) == (job.state in HELD)
            assert (job.ended is not None) == (job.state in ENDED) == (job.state not in ACTIVE)
    store.close()
