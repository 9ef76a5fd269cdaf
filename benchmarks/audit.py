"""Known vulnerabilities of the tested versions of constraints.txt.

    python benchmarks/audit.py

pip-audit runs in an environment of its own (.venv-audit) and asks the advisory database of the index. The exit code is 0
if it knows of none, 1 if it knows of some, and 3, with a sentence, where pip-audit or the database cannot be reached.
"""

import json
import re
import subprocess
import sys
import tempfile
import venv
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / ".venv-audit"
_MARKED = re.compile(r"^[A-Za-z0-9._-]+==")


def pinned() -> list[str]:
    """The versions that are tested with this Python, one a line."""
    lines = [line.strip() for line in (ROOT / "constraints.txt").read_text().splitlines()]
    return [line for line in lines if _MARKED.match(line)]


def main() -> int:
    python = FOLDER / ("Scripts" if sys.platform == "win32" else "bin") / "python"
    if not python.exists():
        venv.create(FOLDER, with_pip=True)
    pip = [str(python), "-m", "pip", "--disable-pip-version-check", "install", "-q", "pip-audit"]
    if (installed := subprocess.run(pip, capture_output=True, text=True)).returncode:
        print(
            f"pip-audit cannot be installed here ({_last(installed.stderr)}): try again where the package index is reachable."
        )
        return 3
    with tempfile.TemporaryDirectory() as folder:
        requirements = Path(folder) / "requirements.txt"
        requirements.write_text("\n".join(pinned()) + "\n")
        words = [str(python), "-m", "pip_audit", "--no-deps", "--disable-pip", "--format", "json", "--progress-spinner", "off"]
        audit = subprocess.run([*words, "-r", str(requirements)], capture_output=True, text=True)
    try:
        found = json.loads(audit.stdout)["dependencies"]
    except (ValueError, KeyError):
        print(f"No advisory database can be reached here ({_last(audit.stderr)}): try again where one is.")
        return 3
    known = [(entry["name"], entry["version"], entry["vulns"]) for entry in found if entry.get("vulns")]
    left_out = sorted(entry["name"] for entry in found if "skip_reason" in entry)
    if len(left_out) == len(found):
        print("The package index that is used here has no advisories of these packages: try again with that of pypi.org.")
        return 3
    for name, version, vulnerabilities in known:
        for each in vulnerabilities:
            fixed = f"; fixed in {', '.join(each['fix_versions'])}" if each["fix_versions"] else ""
            print(f"{name} {version}: {each['id']}{fixed}")
    print(f"{len(found) - len(left_out)} packages looked at, {len(known)} with known vulnerabilities.")
    if left_out:
        print(f"Not looked at, since the database does not know them: {', '.join(left_out)}.")
    return 1 if known else 0


def _last(text: str) -> str:
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    return lines[-1].rstrip(".") if lines else "it says nothing"


if __name__ == "__main__":
    sys.exit(main())
