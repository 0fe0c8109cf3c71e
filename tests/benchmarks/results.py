# ruff: noqa: E501  # the table of sections and sentences read better unbroken
"""Makes RESULTS.md, and the headline of README.md, from the JSON files of one run of the benchmarks.

python -m tests.benchmarks.results build/benchmarks [--page tests/benchmarks/RESULTS.md] [--readme README.md]
"""

from __future__ import annotations

import argparse
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
Lines = Iterator[str]


def table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> Lines:
    yield "| " + " | ".join(head) + " |"
    yield "|---" * len(head) + "|"
    for row in rows:
        yield "| " + " | ".join(str(cell) for cell in row) + " |"


def most_clients(peers: Mapping[str, Any]) -> str:
    """The load of a serving benchmark with the most clients."""
    loads = [load for load in peers["equipoise"] if load.endswith("clients")]
    return max(loads, key=lambda load: int(load.split()[0]))


def faster(peers: Mapping[str, Any], than: str) -> float:
    """Rate of equipoise over that of a peer, at the most clients."""
    load = most_clients(peers)
    return peers["equipoise"][load]["rate"] / peers[than][load]["rate"]


def first_answer(found: Any) -> Lines:
    networks = found["networks"]
    rows = [] if found["install"] is None else [("install", *(f"{found['install']:.0f}" for _ in networks))]
    rows += [(step, *(f"{steps[step]:.3g}" for steps in networks.values())) for step in next(iter(networks.values()))]
    yield from table(("step, s", *networks), rows)


def export_cost(found: Any) -> Lines:
    rows = [
        (name, f"{each['sampler_ms']:.1f}", f"{each['of_parts']:.2f}", f"{each['copies']:.1f} ×", f"{each['loop']:.1f} ×",
         f"{each['head']:.1%}")
        for name, each in found["networks"].items()
    ]  # fmt: skip
    head = ("network", "sampler, ms", "of trunk + suffix", "faster than copies", "than a loop", "moments' share")
    yield from table(head, rows)


def export(found: Any) -> Lines:
    rows = []
    for network, verbs in found.items():
        for verb, each in verbs.items():
            parts = sorted(each["timings"]["phases"], key=lambda part: -part["seconds"])[:3]
            largest = ", ".join(f"{part['name']} {part['seconds'] / each['seconds']:.0%}" for part in parts)
            rows.append((network, verb, f"{each['seconds']:.1f}", f"{each['processor_seconds']:.1f}", largest))
    yield from table(("network", "verb", "seconds", "of the processor", "largest phases"), rows)


def serving(found: Any) -> Lines:
    rows = []
    for each in found:
        load = most_clients(each["peers"])
        for peer, loads in each["peers"].items():
            rate = loads[load]["rate"]
            ratio = f"{faster(each['peers'], peer):.2f} ×"
            rows.append((each["network"], peer, f"{rate:.4g}", f"{loads[load]['p50']:.4g}", ratio))
    yield from table(("network", "peer", "images per s", "p50, ms", "equipoise is faster"), rows)


def load_generator(found: Any) -> Lines:
    yield from table(
        ("p50 of 20 ms", "p99 of 20 ms", "p50 over perf_analyzer's"),
        [(f"{found['truth']['p50']:.2f} ms", f"{found['truth']['p99']:.2f} ms", f"{found['ratio']:.3f}")],
    )


def memory_flat(found: Any) -> Lines:
    memory, shared = found["memory_mb"], found["shared_mb"]
    yield from table(
        ("requests", "memory, MB", "/dev/shm, MB"),
        [(found["requests"], f"{memory[0]:.0f} → {memory[-1]:.0f}", f"{shared[0]:.1f} → {shared[-1]:.1f}")],
    )


def memory_large(found: Any) -> Lines:
    rows = [
        (each["samples"], f"{each['seconds']:.0f}", f"{each['high_water_mb']:.0f}", f"{each['shared_mb']:.0f}")
        for each in (found["t5"], found["t20"])
    ]
    yield from table(("T", "seconds", "peak, MB", "/dev/shm, MB"), rows)


