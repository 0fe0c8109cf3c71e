"""What a model may take of a GPU becomes limits that hold together, or is refused with what would do."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest
from equipoise_client.cli.main import main
from equipoise_core.gpu_memory import CUDA_RESERVE
from equipoise_deploy.errors import DeployError
from equipoise_deploy.gpu_memory import gpu_limits, parse_bytes
from equipoise_deploy.releases.publishing import make_release
from equipoise_deploy.releases.release import verify_release
from equipoise_deploy.releases.store import Store
from equipoise_deploy.repository import models_of, parse_configuration
from equipoise_export.publish.repository import publish_pair

from ..support.releases import proven

REFERENCE = Path(__file__).resolve().parents[2] / "model_repository"


@pytest.mark.parametrize(
    ("text", "expected"),
    [("24G", 24 * 10**9), ("24 GB", 24 * 10**9), ("22.5GiB", int(22.5 * 2**30)), ("900m", 900 * 10**6)],
)
def test_memory_is_read_as_gpus_are_sold(text, expected):
    """G is 10⁹: a GPU of 24 GB has no less."""
    assert parse_bytes(text) == expected


@pytest.mark.parametrize("text", ["", "24", "0G", "-3G", "much", "24K"])
def test_what_is_no_amount_of_memory_is_refused(text):
    with pytest.raises(ValueError, match="not an amount of memory"):
        parse_bytes(text)


@pytest.mark.parametrize("memory", [9, 16, 24, 40, 141])
@pytest.mark.parametrize("name", ["nuclei", "hippocampus", "pneumonia"])
def test_limits_add_up_to_what_was_given_and_each_holds_its_run(name, memory):
    """Samplers and first pass run at the same time; what remains is less than another image in every run."""
    plan = gpu_limits(REFERENCE, name, memory * 10**9).plan
    assert CUDA_RESERVE + sum(map(plan.limit, plan.needs)) <= memory * 10**9
    assert all(plan.limit(sampler) >= need.of(plan.images) for sampler, need in plan.needs.items())
    assert 1 <= plan.images <= 8
    assert plan.images == 8 or plan.needed(plan.images + 1) > plan.memory


def test_fewer_samples_and_fewer_instances_leave_room_for_more_images():
    """T and instances count as images do."""

    def images(**given: int) -> int:
        return gpu_limits(REFERENCE, "nuclei", 24 * 10**9, **given).plan.images

    assert images(chunk=5) > images() > images(instances=2)


def test_what_does_not_fit_is_refused_with_what_would():
    """The sizes that it names do fit."""
    with pytest.raises(DeployError, match=r"an image of 1024 × 1024 needs .* GB on a GPU, 6 GB were given") as refused:
        gpu_limits(REFERENCE, "nuclei", 6 * 10**9)
    assert "export it with a maximum of 816 × 816" in str(refused.value)
    with pytest.raises(DeployError, match="draw fewer samples at a time"):
        gpu_limits(REFERENCE, "pneumonia", 10**9)


def test_members_of_an_ensemble_share_the_memory(tiny_segmentation, tmp_path):
    """Each draws its part of the samples, at the same time as the others."""
    model = type(tiny_segmentation.model).FromString(tiny_segmentation.model.SerializeToString())
    model.doc_string = "another member"
    publish_pair(tiny_segmentation, tmp_path, further=[replace(tiny_segmentation, model=model)])
    plan = gpu_limits(tmp_path, "tinyseg", 2 * 10**9).plan
    assert {name: need.samples for name, need in plan.needs.items()} == {
        "tinyseg_sampler_1": 10,
        "tinyseg_sampler_2": 10,
    }
    assert CUDA_RESERVE + sum(map(plan.limit, plan.needs)) <= 2 * 10**9


def test_a_release_for_a_gpu_has_its_limits_in_every_configuration(tmp_path):
    """And is another release than one for another GPU; its files are as its digests say."""
    store = Store(tmp_path)
    release = make_release(REFERENCE, "nuclei", store, gpu_memory=16 * 10**9)
    folder = store.folder("nuclei", release.version)
    plan = gpu_limits(REFERENCE, "nuclei", 16 * 10**9).plan
    assert verify_release(folder) == release
    for model in models_of(folder, "nuclei")[1:]:
        for path in ("config.pbtxt", "configs/tensorrt.pbtxt"):
            config = parse_configuration(folder / model / path)
            assert config.max_batch_size == config.model_warmup[0].batch_size == plan.images
            assert config.parameters["gpu_mem_limit"].string_value == str(plan.limit(model))
            for accelerator in config.optimization.execution_accelerators.gpu_execution_accelerator:
                for name, shapes in accelerator.parameters.items():
                    if name in ("trt_profile_opt_shapes", "trt_profile_max_shapes"):
                        assert {each.split(":")[1].split("x")[0] for each in shapes.split(",")} == {str(plan.images)}
        assert parse_configuration(folder / model / "configs/embedded.pbtxt").max_batch_size == 8
        stand_in = parse_configuration(folder / model / "configs/embedded_cuda.pbtxt")
        (cuda,) = stand_in.optimization.execution_accelerators.gpu_execution_accelerator
        assert (stand_in.max_batch_size, cuda.parameters["gpu_mem_limit"]) == (plan.images, str(plan.limit(model)))
    public = parse_configuration(folder / "nuclei/config.pbtxt")
    assert public.parameters["images"].string_value == str(plan.images)
    assert make_release(REFERENCE, "nuclei", store, gpu_memory=80 * 10**9).version == release.version + 1
    assert make_release(REFERENCE, "nuclei", store, gpu_memory=16 * 10**9) == release


def _exit_code(arguments: list[str]) -> int:
    with pytest.raises(SystemExit) as ended:
        main(arguments)
    return int(ended.value.code or 0)


def test_the_command_says_what_it_assumes(tmp_path, capsys, tiny_classifier):
    """Per file: samples, bytes of a run, whether they were measured, and the limit."""
    pairs, store = tmp_path / "pairs", tmp_path / "store"
    publish_pair(proven(tiny_classifier), pairs)
    command = ["publish", f"{pairs}:tinycls", "--store", str(store), "--gpu-memory"]
    assert _exit_code([*command, "8G"]) == 0
    said = capsys.readouterr().out
    assert "8 GB for this model alone, 1.07 GB of it left to CUDA; up to 8 images share a run, at 4 × 4 at most" in said
    assert "tinycls_sampler: 20 samples an image" in said and "reckoned from the size" in said
    assert _exit_code([*command, "8G", "--json"]) == 0
    document = json.loads(capsys.readouterr().out)["gpu"]
    assert document["images"] == 8 and not document["samplers"]["tinycls_sampler"]["measured"]
    assert _exit_code([*command, "much"]) == 2
    assert "not an amount of memory" in capsys.readouterr().err
    assert _exit_code([*command, "1G"]) == 1
    assert "were given" in capsys.readouterr().err
