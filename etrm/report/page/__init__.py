"""The page of a study: `index.html`, all that it says, in one file that needs no network."""
