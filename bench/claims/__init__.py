"""Claims: what others say of methods, as formulas over cells, and whether predictions and measurements bear them out."""
