"""The claims of the discussion, and the rules that decide each from the runs of a study."""
