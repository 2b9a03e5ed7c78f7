"""The NVIDIA driver and its library: old, new, missing or upgraded while in use; and the binding to it.

Each test has a process of its own, which finds the library and the binding that the test installs.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import pytest
from stubs import truth
from stubs.stub import UUIDS, Answer, Machine, Probe, library, machine_of_a_probe

if TYPE_CHECKING:
    from pathlib import Path


@pytest.fixture
def alone(tmp_path: Path) -> Machine:
    """Return the machine of a test that has a process of its own."""
    machine = machine_of_a_probe(tmp_path)
    truth.tell(machine, 0)
    return machine


def fails(answer: Answer, *, remedy: str, saying: str = "") -> None:
    assert saying in answer.error
    assert remedy in answer.remedy
    assert not answer.samples


@pytest.mark.parametrize("call", ["Init", "SystemGetDriverVersion", "GetHandleByIndex", "GetPowerUsage"])
def test_an_upgraded_driver_is_found_without_a_restart(alone: Machine, call: str) -> None:
    """A library that does not match the module fails with a remedy; a newer one on the disk is then used."""
    alone.say({"driver": None, f"mismatch {call}": "always"})  # the installed library is 580.1
    with Probe(alone) as probe:
        probe.open(alone)
        for _ in range(8):
            fails(probe.beat(), saying="library_driver_mismatch", remedy="reload the kernel module")
        alone.install(library('-DDRIVER="590.2"', "-DMATCHES"))
        for _ in range(12):
            reading = probe.beat()
        assert len(reading.of("nvidia_gpu_info", driver="590.2")) == 1
        assert reading.meters


def test_a_driver_upgraded_under_way_is_found_without_a_restart(alone: Machine) -> None:
    """When calls report a mismatch with the module, the new library is used; the counter goes on."""
    alone.say({"driver": None})
    with Probe(alone) as probe:
        probe.open(alone)
        assert len(probe.beat().of("nvidia_gpu_info", driver="580.1")) == 1
        alone.say({"error GetPowerUsage": "18", "error Init": "18"})
        fails(probe.beat(), saying="mismatch", remedy="reload the kernel module")
        alone.install(library('-DDRIVER="590.2"', "-DMATCHES"))
        alone.say({"error GetPowerUsage": None, "error Init": None})
        truth.tell(alone, 12)
        for _ in range(6):
            reading = probe.beat()
        assert len(reading.of("nvidia_gpu_info", driver="590.2")) == 1
        assert reading.value("nvidia_gpu_energy_joules_total") == 12 * truth.MJ_PER_TICK / 1000


def test_a_driver_that_is_loaded_later_is_found(alone: Machine) -> None:
    """Without library, module or GPU the collector is down with the remedy for each, until all are there."""
    alone.install(None)
    with Probe(alone) as probe:
        probe.open(alone)
        fails(probe.beat(), saying="library_not_found", remedy="libnvidia-ml.so.1")
        alone.install(library())
        alone.say({"error Init": "9"})
        fails(probe.beat(6.0), saying="driver_not_loaded", remedy="modprobe nvidia")
        alone.say({"error Init": None, "gpus": "0"})
        fails(probe.beat(6.0), saying="sees no GPU", remedy="--gpus all")
        alone.say({"gpus": "1"})
        assert truth.rounded(probe.beat(6.0)) == truth.whole(0, 0)


NOT_OURS = {
    "no device": [],
    "another vendor": [{"vendor": "0x1002"}],
    "an audio function": [{"kind": "0x040300"}],
}


@pytest.mark.parametrize("devices", NOT_OURS.values(), ids=NOT_OURS)
def test_without_a_gpu_and_a_driver_it_is_absent(alone: Machine, devices: list[dict[str, str]]) -> None:
    """Without an NVIDIA display device and driver it is absent, and the binding (7 MB) is not imported."""
    alone.reset(0)
    for device in devices:
        alone.plug("01", **device)
    with Probe(alone) as probe:
        assert probe.open(alone).absent
        assert not probe.ask("imported").imported
    assert alone.calls() == []


@pytest.mark.parametrize("driver", ["vfio-pci", "pci-stub"])
def test_a_gpu_that_is_passed_through_to_a_guest_is_not_ours(alone: Machine, driver: str) -> None:
    """A GPU that vfio-pci holds is absent; bound to its own driver it is present."""
    link = alone.device() / "driver"
    link.symlink_to(alone.sysfs / "bus/pci/drivers" / driver)
    with Probe(alone) as probe:
        assert probe.open(alone).absent
        assert not probe.ask("imported").imported
        link.unlink()
        link.symlink_to(alone.sysfs / "bus/pci/drivers/nvidia")
        assert not probe.open(alone).absent
        assert probe.beat().meters


def test_a_driver_without_a_device_in_sysfs_is_enough(alone: Machine) -> None:
    """If sysfs shows no device (WSL, some containers), the driver's file in procfs is enough."""
    alone.reset(0)
    alone.say({"gpus": "1"})
    (alone.procfs / "driver/nvidia").mkdir(parents=True)
    (alone.procfs / "driver/nvidia/version").write_text("NVRM version: 570.1.2\n")
    with Probe(alone) as probe:
        assert not probe.open(alone).absent
        assert len(probe.beat().meters) == 1


