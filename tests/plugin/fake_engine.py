"""Stands in for the engine in fault tests: ``fake_engine.py MODE JOB.json`` speaks the protocol and misbehaves."""

import json
import os
import signal
import sys
import threading
import time


def say(kind, **values):
    print(json.dumps({"kind": kind, **values}), flush=True)


def end_with_parent():
    while os.read(0, 1):  # a thread that waits in sys.stdin would abort the interpreter at its end
        pass
    say("failure", code="cancelled", problems=[{"what": "The run", "found": "cancelled."}])
    os._exit(3)


mode, job_file = sys.argv[1], sys.argv[2]
with open(job_file, encoding="utf-8") as file:
    job = json.load(file)
say("progress", done=1, total=4, text="Working")
if mode not in ("deaf",):
    threading.Thread(target=end_with_parent, daemon=True).start()
if mode == "good":
    print("a C library says hello")
    sys.stderr.write("log line with an umlaut: ü\n")
    say("note", level="warning", text="A warning")
    say(
        "note", level="info", text=json.dumps({k: v for k, v in os.environ.items() if k.startswith(("PROJ", "PYTHON"))})
    )
    say("progress", done=4, total=4, text="Done")
    say("result", outputs={}, summary={"job": job["kind"], "isolated": sys.flags.isolated})
elif mode == "lies":
    say("result", outputs={"summary": "/does/not/exist.json"}, summary={})
elif mode == "segfault":
    os.kill(os.getpid(), signal.SIGSEGV)
elif mode == "killed":
    os.kill(os.getpid(), signal.SIGKILL)
elif mode == "aborts":
    os.abort()
elif mode == "midline":
    sys.stdout.write('{"kind": "result", "outp')
    sys.stdout.flush()
    os._exit(0)
elif mode == "silent":
    sys.exit(0)
elif mode == "traceback":
    import a_module_that_does_not_exist  # noqa: F401
elif mode == "garbage":
    sys.stdout.buffer.write(b'\xff\xfe{}\n[1,2]\nnull\n{"kind": "progress"}\n{"kind": "unknown"}\n' * 50)
    sys.stdout.flush()
    os._exit(1)
elif mode == "failure":
    problems = [
        {"what": 'Layer "dem"', "found": "it has no CRS.", "needed": "A CRS is needed.", "remedy": "Assign one."},
        {"what": 'Layer "nlcd"', "found": "it does not overlap."},
    ]
    say("failure", code="bad_input", problems=problems)
    sys.exit(2)
elif mode in ("slow", "deaf"):
    for second in range(600):
        say("progress", done=second, total=0, text="Waiting")
        time.sleep(0.1)
