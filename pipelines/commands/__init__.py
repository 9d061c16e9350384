"""The commands of `selfmask`, one file per group; heavy imports happen inside them."""