def memory_volume(found: Any) -> Lines:
    size = " × ".join(map(str, found["size"]))
    row = (
        size,
        found["samples"],
        f"{found['seconds']:.0f}",
        f"{found['high_water_mb']:.0f}",
        f"{found['shared_mb']:.0f}",
    )
    yield from table(("voxels", "T", "seconds", "peak, MB", "/dev/shm, MB"), [row])


def masks(found: Any) -> Lines:
    rows = [
        (f"{int(bits):,}", *(f"{each[name]:.2f}" for name in ("before", "new", "threads")),
         *(f"{each[f'faster_{name}']:.1f} ×" for name in ("new", "threads")))
        for bits, each in found["bits"].items()
    ]  # fmt: skip
    yield from table(("bits", "before, ns", "now, ns", "with threads, ns", "faster", "with threads"), rows)


def stages(found: Any) -> Lines:
    rows = [
        (each["model"], each["stages"], f"{each['accepted']:.1%}", f"{each['wrong']} of {each['cases']}",
         each["certificate"], f"{each['passes']:.1f}", f"{each['milliseconds']:.3g}", f"{each['faster']:.1f} ×")
        for each in found
    ]  # fmt: skip
    titles = ("model", "stages", "accepted", "wrong among them, of cases", "certified", "passes", "ms", "less time")
    yield from table(titles, rows)


def aggregator(found: Any) -> Lines:
    parts = next(iter(found.values()))["now"]["parts"]
    rows = [
        (f"{name}, {when}", f"{each[when]['whole']:.2f}", *(f"{each[when]['parts'][part]:.2f}" for part in parts))
        for name, each in found.items()
        for when in ("before", "now")
    ]
    yield from table(("core-ms a request", "whole", *parts), rows)
    yield ""
    yield "; ".join(f"{name} {each['ratio']:.2f} × less" for name, each in found.items()) + "."


def decisions(found: Any) -> Lines:
    rows = [
        (name, each["what"], each["figure"], each["bound"], "yes" if each["holds"] else "**no**")
        for name, claims in found.items()
        for each in claims
    ]
    yield from table(("model", "claim", "measured", "wanted", "holds"), rows)


def volumes(found: Any) -> Lines:
    rows = [
        (f"{each['noise']:g}", f"{each['level']:.0%}", f"{each['samples_own']:.1%}", f"{each['calibrated']:.1%}",
         f"{each['width_ml']:.2f}", f"{each['accepted']} of {each['cases']}")
        for each in found
    ]  # fmt: skip
    yield from table(("noise", "nominal", "samples' own", "calibrated", "width, mL", "accepted"), rows)


def active_learning(found: Any) -> Lines:
    def shown(estimate: Mapping[str, Any]) -> str:
        if estimate["mean"] is None:
            return "–"
        between = "" if estimate["low"] is None else f" ({estimate['low']:.3g} to {estimate['high']:.3g})"
        return f"{estimate['mean']:.3g}{between}"

    rows = [
        (what, each["strategy"], f"{each['dice'][-1]:.3f}", shown(each["gain"]), shown(each["saved"]))
        for what in ("mean", "worst tenth")
        for each in found[what]["findings"]
    ]
    yield from table(("Dice", "strategy", "at the end", "over random's", "labels saved"), rows)


def faults(found: Any) -> Lines:
    rows = [
        (each["fault"], each["requests"], len(each["lost"]), each["wrong"] + each["accepted wrongly"],
         " / ".join(f"{each[f'ms {part}'].get('p99', float('nan')):.0f}" for part in ("before", "during", "after")))
        for each in found
    ]  # fmt: skip
    yield from table(("fault", "requests", "lost", "wrong", "p99 before / during / after, ms"), rows)


def soak(found: Any) -> Lines:
    rows = [
        (each["what"], f"{each['measured']:.3g}", f"{each['bound']:g}", "yes" if each["measured"] <= each["bound"] else "**no**")
        for each in found["verdicts"]
    ]  # fmt: skip
    yield f"{found['minutes']:g} minutes, {found['answered']} requests answered, {found['lost']} not."
    yield ""
    yield from table(("promise", "measured", "allowed", "kept"), rows)


