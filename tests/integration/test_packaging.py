"""twistd finds the plugin however llmproxy was installed, and an install adds nothing to Twisted that stays behind.

No test needs a network: the dependencies are those of the Python that runs the tests, and Twisted itself is copied into each
venv, because an install puts the plugin inside Twisted's own package.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import venv
import zipfile
from pathlib import Path

import attrs
import pytest

CHECKOUT = Path(__file__).parents[2]
SOURCES = ("setup.cfg", "pyproject.toml", "README.md", "LICENSE", "llmproxy", "twisted")


@attrs.frozen
class Environment:
    """A venv with Twisted and all dependencies, but without llmproxy."""

    path: Path

    @property
    def python(self) -> Path:
        return self.path / "bin" / "python"

    def run(self, *command: str | Path, cwd: Path | None = None, **environ: str) -> str:
        """Run a command and return its standard output and error; it must succeed."""
        inherited = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTHON", "COV"))
        }
        done = subprocess.run(
            command,
            cwd=cwd or self.path,
            env=inherited | environ,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=60,
        )
        assert done.returncode == 0, done.stdout
        return done.stdout

    def pip(self, *arguments: str | Path) -> str:
        return self.run(
            sys.executable, "-m", "pip", "--python", self.python, "--disable-pip-version-check", *arguments
        )

    def install(self, *what: str | Path) -> str:
        return self.pip("install", "--no-index", "--no-deps", "--no-build-isolation", *what)

    def twistd(self, *arguments: str, cwd: Path | None = None, **environ: str) -> str:
        return self.run(self.python, self.path / "bin" / "twistd", *arguments, cwd=cwd, **environ)


@pytest.fixture
def environment(tmp_path: Path) -> Environment:
    made = Environment(tmp_path / "venv")
    venv.create(made.path, symlinks=True)
    site_packages = next(made.path.glob("lib/python*/site-packages"))
    # A .pth file's own .pth files are not followed, so an editable llmproxy of the outer environment stays out of sight.
    outer = [path for path in sys.path if Path(path).name in ("site-packages", "dist-packages")]
    (site_packages / "outer.pth").write_text("\n".join(outer))
    twisted = next(path for path in map(Path, outer) if (path / "twisted" / "plugin.py").exists()) / "twisted"
    unwanted = shutil.ignore_patterns("test", "conch", "__pycache__", "dropin.cache", "llmproxy_plugin.py")
    shutil.copytree(twisted, site_packages / "twisted", ignore=unwanted)
    # The script that pip would have made for Twisted.
    (made.path / "bin" / "twistd").write_text(
        "import sys\nfrom twisted.scripts.twistd import run\nsys.exit(run())\n"
    )
    return made


@pytest.fixture(scope="module")
def tree(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The checkout's sources, where a build may leave its litter."""
    copy = tmp_path_factory.mktemp("tree")
    for source in SOURCES:
        if (CHECKOUT / source).is_dir():
            unwanted = shutil.ignore_patterns("__pycache__", "dropin.cache")
            shutil.copytree(CHECKOUT / source, copy / source, ignore=unwanted)
        else:
            shutil.copy(CHECKOUT / source, copy)
    return copy


@pytest.fixture(scope="module")
def wheel(tree: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    made = tmp_path_factory.mktemp("wheel")
    options = ("--no-index", "--no-deps", "--no-build-isolation", "--disable-pip-version-check", "--quiet")
    subprocess.run(
        [sys.executable, "-m", "pip", "wheel", *options, "--wheel-dir", made, tree], check=True, timeout=60
    )
    return next(made.glob("llmproxy-*.whl"))


def lists_the_plugin(help_text: str) -> bool:
    return any(line.split()[:1] == ["llmproxy"] for line in help_text.splitlines())


def test_twistd_lists_no_llmproxy_before_it_is_installed(environment: Environment) -> None:
    assert not lists_the_plugin(environment.twistd("--help"))


def test_twistd_lists_the_plugin_of_an_installed_wheel(environment: Environment, wheel: Path) -> None:
    environment.install(wheel)
    assert lists_the_plugin(environment.twistd("--help"))


def test_twistd_lists_the_plugin_of_an_editable_install(environment: Environment, tree: Path) -> None:
    environment.install("--editable", tree)
    assert lists_the_plugin(environment.twistd("--help"))


def test_twistd_lists_the_plugin_of_a_bare_checkout_on_the_path(environment: Environment, tree: Path) -> None:
    assert lists_the_plugin(environment.twistd("--help", cwd=tree, PYTHONPATH="."))


def test_the_plugin_prints_the_version_that_was_installed(environment: Environment, wheel: Path) -> None:
    environment.install(wheel)
    version = wheel.name.split("-")[1]
    assert environment.twistd("llmproxy", "--version").split() == ["llmproxy", version]


def test_the_wheel_has_every_module_of_the_checkout_and_its_type_marker(wheel: Path, tree: Path) -> None:
    modules = {str(path.relative_to(tree)) for path in (tree / "llmproxy").rglob("*.py")}
    expected = modules | {"llmproxy/py.typed", "twisted/plugins/llmproxy_plugin.py"}
    assert {name for name in zipfile.ZipFile(wheel).namelist() if ".dist-info/" not in name} == expected


def test_the_wheel_has_the_license_and_the_readme(wheel: Path, tree: Path) -> None:
    archive = zipfile.ZipFile(wheel)
    info = f"{'-'.join(wheel.name.split('-')[:2])}.dist-info"
    assert archive.read(f"{info}/licenses/LICENSE") == (tree / "LICENSE").read_bytes()
    assert (tree / "README.md").read_text() in archive.read(f"{info}/METADATA").decode()


def test_uninstalling_takes_the_plugin_away_and_leaves_twisted_as_it_was(
    environment: Environment, wheel: Path
) -> None:
    twisted = next(environment.path.glob("lib/python*/site-packages/twisted"))
    before = sorted(twisted.rglob("*.py"))
    environment.install(wheel)
    environment.pip("uninstall", "--yes", "llmproxy")
    assert sorted(twisted.rglob("*.py")) == before
    assert not lists_the_plugin(environment.twistd("--help"))


def test_the_checkout_makes_no_package_of_twisteds_own_namespace() -> None:
    # With an __init__.py there, the checkout would hide Twisted itself from whoever has it on the path.
    assert not list((CHECKOUT / "twisted").rglob("__init__.py"))
