"""The MuJoCo table: nine tasks, one setting, every rule; how the setting was chosen is here too."""
