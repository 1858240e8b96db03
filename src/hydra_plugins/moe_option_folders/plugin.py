"""Put the option folders of installed packages on the search path of moe-run."""

from pathlib import Path

from hydra.core.config_search_path import ConfigSearchPath
from hydra.plugins.search_path_plugin import SearchPathPlugin


class OptionFoldersPlugin(SearchPathPlugin):
    """Adds what `option_folders` lists, where Hydra composes from this project's folder.

    Other programs of Hydra in the same environment are left as they are.
    """

    def manipulate_search_path(self, search_path: ConfigSearchPath) -> None:
        """Add the folders.

        Args:
            search_path: of one command; `--config-dir` comes later, from Hydra.
        """
        from moe_runner.options.folders import CONF, option_folders

        main = [each.path for each in search_path.get_path() if each.provider == "main"]
        if [Path(path.removeprefix("file://")).resolve() for path in main] == [CONF.resolve()]:
            for folder in option_folders()[1:]:
                search_path.append("moe_runner", f"file://{folder}")
