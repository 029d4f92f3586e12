"""Launch scripts of verl and of the published G-OPD code, read without running them, as recipes."""
