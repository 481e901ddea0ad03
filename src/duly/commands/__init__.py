"""The commands of `duly`, a module for each noun. Each is imported when it is called."""
