"""Named hostile files for any reader of docs/format.md; README.md says how to use them."""
