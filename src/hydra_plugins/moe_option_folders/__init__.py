"""Where Hydra finds the option files of installed packages, see `plugin`."""
