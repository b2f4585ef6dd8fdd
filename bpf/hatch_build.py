"""Build hook: the wheel carries the compiled BPF object, so that a host needs no compiler."""

import subprocess
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface


class BpfObjectHook(BuildHookInterface):  # type: ignore[type-arg]
    PLUGIN_NAME = "custom"

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        subprocess.run(["make", "-C", str(Path(self.root) / "bpf")], check=True)
        # The object is of one byte order; the wheel is for Linux on this machine's architecture.
        build_data["pure_python"] = False
        build_data["infer_tag"] = True
