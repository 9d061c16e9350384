"""Stays that are odd in one way each, with what a correct preparation makes of them."""
