//! The optimizer: update rule, groups of parameters, schedule, clipping, averages.
