"""`equipoise load`: a load test whose latencies are counted from when a request should have been sent.

mix.py        what is sent: models, images, T, priority, by weight
arrivals.py   when: Poisson or constant (open loop), or as soon as an answer is there (closed loop)
engine.py     sends it over many connections, and tallies
tally.py      histograms and counts → a report
scrape.py     the server's own account: queue and compute
slo.py        what was promised, and the highest rate that keeps it
report.py     tables, JSON, HTML
analyzer.py   the same load as a command for NVIDIA's perf_analyzer
"""
