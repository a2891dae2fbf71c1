"""The oracle: preprocessing, suppression and masks in plain NumPy, which know no GPU."""
