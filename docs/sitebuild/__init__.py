"""What the site is built with: markers in pages become source lines, figures, tables and formulas."""
