"""Recipes that train and measure what the paper and this package report."""
