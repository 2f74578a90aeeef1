"""The senders, a module each, all behind the contract in `couponflow/webhooks/contract.py`."""
