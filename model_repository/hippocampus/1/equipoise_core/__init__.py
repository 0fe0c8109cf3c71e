"""What decides: contract, masks, moments, uncertainty, scores, policy, decision, record.

NumPy and the standard library only. A published model carries its own copy of this package.
"""
