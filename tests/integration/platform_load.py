"""What a polderd holds, and lives of instances that should leave it so."""
import re
from pathlib import Path

SPEC = {"image": "busybox", "memory_bytes": 128 << 20, "networks": []}


class Resources:
    """What a process and its state folder hold."""

    def __init__(self, daemon):
        self.daemon, self.proc = daemon, Path(f"/proc/{daemon.process.pid}")

    def rss_mib(self):
        return int(re.search(r"VmRSS:\s+(\d+)", (self.proc / "status").read_text())[1]) / 1024

    def cpu_s(self):
        fields = (self.proc / "stat").read_text().rsplit(")", 1)[1].split()
        return (int(fields[11]) + int(fields[12])) / 100

    def counts(self):
        """Descriptors, processes and files; threads come and go with the work, the store's copy when it is due."""
        files = [f for top in (self.daemon.state, self.daemon.run) for f in top.rglob("*")
                 if "images" not in f.parts and not f.name.startswith("backup.db")]
        return {"descriptors": len(list((self.proc / "fd").iterdir())), "processes": len(self.daemon.children()),
                "files": len(files)}


def live_once(daemon):
    client = daemon.client
    client.do("POST", "/v1/instances", {**SPEC, "name": "brief", "command": ["sleep", "100000"]})
    client.do("POST", "/v1/instances/brief/start", {})
    client.do("POST", "/v1/instances/brief/stop", {"timeout_s": 0})
    client.do("DELETE", "/v1/instances/brief")
