"""The configuration file: one YAML mapping, read here, judged by `settings.parse`."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from canal_dns.errors import ConfigError
from canal_dns.kube.files import Signature
from canal_dns.settings import Settings, parse

MAX_SIZE = 1 << 20
"""Octets of a configuration file: a larger one is a mistake in the path."""


@dataclass(frozen=True, slots=True)
class Configuration:
    """A file and the flags that win over it: loaded as often as it changes."""

    path: Path | None
    """None: flags only."""
    flags: Mapping[str, Any]
    """Top-level keys as the command line set them."""
    offline: bool = False
    """For commands that forward nothing: upstreams may be missing."""

    def load(self) -> Settings:
        """Read and parse. Raises ConfigError: unreadable file, not YAML, or a setting that cannot be used."""
        mapping = read(self.path) if self.path else {}
        try:
            return parse({"gateways": [DEFAULT_GATEWAY], **mapping, **self.flags}, offline=self.offline)
        except ConfigError as problem:
            key = problem.where.split(".")[0].split("[")[0]
            origin = f"--{self._flag(key)}" if key in self.flags else str(self.path) if self.path else ""
            raise ConfigError(
                f"{origin}: {problem.where}" if origin else problem.where, problem.value, problem.allowed
            ) from None

    def _flag(self, key: str) -> str:
        return "kubeconfig" if key == "source" and "cluster" in self.flags["source"] else FLAGS[key]

    def signature(self) -> Signature | None:
        """Changes when the file does, also by the swap of a ConfigMap's symbolic link; None: there is no file."""
        try:
            return Signature.of(self.path.stat()) if self.path else None
        except OSError:
            return None


DEFAULT_GATEWAY = {"service": "istio-system/internalgateway"}

FLAGS = {
    "listen": "listen",
    "upstreams": "upstream",
    "clusterDomain": "cluster-domain",
    "gateways": "gateway",
    "source": "manifests",
    "ttl": "ttl",
    "workers": "workers",
    "admin": "admin",
    "user": "user",
}
"""Top-level key -> the flag that sets it."""


def read(path: Path) -> Mapping[str, Any]:
    """The mapping in a YAML file. Raises ConfigError with the place; duplicate keys are errors, not silently the last one."""
    try:
        if path.stat().st_size > MAX_SIZE:
            raise ConfigError(str(path), f"{path.stat().st_size} octets", f"at most {MAX_SIZE} octets are read")
        loaded = yaml.load(path.read_bytes(), Loader=_Strict)  # noqa: S506 - a SafeLoader
    except OSError as problem:
        raise ConfigError("--config", str(path), f"it cannot be read: {problem.strerror}") from None
    except yaml.MarkedYAMLError as problem:
        mark = problem.problem_mark
        where = f"{path}:{mark.line + 1}" if mark else str(path)
        raise ConfigError(where, problem.problem, "YAML is needed") from None
    except (yaml.YAMLError, UnicodeDecodeError, ValueError) as problem:
        raise ConfigError(str(path), str(problem).splitlines()[0], "YAML is needed") from None
    if loaded is None:
        return {}
    if not isinstance(loaded, dict):
        raise ConfigError(str(path), type(loaded).__name__, "a mapping of settings is needed")
    return loaded


class _Strict(yaml.SafeLoader):
    """SafeLoader that refuses a key that stands twice in one mapping."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen = set()
        for key, _ in node.value:
            if key.tag == "tag:yaml.org,2002:str":
                if key.value in seen:
                    raise yaml.MarkedYAMLError(None, None, f"the key {key.value!r} stands twice", key.start_mark)
                seen.add(key.value)
        return super().construct_mapping(node, deep)
