"""A Triton of our own: found, started, monitored, restarted, stopped without a trace.

command.py      the verb `equipoise serve`: options in, `serve.py` called
serve.py        start, prove, monitor, restart or reload, stop
supervisor.py   keeps one Triton serving, within a budget of restarts (restarting.py)
monitor.py      whether it still serves: processes (processes.py), health probes (readiness.py)
health.py       what a load balancer asks: 200 only while every served model answers
server.py       one Triton process on loopback; guardian.py cleans up after it, whatever happens
engine.py       where Triton is: the binary, its backends, the Python stub
staging.py      the run directory that Triton reads; settings.py: how this machine runs a model
container.py    the same repository in NVIDIA's image
"""
