"""The rules that say which cells cannot run, silently train something else, or run but mislead, by what they are about."""
