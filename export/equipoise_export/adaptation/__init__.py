"""A policy of another site → a policy for this one: nothing is accepted until labelled cases of this site allow it."""
