"""A plan of one network given the weights of another, on a fake TensorRT that runs the graphs."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import onnx_ir as ir
import pytest

from pixelrt.bundle import Bundle, open_bundle
from pixelrt.engines.make import STRUCTURE, Made
from pixelrt.engines.options import BuildOptions, options_of
from pixelrt.engines.refit import Source, _swapped, refitted_plan, refusal, sources_of
from pixelrt.errors import BackendError, FidelityError, InputError, PixelrtError, UsageError
from pixelrt.plans.facts import PlanFacts, PlanTarget
from pixelrt.plans.profiles import parse_profile
from pixelrt.plans.store import find_plans, plan_at, plan_cache, write_plan
from pixelrt.runtime.backends.onnxruntime import OnnxRuntimeCpu
from pixelrt.runtime.pipelines.image import ImageModel
from tests.conftest import resized
from tests.engines.refits import as_this_machine, build, run
from tests.runtime.fake_cuda import FakeCuda
from tests.runtime.fake_tensorrt import FakeTensorRT, Net, weights_of
from tests.runtime.plan_cases import TARGET, Desk

SMALL = {"variant": "resnet", "width": 8, "blocks": 2, "norm": "batch"}
OPTIONS = BuildOptions(
    (parse_profile("1x32x32,1x64x64,1x96x96"),), precision="float16", level=2, refit=True
)


def copied(bundle: Bundle, folder: Path) -> Bundle:
    shutil.copytree(bundle.root, folder)
    return open_bundle(folder)


@pytest.fixture(scope="module")
def planned(make_bundle: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """A small network with a refittable plan."""
    bundle = copied(make_bundle("cyclegan", SMALL), tmp_path_factory.mktemp("old") / "old.pixelrt")
    cuda = FakeCuda()
    build(bundle, "image", OPTIONS, FakeTensorRT(cuda, {}).trt, 60.0)
    return bundle


@pytest.fixture
def old(planned: Bundle, tmp_path: Path) -> Bundle:
    return copied(planned, tmp_path / "old.pixelrt")


@pytest.fixture
def new(make_bundle: Callable[..., Bundle], tmp_path: Path) -> Bundle:
    """The same network with other weights."""
    return copied(make_bundle("cyclegan", SMALL, 1), tmp_path / "new.pixelrt")


@pytest.fixture
def desk(new: Bundle) -> Iterator[Desk]:
    desk = Desk(new)
    yield desk
    desk.cuda.assert_clean()


def source_of(bundle: Bundle) -> Source:
    (source,), reasons = sources_of(bundle, bundle.component.graph("image"), TARGET)
    assert reasons == []
    return source


def refit(old: Bundle, new: Bundle, desk: Desk, target_db: float | None = None) -> Made:
    source = source_of(old)
    return refitted_plan(source.request(new, target_db), source, desk.world.trt, plan_cache())


def graph_in(made: Made) -> Net:
    return Net.read(bytes(made.files[made.facts.plan]))


def test_the_plan_gets_the_weights(old: Bundle, new: Bundle, desk: Desk, photo: Any) -> None:
    """Found and proven as one that was built; and given back its first weights, it is the first."""
    made = refit(old, new, desk)
    first, facts = source_of(old).plan.facts, made.facts
    assert made.fresh
    assert facts.options == {**first.options, "refitted_from": first.sha256}
    assert facts.conversion["kept"] == first.conversion["kept"]
    assert facts.conversion["worst_db"] >= 60
    assert (facts.bundle, facts.key != first.key) == (new.sha256, True)
    assert facts.profiles == first.profiles
    write_plan(new.root / "engines" / "desk" / "x.plan", facts, made.files)

    picture = resized(photo, 90, 70)
    with (
        ImageModel(new, backends=(desk.backend(),)) as gpu,
        ImageModel(new, backends=(OnnxRuntimeCpu(),)) as cpu,
        ImageModel(old, backends=(OnnxRuntimeCpu(),)) as before,
    ):
        result = gpu(picture)
        assert gpu.info.engine == facts.sha256[:12]
        assert "verified" in gpu.fidelity["image"]
        assert np.abs(result.astype(int) - cpu(picture)).max() <= 3
        assert np.abs(result.astype(int) - before(picture)).max() > 10

    back = refit(new, old, desk)
    assert back.facts.options["refitted_from"] == facts.sha256
    assert weights_of(graph_in(back).graph) == weights_of(net_of(old).graph)
    assert graph_in(back).refit


def net_of(bundle: Bundle) -> Net:
    plan = source_of(bundle).plan
    return Net.read(bytes(plan.read()[plan.facts.plan]))


def test_wrong_weights_in_a_plan_are_found(old: Bundle, new: Bundle, desk: Desk) -> None:
    """What TensorRT does not really replace does not reproduce the new references."""
    made = refit(old, new, desk)
    files: dict[str, Any] = {**made.files, made.facts.plan: net_of(old).plan()}
    entry = source_of(old).plan.facts.files[made.facts.plan]
    facts = msgspec.structs.replace(made.facts, files={**made.facts.files, made.facts.plan: entry})
    write_plan(new.root / "engines" / "desk" / "x.plan", facts, files)
    shutil.rmtree(plan_cache().folder)
    with pytest.raises(FidelityError, match="does not reproduce"):
        ImageModel(new, backend="tensorrt", backends=(desk.backend(),)).session()


def test_once_for_all_who_ask(old: Bundle, new: Bundle, desk: Desk) -> None:
    assert [refit(old, new, desk).fresh for _ in range(2)] == [True, False]


def test_equal_weights_need_no_refit(old: Bundle, desk: Desk, tmp_path: Path) -> None:
    same = copied(old, tmp_path / "same.pixelrt")
    shutil.rmtree(same.root / "engines")
    said: list[str] = []
    source = source_of(old)
    request = source.request(same)
    made = refitted_plan(request, source, desk.world.trt, plan_cache(), said.append)
    assert made.facts.sha256 == source.plan.facts.sha256
    assert not made.fresh
    assert "taken as it is" in said[0]


def test_another_network(old: Bundle, new: Bundle, desk: Desk, srgan_bundle: Bundle) -> None:
    with pytest.raises(InputError, match="of other inputs or outputs"):
        refit(old, srgan_bundle, desk)
    file = new.path(new.component.graph("image").file)
    model = ir.load(file)
    node = next(node for node in model.graph if node.op_type == "Relu")
    node.op_type = "Tanh"
    ir.save(model, file)
    with pytest.raises(InputError, match="differ in more than their weights") as caught:
        refit(old, new, desk)
    assert "= Tanh(" in caught.value.found
    assert "= Relu(" in caught.value.expected
    assert "leave --refit-from out" in caught.value.hint


def test_a_graph_that_was_converted_otherwise(old: Bundle, new: Bundle, desk: Desk) -> None:
    """Equal as exported, but another node in float32: nothing is written."""
    source = source_of(old)
    facts = source.plan.facts
    conversion = {**facts.conversion, "kept": facts.conversion["kept"][1:]}
    plan = replace(source.plan, facts=msgspec.structs.replace(facts, conversion=conversion))
    source = replace(source, plan=plan)
    with pytest.raises(InputError, match="converted as it was, differ in more"):
        refitted_plan(source.request(new), source, desk.world.trt, plan_cache())
    assert not plan_cache().entries()


def test_half_precision_that_needs_other_nodes(old: Bundle, new: Bundle, desk: Desk) -> None:
    with pytest.raises(FidelityError, match="needs other nodes in float32") as caught:
        refit(old, new, desk, target_db=115)
    assert "build a plan of its own" in caught.value.hint


@pytest.mark.parametrize(
    ("what", "kind", "said"),
    [
        ("built in", InputError, "cannot replace all that differs"),
        ("serialize_with_config", BackendError, "could not write the refitted plan"),
        ("Runtime", BackendError, "could not start"),
    ],
)
def test_what_tensorrt_refuses(
    what: str, kind: type[PixelrtError], said: str, old: Bundle, new: Bundle, desk: Desk
) -> None:
    if what == "built in":
        names = weights_of(net_of(old).graph)
        desk.world.built_in = {next(name for name, one in names.items() if len(one.dims) == 4)}
    else:
        desk.world.refuse = what
    with pytest.raises(kind, match=said):
        refit(old, new, desk)
    assert not plan_cache().entries()
    assert len(find_plans(old, old.component.graph("image")).plans) == 1


def test_an_engine_that_is_not_refittable(old: Bundle, desk: Desk) -> None:
    source = source_of(old)
    data = replace(net_of(old), refit=False).plan()
    with pytest.raises(InputError, match="takes no other weights"):
        _swapped(desk.world.trt, source.plan, memoryview(data), Path("none"), [])


@pytest.mark.parametrize(
    ("changes", "said"),
    [
        ({"options": {"strip_plan": True, "refit": True}}, "built with --strip"),
        ({"options": {}}, "without --refit"),
        ({"files": {}}, "build it again with --refit"),
        ({"target": {"version": "10.9.0"}}, "built by tensorrt 10.9.0, this is 11.4.0"),
        ({"target": {"flavour": "tensorrt-rtx"}}, "it is for tensorrt-rtx"),
        ({"target": {"gpu": "another"}}, "tuned for another"),
        ({"target": {"version": "10.9.0"}, "options": {"version_compatible": True}}, "10.9.0"),
    ],
)
def test_plans_that_take_no_weights_here(changes: dict[str, Any], said: str, old: Bundle) -> None:
    facts = source_of(old).plan.facts
    assert refusal(facts, TARGET) == ""
    if "target" in changes:
        told = {**msgspec.to_builtins(facts.target), **changes["target"]}
        changes = {**changes, "target": msgspec.convert(told, PlanTarget)}
    assert said in refusal(msgspec.structs.replace(facts, **changes), TARGET)


def test_options_are_read_back(old: Bundle) -> None:
    facts = source_of(old).plan.facts
    assert options_of(facts) == OPTIONS
    less = {name: value for name, value in facts.options.items() if name != "tf32"}
    with pytest.raises(InputError, match="another version") as caught:
        options_of(msgspec.structs.replace(facts, options=less))
    assert "tf32" in caught.value.found


# --- as a user has it -----------------------------------------------------------------------


@pytest.fixture
def at_hand(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> Desk:
    """The fake TensorRT and its GPU are those of this machine."""
    as_this_machine(monkeypatch, desk.machine)
    return desk


@pytest.mark.usefixtures("at_hand")
def test_the_command(old: Bundle, new: Bundle, capsys: Any) -> None:
    """Proven on the GPU, put where a run finds it; the second time it is there."""
    run(new.root, old.root)
    told = capsys.readouterr()
    assert "refitted in" in told.out
    assert "verified" in told.err
    run(new.root, old.root, "--graph", "image", "--refit")
    assert "refitted before" in capsys.readouterr().out
    (path,) = (new.root / "engines").glob("*/*.plan")
    facts: PlanFacts = plan_at(path).facts
    assert facts.options["refit"]
    assert STRUCTURE in facts.files
    assert find_plans(new, new.component.graph("image")).plans[0].place == str(path)


@pytest.mark.usefixtures("at_hand")
def test_the_command_leaves_nothing_that_is_wrong(
    old: Bundle, new: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    def wrong(*_: Any, **__: Any) -> Any:
        raise FidelityError("the plan does not reproduce the reference")

    monkeypatch.setattr("pixelrt.runtime.backends.select.open_session", wrong)
    with pytest.raises(FidelityError):
        run(new.root, old.root)
    assert not (new.root / "engines").exists()


@pytest.mark.usefixtures("at_hand")
@pytest.mark.parametrize(
    ("arguments", "kind", "said"),
    [
        (["--shapes", "64x64"], UsageError, "leave --shapes out"),
        (["--precision", "float16"], UsageError, "leave --precision out"),
        (["--network", "unet"], UsageError, "which --network is not for"),
        (["--graph", "core"], InputError, "no plan at all"),
    ],
)
def test_mistakes(
    arguments: list[str], kind: type[PixelrtError], said: str, old: Bundle, new: Bundle
) -> None:
    with pytest.raises(kind) as caught:
        run(new.root, old.root, *arguments)
    assert said in str(caught.value)


@pytest.mark.usefixtures("at_hand")
def test_a_plan_that_is_not_refittable_is_named(old: Bundle, new: Bundle) -> None:
    path = next((old.root / "engines").glob("*/*.plan"))
    stored = plan_at(path)
    options = {**stored.facts.options, "refit": False}
    write_plan(path, msgspec.structs.replace(stored.facts, options=options), stored.read())
    with pytest.raises(InputError, match="has no plan that can be given") as caught:
        run(new.root, old.root)
    assert f"{path}: it was built without --refit" in caught.value.found


def test_without_a_gpu_that_is_said_first(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def none(*_: Any) -> Any:
        raise BackendError("no", found="CUDA error 35")

    monkeypatch.setattr("pixelrt.engines.build.load_tensorrt", lambda _: desk.world.trt)
    monkeypatch.setattr("pixelrt.engines.options.detect_target", none)
    with pytest.raises(BackendError, match="with a GPU only") as caught:
        run(desk.bundle.root, tmp_path / "not there.pixelrt")
    assert caught.value.found == "CUDA error 35"
    del desk.world.module.SerializationFlag
    desk.world.module.SerializationFlag = object()
    with pytest.raises(BackendError, match="stays refittable"):
        run(desk.bundle.root, tmp_path / "not there.pixelrt")
