"""What pyproject.toml cannot say: the build puts the top folder `assets` into the package, beside its modules."""

from pathlib import Path

from setuptools import Command, setup
from setuptools.command.build import build

ASSETS = Path("assets")
NOT_NEEDED = "screenshot*"  # pictures of the README


class BuildAssets(Command):
    """A step of `build`, by setuptools' protocol of sub-commands; read by vtc_demo/core/assets.py."""

    description = "copy the shipped models and records into the package"
    user_options = []
    editable_mode = False

    def initialize_options(self):
        self.build_lib = None

    def finalize_options(self):
        self.set_undefined_options("build_py", ("build_lib", "build_lib"))

    def run(self):
        if self.editable_mode:  # an editable install finds the files where they are
            return
        for target, source in self.get_output_mapping().items():
            self.mkpath(str(Path(target).parent))
            self.copy_file(source, target)

    def get_source_files(self) -> list[str]:
        """For the sdist."""
        return sorted(str(f) for f in ASSETS.rglob("[!.]*") if f.is_file() and not f.match(NOT_NEEDED))

    def get_output_mapping(self) -> dict[str, str]:
        return {str(Path(self.build_lib, "vtc_demo", source)): source for source in self.get_source_files()}

    def get_outputs(self) -> list[str]:
        return list(self.get_output_mapping())


class Build(build):
    sub_commands = [*build.sub_commands, ("build_assets", None)]


setup(cmdclass={"build": Build, "build_assets": BuildAssets})
