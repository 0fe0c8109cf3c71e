"""Which release is in service: checked, compared with the one before, switched, taken back."""
