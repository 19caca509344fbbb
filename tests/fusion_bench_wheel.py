"""FusionBench's own functions of merging, out of its wheel, without the libraries that the rest of it needs."""

import contextlib
import importlib.machinery
import importlib.util
import subprocess
import sys
import types
import zipfile

WHEEL = "fusion-bench==0.2.33"


def fetched(folder):
    """The methods of the wheel, without its dependencies."""
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--dest", str(folder), WHEEL]
    if subprocess.run(command, capture_output=True).returncode != 0:
        print(f"SKIPPED: {WHEEL} cannot be had")
        sys.exit(0)
    [wheel] = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder)
    return folder / "fusion_bench" / "method"


def stand_in(name, **members):
    module = types.ModuleType(name)
    # Torch looks for it.
    module.__spec__ = importlib.machinery.ModuleSpec(name, None)
    module.__dict__.update(members)
    sys.modules[name] = module


def loaded(path):
    spec = importlib.util.spec_from_file_location(path.stem, path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@contextlib.contextmanager
def timed(*_, **__):
    yield


class Bar:
    """A bar of progress that shows nothing."""

    def __new__(cls, items=(), **_):
        return items

    write = staticmethod(lambda *_: None)


def methods(folder):
    """The modules of TSV-M, Iso-C with Iso-CTS, and WUDI. Where the wheel cannot be had it says so and ends the program
    with success."""
    methods = fetched(folder)
    nothing = type("Nothing", (), {})
    stand_in("fusion_bench", BaseAlgorithm=nothing, BaseModelPool=nothing, auto_register_config=lambda cls: cls)
    stand_in("fusion_bench.utils", timeit_context=timed)
    stand_in("fusion_bench.utils.type", StateDictType=dict)
    stand_in("fusion_bench.mixins", LightningFabricMixin=type("Mixin", (), {}))
    stand_in("fusion_bench.utils.state_dict_arithmetic", state_dict_add=None, state_dict_sub=None)
    stand_in("tqdm", tqdm=Bar)
    return (
        loaded(methods / "task_singular_vector" / "utils" / "TSVM_utils.py"),
        loaded(methods / "isotropic_merging" / "iso_utils.py"),
        loaded(methods / "wudi" / "wudi.py"),
    )
