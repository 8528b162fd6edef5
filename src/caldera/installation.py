"""Facts about this installation and its machine, for `caldera doctor`; a broken installation is described, too.

Nothing that may be missing is imported at the top.
"""

import os
import platform
import re
import shutil
import sys
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from http.client import HTTPException
from importlib import import_module, metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.error import HTTPError, URLError
from urllib.request import Request, urlopen

from caldera.extras import EXTRAS, describe_missing, install_line, is_installed

if TYPE_CHECKING:
    from packaging.requirements import Requirement

EVERY_COMMAND = ("*",)
"""Marks what keeps every command from running."""

_HUB_SECONDS = 5.0
"""Longest wait for the Hub."""

_SERVER_ERROR = 500

_MODULES = {"pillow": "PIL", "llama-cpp-python": "llama_cpp"}
"""Modules whose name is not that of their package."""

_VARIABLES = re.compile(
    r"(CALDERA|CUDA|DNNL|HF|HUGGING_FACE|KMP|MKL|OMP|ONEDNN|OPENAI|PYTORCH|TORCH|TRANSFORMERS|TOKENIZERS)_.*|"
    r"(LD_LIBRARY_PATH|PYTHONPATH|XDG_CACHE_HOME)|(https?|all|no)_proxy",
    re.IGNORECASE,
)
_SECRET = re.compile(r".*(KEY|TOKEN(?!IZERS)|SECRET|PASSWORD)(?!.*_(PATH|FILE)$).*", re.IGNORECASE)
_CREDENTIALS = re.compile(r"((?<=://)|^)[^/@\s]+@")

_CGROUPS = Path("/sys/fs/cgroup")

_UNLIMITED = 1 << 60
"""Memory limits of cgroups above this are none."""


@dataclass(frozen=True, slots=True)
class Fact:
    """One fact about the installation."""

    name: str
    value: str
    advice: str = ""
    """What is wrong or missing, with the line that fixes it; empty if nothing is."""

    blocks: tuple[str, ...] = ()
    """Commands that cannot run because of it; EVERY_COMMAND for all."""


Report = Mapping[str, tuple[Fact, ...]]
"""Facts by section."""


def describe_installation(environ: Mapping[str, str]) -> Report:
    """Return all facts; takes seconds, as packages are imported.

    Args:
        environ: Environment variables; values of secret ones are not repeated.
    """
    return {name: (*_until_error(find(environ)),) for name, find in SECTIONS.items()}


def _until_error(facts: Iterator[Fact]) -> Iterator[Fact]:
    """Yield facts; an error that ends them is the last one."""
    try:
        yield from facts
    except Exception as error:  # noqa: BLE001 - a broken package or driver may raise anything
        yield Fact("error", _first_line(error))


def blocking_facts(report: Report, command: str) -> list[Fact]:
    """Return the facts that keep a command, such as "serve" or "data to-parquet", from running."""
    return [
        fact
        for facts in report.values()
        for fact in facts
        if fact.blocks == EVERY_COMMAND or command in fact.blocks
    ]


def _caldera_facts(_: Mapping[str, str]) -> Iterator[Fact]:
    """Yield the versions of caldera and Python."""
    from caldera import __version__

    yield Fact("version", f"{__version__} in {Path(__file__).parent}")
    try:
        required = metadata.metadata("caldera")["Requires-Python"]
    except metadata.PackageNotFoundError:
        advice = "no package metadata, so versions cannot be checked: pip install -e . in the clone"
        yield Fact("metadata", "missing", advice)
        required = None
    version = platform.python_version()
    advice = _version_advice(version, required, f"caldera needs Python {required}")
    yield Fact("Python", f"{version} in {sys.executable}", advice, EVERY_COMMAND if advice else ())


def _machine_facts(_: Mapping[str, str]) -> Iterator[Fact]:
    """Yield operating system, processor, memory and disk."""
    yield Fact("system", platform.platform())
    yield Fact("CPU", f"{_cpu_name()}, {_describe_cores()}")
    yield Fact("memory", _describe_memory())
    yield Fact("disk here", _describe_disk(Path.cwd()))