def adapt(found: Any) -> Lines:
    rows = [
        (each["model"], each["site"], f"{each['separation']:.2f}", f"{each['effective_size']:.0f}", each["labelled"],
         f"{each['errors']} of {each['accepted']}", each["open"],
         *(share(each.get(f"covered, {where}")) for where in ("elsewhere", "here")))
        for each in found
    ]  # fmt: skip
    head = ("model", "site", "told apart (AUROC)", "worth, cases", "labels", "wrong of accepted", "thresholds open",
            "covered, elsewhere", "covered, here")  # fmt: skip
    yield from table(head, rows)


def share(value: float | None) -> str:
    return "–" if value is None else f"{value:.2f}"


SECTIONS: Mapping[str, tuple[str, str, Callable[[Any], Lines]]] = {
    "first_answer": ("From nothing to a served answer", "A fresh environment by pip, ten lines of Python for each network, one server for both, one image each.", first_answer),
    "export_cost": ("Cost of T samples in process", "One run of the sampler with T = 20, against the same graph cut in two and what people write otherwise.", export_cost),
    "export": ("Export, inspect, calibrate", "The commands from start to end, Python's start included; MONAI's BasicUNet on 256², 36 cases.", export),
    "serving": ("Served", "The same network, weights, image and T = 20 served by Equipoise and by its alternatives, with as many clients as were tried.", serving),
    "load_generator": ("The load generator", "Its own error: against a server that answers in 20 ms, and against NVIDIA's perf_analyzer.", load_generator),
    "memory_flat": ("Memory over many requests", "All processes of the server, after warming up and at the end: at most 2 % may be gained.", memory_flat),
    "memory_large": ("Memory and T", "A large volume: the peak may not grow with T.", memory_large),
    "memory_volume": ("A whole CT volume", "One request to the hippocampus model.", memory_volume),
    "masks": ("Drawing masks", "Time a bit and sample with T = 20, by the generator of older contracts and of new ones.", masks),
    "stages": ("Cost of a decision", "Test split, each list of stages calibrated alike; passes and sampler time per case, against T = 20.", stages),
    "aggregator": ("The aggregator's arithmetic", "Processor time of a request without its sampler, against an earlier commit (97de43c here); `masks` and `sampler` are no part of the whole.", aggregator),
    "decisions": ("Decisions", "The published policies on cases that neither weights nor policy have seen.", decisions),
    "volumes": ("Volumes with intervals", "Share of true volumes inside the interval, as the samples give it and after calibration.", volumes),
    "adapt": ("Another site", "Calibrated on one split, then adapted: what images alone say, and after how many labels `accept` opens. Volumes: share of true ones inside the interval as widened elsewhere, and as widened for the site.", adapt),
    "active_learning": ("Choosing images to label", "Nuclei: Dice by the order of `equipoise rank` against random order.", active_learning),
    "faults": ("Faults under load", "Two replicas behind a reverse proxy; latency counts from when a request was due.", faults),
    "soak": ("Soak", "Under half of what the server can do, nothing may grow.", soak),
}  # fmt: skip


