"""ADRA: a decoder from smashed data to images."""
