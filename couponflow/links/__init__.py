"""How couponflow's links to merchants are written; shared by the capability folders."""