def render(run: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """The page: the machine, then a section for each benchmark that was run, in the order of `SECTIONS`."""
    where = run["machine"]
    versions = ", ".join(f"{name} {number}" for name, number in where["versions"].items())
    lines = ["# Results", "", "Written by `make bench`; do not edit.", ""]
    if run["quick"]:
        lines += ["**This was a quick run** (`make bench QUICK=1`): small sizes, one round. Its figures are rough.", ""]
    lines += [
        f"{where['cpu']}, {where['cores']} cores, {where['memory_gib']} GiB; {versions}; "
        f"commit {run['commit']}, {run['date']}.",
        "",
    ]
    for name, (title, meaning, section) in SECTIONS.items():
        if name not in run["benchmarks"]:
            continue
        done = run["benchmarks"][name]
        lines += [f"## {title}", "", meaning, ""]
        if name in found:
            lines += section(found[name])
        if done["exit"]:
            lines += ["", f"**It ended with exit code {done['exit']}:** a promise was not kept, or it did not finish."]
        arguments = " ".join(["", *done["arguments"]])
        lines += ["", f"`bench {name}{arguments}`, {done['seconds']} s.", ""]
    if run["left_out"]:
        lines += ["Not run: " + "; ".join(f"{name} ({why})" for name, why in run["left_out"].items()) + ".", ""]
    return "\n".join(lines)


def headline(run: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    """Four to six lines for the README, of what was measured."""
    lines = [
        f"- {name}: T = 20 in one run is {each['loop']:.0f} × as fast as a PyTorch loop, {each['copies']:.1f} × as "
        "ONNX Runtime on copies."
        for name, each in found.get("export_cost", {}).get("networks", {}).items()
        if "serving" not in found
    ]
    for each in found.get("serving", ()):
        load, peers = most_clients(each["peers"]), each["peers"]
        if each["network"] != "tiny":
            lines.append(
                f"- {each['network']}: {peers['equipoise'][load]['rate']:.3g} images per second with T = 20, "
                f"{faster(peers, 'loop'):.1f} × a PyTorch loop behind FastAPI, {faster(peers, 'copies'):.1f} × ONNX Runtime "
                f"on 20 copies, {faster(peers, 'in process'):.2f} of the same graph in process."
            )
    if "stages" in found:
        spared = {row["model"]: row["faster"] for row in found["stages"] if row["stages"] == "first pass"}
        times = ", ".join(f"{name} {faster:.1f} ×" for name, faster in spared.items())
        lines.append(f"- With a first pass: {times} less sampler time, same certificate.")
    if "decisions" in found:
        claims = [claim for each in found["decisions"].values() for claim in each]
        lines.append(
            f"- Decisions: {sum(claim['holds'] for claim in claims)} of {len(claims)} claims hold on unseen cases."
        )
    if "memory_flat" in found:
        grown = found["memory_flat"]["grown"][0]
        lines.append(f"- Memory: {grown:+.1%} over {found['memory_flat']['requests']} requests.")
    if "faults" in found:
        requests, lost = (
            sum(len(e["lost"]) if key == "lost" else e[key] for e in found["faults"]) for key in ("requests", "lost")
        )
        wrong = sum(each["wrong"] + each["accepted wrongly"] for each in found["faults"])
        lines.append(f"- {len(found['faults'])} faults under load: of {requests} requests {lost} lost, {wrong} wrong.")
    return (
        "\n".join([*lines, ""]) + f"\n{'A quick run on ' if run['quick'] else ''}{run['machine']['cpu']}, "
        f"{run['machine']['cores']} cores: [all results](tests/benchmarks/RESULTS.md)."
    )


BLOCK = re.compile(r"(<!-- headline -->\n).*?(\n<!-- /headline -->)", re.DOTALL)


def with_headline(readme: str, text: str) -> str:
    """The README with the block replaced; ValueError where there is none."""
    if not BLOCK.search(readme):
        raise ValueError("README.md has no block <!-- headline --> … <!-- /headline -->")
    return BLOCK.sub(lambda match: match[1] + text + match[2], readme, count=1)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path, nargs="?", default=ROOT / "build" / "benchmarks")
    parser.add_argument("--page", type=Path, default=Path(__file__).with_name("RESULTS.md"))
    parser.add_argument("--readme", type=Path, default=ROOT / "README.md")
    options = parser.parse_args()
    run = json.loads((options.folder / "run.json").read_text(encoding="utf-8"))
    files = {name: options.folder / f"{name}.json" for name in run["benchmarks"]}
    found = {name: json.loads(file.read_text(encoding="utf-8")) for name, file in files.items() if file.exists()}
    options.page.write_text(render(run, found), encoding="utf-8")
    print(f"written: {options.page}")
    try:
        readme = with_headline(options.readme.read_text(encoding="utf-8"), headline(run, found))
    except ValueError as missing:
        print(f"{missing}; it is left as it is")
    else:
        options.readme.write_text(readme, encoding="utf-8")


if __name__ == "__main__":
    main()
