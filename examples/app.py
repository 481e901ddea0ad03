"""Functions as jobs: what `duly up --app app:duly` runs, and what `python app.py` runs by itself.

cd examples && duly up --app app:duly        a server that runs them
cd examples && python app.py                 the same in this program, stored in ./duly.db
"""

import asyncio

from duly import Duly, current_run

duly = Duly()


@duly.job(schedule="every 2s", max_lateness="100ms", keep={"runs": 100, "for": "1h"}, labels={"example": "yes"})
async def heartbeat() -> str:
    """An async function, every two seconds."""
    await asyncio.sleep(0.01)
    return f"on time: {current_run.lateness}"


@duly.job(schedule="*/10 * * * * *", retry=5, labels={"example": "yes"})
def flaky() -> int:
    """A function that fails at its first attempt and succeeds at its second; every ten seconds."""
    current_run.log.info("attempt %d of %s", current_run.attempt, current_run.id)
    if current_run.attempt == 1:
        raise RuntimeError("the first attempt always fails")
    return current_run.attempt


@duly.job()
def resize(path: str, width: int = 640) -> str:
    """A function that is only submitted: `duly.submit(resize, "a.png", at="in 5m")`."""
    return f"{path} at {width} px"


if __name__ == "__main__":
    handle = duly.submit(resize, "a.png", width=320)
    print(handle.result(timeout=10), f"({handle.run.lateness_ms} ms after it was due)")
    duly.run()
