//! What is learned: each objective turns a batch into a loss.
