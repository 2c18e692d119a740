"""The market's rules, sans-IO: values, codecs, signatures and state machines."""
