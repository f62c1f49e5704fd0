"""app.text can be imported without a web framework and without torch."""

import pkgutil
import subprocess
import sys

import app.text

CODE = """
import sys
for name in ("starlette", "fastapi", "uvicorn", "torch", "transformers"):
    sys.modules[name] = None  # importing it raises ImportError
import importlib
for name in sys.argv[1:]:
    importlib.import_module(name)
"""


def test_app_text_imports_no_web_framework_and_no_torch() -> None:
    names = [f"app.text.{module.name}" for module in pkgutil.iter_modules(app.text.__path__)]
    assert len(names) >= 5
    done = subprocess.run([sys.executable, "-c", CODE, *names], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (0, "")
