"""`meson install` puts all there is into one prefix, and what was put there works."""
import os
import subprocess

from vmm import TOP


def test_all_of_it_is_installed(tmp_path):
    subprocess.run(["meson", "install", "-C", TOP / "build", "--no-rebuild", "--quiet"], check=True, timeout=120,
                   capture_output=True, env={**os.environ, "DESTDIR": str(tmp_path)})
    prefix = tmp_path / "usr/local"
    for program in ("polder", "polderd", "polder-vmm", "polder-img"):
        said = subprocess.run([prefix / "bin" / program, "--version"], capture_output=True, text=True, check=True, timeout=60)
        assert said.stdout.startswith(program + " ")
        assert (prefix / f"share/man/man1/{program}.1").read_text().startswith(".TH ")
    unit = (prefix / "lib/systemd/system/polderd.service").read_text()
    assert "ExecStart=/usr/local/bin/polderd" in unit and "KillMode=process" in unit
    completion = prefix / "share/bash-completion/completions/polder"
    subprocess.run(["bash", "-n", completion], check=True, timeout=60)
