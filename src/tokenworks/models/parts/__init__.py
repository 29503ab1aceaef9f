"""The mathematics of layers: each part writes its share of a program, beside its paper."""
