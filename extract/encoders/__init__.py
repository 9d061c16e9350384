"""Encoders behind one interface: embed, mask, encode."""
