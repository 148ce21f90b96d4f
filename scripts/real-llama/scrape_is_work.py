"""Teach this llama-server to be, on demand, one to which a scrape is work, as servers before September 2026 are.

With LLAMA_SCRAPE_IS_WORK in its environment a scrape begins the time to sleep anew and wakes a server that sleeps.
Without it nothing changes.

    scrape_is_work.py DIRECTORY_OF_LLAMA_CPP
"""

import pathlib
import sys

IS_WORK = 'std::getenv("LLAMA_SCRAPE_IS_WORK")'
HANDLER = "this->get_metrics = [this](const server_http_req & req) {\n        auto res = create_response("
CHANGES = (
    (
        "server-queue.cpp",
        "return type != SERVER_TASK_TYPE_METRICS;",
        f"return {IS_WORK} || type != SERVER_TASK_TYPE_METRICS;",
    ),
    ("server-context.cpp", f"{HANDLER}true);", f"{HANDLER}!{IS_WORK});"),
)


def main():
    for name, before, after in CHANGES:
        path = pathlib.Path(sys.argv[1]) / "tools" / "server" / name
        text = path.read_text()
        if text.count(before) != 1:
            sys.exit(f"scrape_is_work.py: {path} does not have this once: {before!r}")
        path.write_text("#include <cstdlib>\n" + text.replace(before, after))


if __name__ == "__main__":
    if len(sys.argv) != 2:
        sys.exit(__doc__)
    main()