def _cpu_name() -> str:
    """Return the processor's model."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        lines = []
    names = [line.split(":", 1)[1].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def _describe_cores() -> str:
    """Return the number of cores that this process may use, and what limits it."""
    total = os.cpu_count() or 1
    usable = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else total
    text = f"{usable} of {total} cores"
    quota = [line.split() for line in _cgroup_values("cpu.max")]
    shares = [int(limit) / int(period) for limit, period in quota if limit != "max"]
    return f"{text}, limited to {min(shares):g} by the control group" if shares else text


def _describe_memory() -> str:
    """Return total and available memory, and the limit of the control group."""
    sizes = {}
    try:
        for line in Path("/proc/meminfo").read_text().splitlines():
            name, value = line.split(":")
            sizes[name] = int(value.split()[0]) * 1024
    except OSError:
        return _gigabytes(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES"))
    text = f"{_gigabytes(sizes['MemTotal'])}, {_gigabytes(sizes.get('MemAvailable', 0))} available"
    files = ("memory.max", "memory/memory.limit_in_bytes")
    limits = [int(line) for file in files for line in _cgroup_values(file) if line != "max"]
    limit = min(limits, default=_UNLIMITED)
    return (
        f"{text}, limited to {_gigabytes(limit)} by the control group"
        if limit < _UNLIMITED
        else text
    )


def _cgroup_values(name: str) -> Iterator[str]:
    """Yield a setting of this process's control group and of those above it."""
    try:
        own = Path("/proc/self/cgroup").read_text().splitlines()[-1].split(":", 2)[2]
    except (OSError, IndexError):
        own = "/"
    group = _CGROUPS / own.lstrip("/")
    for folder in (group, *group.parents):
        if folder.is_relative_to(_CGROUPS) and (folder / name).is_file():
            yield (folder / name).read_text().strip()


def _describe_disk(folder: Path) -> str:
    """Return the free space of a folder, which may not exist yet."""
    existing = next(path for path in (folder, *folder.parents) if path.exists())
    return f"{_gigabytes(shutil.disk_usage(existing).free)} free in {folder}"


def _gigabytes(size: int) -> str:
    return f"{size / 1e9:.1f} GB"


def _requirements(extra: str | None = None) -> "list[Requirement]":
    """Return what the package's metadata requires, of one extra or always; empty if that cannot be read."""
    try:
        from packaging.requirements import Requirement

        texts = metadata.requires("caldera") or []
    except (ImportError, metadata.PackageNotFoundError):
        return []
    result = []
    for requirement in map(Requirement, texts):
        has_extra = requirement.marker is not None and "extra" in str(requirement.marker)
        fits = requirement.marker is None or requirement.marker.evaluate({"extra": extra or ""})
        if has_extra == (extra is not None) and fits and requirement.name != "caldera":
            result.append(requirement)
    return result


def _package_facts(_: Mapping[str, str]) -> Iterator[Fact]:
    """Yield the packages that caldera always needs: their versions, and whether they can be imported."""
    required = _requirements()
    if not required:
        yield Fact("requirements", "not known", "pip install caldera packaging")
    for requirement in required:
        version = _installed_version(requirement.name)
        install = f"pip install '{requirement.name}{requirement.specifier}'"
        error = _import_error(_MODULES.get(requirement.name, requirement.name.replace("-", "_")))
        if error and (version is None or error.startswith("ModuleNotFoundError")):
            advice = f"{requirement.name} is missing: {install}"
        elif error:
            advice = f"{requirement.name} {version} cannot be imported ({error}): {install} --force-reinstall"
        else:
            advice = _version_advice(
                version or "", str(requirement.specifier), f"{requirement}: {install}"
            )
        value = f"{version or 'missing'} (supported: {requirement.specifier})"
        yield Fact(requirement.name, value, advice, EVERY_COMMAND if advice else ())


