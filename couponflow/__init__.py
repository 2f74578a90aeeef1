"""couponflow: the back end of a coupon and cashback business in one daemon."""

__version__ = "0.1.0"