def test_a_gpu_that_is_unplugged_is_absent(alone: Machine) -> None:
    """Once device and driver have gone, the collector is absent instead of failing for good."""
    with Probe(alone) as probe:
        probe.open(alone)
        assert probe.beat().meters
        alone.reset(0)
        alone.say({"error GetPowerUsage": "15", "error Init": "9"})
        for _ in range(12):
            answer = probe.beat()
        assert answer.absent


@pytest.mark.parametrize(
    "files",
    [
        {"nvml.py": "nvmlLib = None\ndef nvmlInit(): pass\n", "__init__.py": "from .nvml import *\n"},
        {"__init__.py": "def nvmlInit(): pass\n"},
    ],
    ids=["functions from a submodule", "no nvmlLib"],
)
def test_another_package_of_the_bindings_name(alone: Machine, tmp_path: Path, files: dict[str, str]) -> None:
    """Another package named pynvml is told apart from nvidia-ml-py, and the remedy removes it."""
    package = tmp_path / "site/pynvml"
    package.mkdir(parents=True)
    for name, content in files.items():
        (package / name).write_text(content)
    with Probe(alone, path=[package.parent]) as probe:
        probe.open(alone)
        fails(probe.beat(), saying="pynvml", remedy="pip uninstall pynvml")
    assert alone.calls() == []


def test_without_the_binding(alone: Machine, tmp_path: Path) -> None:
    """Without nvidia-ml-py the remedy is to install it."""
    (tmp_path / "site").mkdir()
    (tmp_path / "site/pynvml.py").write_text('raise ImportError("No module named pynvml")\n')
    with Probe(alone, path=[tmp_path / "site"]) as probe:
        probe.open(alone)
        fails(probe.beat(), saying="nvidia-ml-py", remedy="pip install nvidia-ml-py")


@pytest.mark.parametrize("how", ["not supported", "no such function"])
def test_power_is_integrated_where_there_is_no_counter(alone: Machine, how: str) -> None:
    """Before Volta, or with an older driver, power is integrated in trapezoids, and the info says so."""
    if how == "not supported":
        alone.say({"error GetTotalEnergyConsumption": "3"})
    else:
        alone.install(library(hide=("nvmlDeviceGetTotalEnergyConsumption",)))
    with Probe(alone) as probe:
        probe.open(alone)
        watts = [100, 160, 40, 300]
        joules = [0, 130, 230, 400]
        for power, energy in zip(watts, joules, strict=True):
            alone.say({"power_mw 0": str(power * 1000)})
            reading = probe.beat()
            assert (
                reading.value("nvidia_gpu_power_draw_watts"),
                reading.value("nvidia_gpu_energy_joules_total"),
            ) == (power, energy)
            assert reading.meters == {UUIDS[0]: energy}
            assert len(reading.of("nvidia_gpu_info", energy="integrated")) == 1


@pytest.mark.parametrize(
    "hidden",
    [
        ("nvmlDeviceGetTemperatureV", "nvmlDeviceGetCurrentClocksEventReasons"),
        ("nvmlDeviceGetTemperature", "nvmlDeviceGetCurrentClocksThrottleReasons"),
    ],
    ids=["old driver", "new driver"],
)
def test_old_and_new_names_of_a_call(alone: Machine, hidden: tuple[str, ...]) -> None:
    """Temperature and throttling are read if a driver has only the older or only the newer function."""
    alone.install(library(hide=hidden))
    with Probe(alone) as probe:
        probe.open(alone)
        assert truth.rounded(probe.beat()) == truth.whole(0, 0)