def _installed_version(name: str) -> str | None:
    """Return the version of an installed package."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _import_error(module: str) -> str:
    """Return the first line of the error of an import; empty if there is none."""
    try:
        import_module(module)
    except Exception as error:  # noqa: BLE001 - a broken package may raise anything
        return _first_line(error)
    return ""


def _first_line(error: Exception) -> str:
    """Return an error's type and the first line of its text."""
    return f"{type(error).__name__}: {str(error).strip()}".splitlines()[0]


def _version_advice(version: str, supported: str | None, advice: str) -> str:
    """Return advice if a version does not fit; empty if it does, or if that is not known."""
    try:
        from packaging.specifiers import SpecifierSet
    except ImportError:
        return ""
    fits = not supported or SpecifierSet(supported).contains(version, prereleases=True)
    return "" if fits else f"{version} is not supported; {advice}"


def _device_facts(_: Mapping[str, str]) -> Iterator[Fact]:
    """Yield torch's build, GPUs, features of the CPU, and what `auto` chooses."""
    if _import_error("torch"):
        yield Fact("torch", "cannot be imported, so nothing is known of devices")
        return
    import torch

    from caldera.devices import choose_device, has_fast_bf16

    cuda, hip = torch.version.cuda, torch.version.hip
    build = f"ROCm {hip}" if hip else f"CUDA {cuda}" if cuda else "no CUDA"
    driver = Path("/proc/driver/nvidia/version")
    advice = ""
    if driver.is_file() and not torch.cuda.is_available():
        advice = f"there is an NVIDIA driver, but this torch ({build}) does not reach it: see pytorch.org/get-started"
    yield Fact("torch", f"{torch.__version__}, {build}", advice)
    if cuda and torch.cuda.is_available():
        code = torch._C._cuda_getDriverVersion()  # type: ignore[attr-defined] # only in CUDA builds
        yield Fact("driver", f"for CUDA {code // 1000}.{code % 1000 // 10}")
    for number in range(torch.cuda.device_count() if torch.cuda.is_available() else 0):
        yield Fact(f"cuda:{number}", _describe_gpu(torch, number))
    yield Fact("MPS", "available" if torch.backends.mps.is_available() else "not available")
    features = {
        "bf16": has_fast_bf16(),
        "AVX512": torch.cpu._is_avx512_supported(),
        "VNNI (int8)": torch.cpu._is_vnni_supported(),
        "AMX": torch.cpu._is_amx_tile_supported(),
    }
    present = ", ".join(name for name, is_present in features.items() if is_present) or "none"
    absent = ", ".join(name for name, is_present in features.items() if not is_present) or "none"
    capability = torch.backends.cpu.get_cpu_capability()
    yield Fact("CPU features", f"torch uses {capability}; in hardware: {present}; absent: {absent}")
    onednn = "not available"
    if torch.backends.mkldnn.is_available():
        has_bf16 = torch.ops.mkldnn._is_mkldnn_bf16_supported()
        onednn = f"available, {'with' if has_bf16 else 'without'} bf16"
    yield Fact("oneDNN", onednn)
    chosen = choose_device()
    precision = str(chosen.dtype).removeprefix("torch.")
    yield Fact("auto", f"--device {chosen.device} --dtype {precision}")


def _describe_gpu(torch: Any, number: int) -> str:  # noqa: ANN401 - the module
    """Return a GPU's name, memory and precision."""
    properties = torch.cuda.get_device_properties(number)
    free, total = torch.cuda.mem_get_info(number)
    capability = f"{properties.major}.{properties.minor}"
    return f"{properties.name}, {_gigabytes(free)} of {_gigabytes(total)} free, compute capability {capability}"


def _extra_facts(_: Mapping[str, str]) -> Iterator[Fact]:
    """Yield each extra: versions, or the line that installs it."""
    for name, extra in EXTRAS.items():
        missing = [module for module in extra.modules if not is_installed(module)]
        advice = describe_missing(name, extra.needed_by)
        versions = []
        for requirement in _requirements(name):
            module = _MODULES.get(requirement.name, requirement.name.replace("-", "_"))
            version = _installed_version(requirement.name)
            if module not in extra.modules or module in missing or version is None:
                continue
            versions.append(f"{requirement.name} {version}")
            advice = advice or _version_advice(
                version, str(requirement.specifier), f"{requirement}: {install_line(name)}"
            )
        value = f"missing: {', '.join(missing)}" if missing else ", ".join(versions) or "installed"
        yield Fact(name, value, advice, extra.commands if advice else ())


def _hub_facts(environ: Mapping[str, str]) -> Iterator[Fact]:
    """Yield whether the Hub answers, the cache, and whether there is a token, which is not sent or shown."""
    if error := _import_error("huggingface_hub"):
        yield Fact("huggingface_hub", f"cannot be imported ({error})")
        return
    from huggingface_hub import constants, get_token

    cache = Path(constants.HF_HUB_CACHE).expanduser()
    yield Fact("version", metadata.version("huggingface_hub"))
    if constants.is_offline_mode():
        names = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE")
        setting = next((f"{name}={environ[name]}" for name in names if environ.get(name)), "")
        advice = "uploads need the Hub: unset HF_HUB_OFFLINE"
        yield Fact("Hub", f"offline, as {setting} asks", advice, ("push",))
    else:
        yield _ask_hub(constants.ENDPOINT)
    yield Fact("cache", _describe_disk(cache))
    has_token = get_token() is not None
    advice = "" if has_token else "private models and uploads need one: set HF_TOKEN"
    yield Fact("token", "set" if has_token else "not set", advice, () if has_token else ("push",))


def _ask_hub(endpoint: str) -> Fact:
    """Send one request without a token, and wait for the answer a few seconds at most."""
    from huggingface_hub import constants

    seconds = min(_HUB_SECONDS, float(constants.HF_HUB_ETAG_TIMEOUT))
    url, outcome = _CREDENTIALS.sub("", endpoint), [f"no answer in {seconds:g} s"]
    start = time.monotonic()

    def ask() -> None:
        try:
            if not url.startswith(("http://", "https://")):
                raise ValueError("it is not an HTTP URL")
            request = Request(url, method="HEAD", headers={"User-Agent": "caldera doctor"})
            with urlopen(request, timeout=seconds):
                outcome[0] = ""
        except HTTPError as error:
            outcome[0] = f"it answers {error.code}" if error.code >= _SERVER_ERROR else ""
        except (HTTPException, OSError, ValueError) as error:
            reason = error.reason if isinstance(error, URLError) else error
            outcome[0] = str(reason) or type(error).__name__

    # A resolver may take longer than any timeout of a socket.
    thread = threading.Thread(target=ask, daemon=True)
    thread.start()
    thread.join(seconds)
    if not outcome[0]:
        return Fact("Hub", f"{url} answers ({time.monotonic() - start:.1f} s)")
    advice = f"{url}: {outcome[0]}; check the network, proxies and HF_ENDPOINT"
    return Fact("Hub", "not reachable; only what is in the cache can be used", advice, ("push",))


def _environment_facts(environ: Mapping[str, str]) -> Iterator[Fact]:
    """Yield the environment variables that change what caldera and its packages do; secrets are hidden."""
    for name in sorted(environ):
        if _VARIABLES.fullmatch(name):
            is_secret = _SECRET.fullmatch(name)
            yield Fact(
                name, "set (hidden)" if is_secret else _CREDENTIALS.sub("...@", environ[name])
            )


SECTIONS: Mapping[str, Callable[[Mapping[str, str]], Iterator[Fact]]] = {
    "caldera": _caldera_facts,
    "machine": _machine_facts,
    "packages": _package_facts,
    "devices": _device_facts,
    "extras": _extra_facts,
    "Hugging Face Hub": _hub_facts,
    "environment": _environment_facts,
}
"""Functions from the environment variables to the facts of each section."""
